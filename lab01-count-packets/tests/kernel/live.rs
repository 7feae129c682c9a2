//! The command on an interface with real traffic: what was sent is what was counted, to the last byte.

use std::{net::IpAddr, time::Duration};

use lab01_count_packets_common::counter::Counter;
use testbed::{
    Host, Link, LinkOptions, Result, packets, pcap,
    traffic::{self, Flood, Server},
};

use crate::{lab::Counting, program::Counted};

testbed::listed_tests![
    pings_are_counted_by_source_and_protocol,
    tcp_is_counted_as_a_capture_sees_it,
    udp_of_many_sources_adds_up,
    a_replayed_capture_file_is_counted_frame_by_frame,
    tagged_frames_are_counted_on_a_live_interface,
    what_several_cpus_count_at_once_adds_up,
    sources_beyond_max_sources_are_told_and_none_of_their_packets_is_lost,
];

const MODES: [&str; 2] = ["native", "generic"];
const SOON: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(200);

fn client_and_server(options: LinkOptions) -> Result<Link> {
    Host::new("client")?.join_with(&Host::new("server")?, options)
}

/// What sockets send looks as on a wire: finished checksums, no segments larger than the MTU.
const AS_ON_A_WIRE: LinkOptions = LinkOptions {
    mtu: 1500,
    queues: 1,
    quiet: true,
    offloads: false,
};

fn pings_are_counted_by_source_and_protocol() -> Result {
    for mode in MODES {
        let link = client_and_server(LinkOptions::default())?;
        let counting = Counting::on(&link.right, &["--xdp-mode", mode]);
        assert!(traffic::ping(&link.left.host, link.right.ipv4, 5, SOON)?.is_complete());
        assert!(traffic::ping(&link.left.host, link.right.ipv6, 3, SOON)?.is_complete());
        let report = counting.stop_after(8);

        assert_eq!(report.json["xdp_mode"], mode);
        // Ethernet, IP, ICMP and 56 bytes of payload.
        let v4 = counter(5, 14 + 20 + 8 + 56);
        let v6 = counter(3, 14 + 40 + 8 + 56);
        let expected = Counted {
            sources: [(link.left.ipv4.into(), v4), (link.left.ipv6.into(), v6)].into(),
            protocols: [("IPv4 ICMP".into(), v4), ("IPv6 ICMPv6".into(), v6)].into(),
            ..Counted::default()
        };
        assert_eq!(report.counted(), expected, "{mode}");
        assert_eq!(report.total().packets, 8);
        assert_eq!(report.stderr, "");
    }
    Ok(())
}

fn tcp_is_counted_as_a_capture_sees_it() -> Result {
    for mode in MODES {
        let link = client_and_server(AS_ON_A_WIRE)?;
        let server = Server::tcp(&link.right.host, 0)?;
        let mut capture = link.right.host.capture("eth0")?;
        let counting = Counting::on(&link.right, &["--xdp-mode", mode]);
        for address in [IpAddr::from(link.right.ipv4), link.right.ipv6.into()] {
            let exchange = traffic::tcp_exchange(&link.left.host, (address, server.port()).into(), 100_000, SOON)?;
            assert!(exchange.is_complete());
        }
        // Both connections are closed when nothing comes any more.
        let arrived = capture.all(SILENCE)?;
        let report = counting.stop_after(arrived.len() as u64);
        assert_eq!(report.counted(), Counted::on_host(&arrived), "{mode}");
        let bytes: usize = arrived.iter().map(Vec::len).sum();
        assert!(bytes > 200_000, "{bytes}");
        assert_eq!(report.total().bytes, bytes as u64);
    }
    Ok(())
}

fn udp_of_many_sources_adds_up() -> Result {
    for mode in MODES {
        let link = client_and_server(LinkOptions::default())?;
        let counting = Counting::on(&link.right, &["--xdp-mode", mode, "--top", "0"]);
        let v4 = Flood::new(&link.left, &link.right).sources(300).count(6000);
        let v6 = Flood::new(&link.left, &link.right).ipv6().sources(200).count(2000);
        assert_eq!(v4.send()? + v6.send()?, 8000);
        let report = counting.stop_after(8000);

        let counted = report.counted();
        assert_eq!(
            report.total(),
            Counter {
                packets: 8000,
                bytes: 6000 * 60 + 2000 * 80
            }
        );
        assert_eq!(counted.protocols["IPv4 UDP"], counter(6000, 60));
        assert_eq!(counted.protocols["IPv6 UDP"], counter(2000, 80));
        assert_eq!(counted.sources.len(), 500);
        for (source, counted) in counted.sources {
            let expected = if source.is_ipv4() {
                counter(20, 60)
            } else {
                counter(10, 80)
            };
            assert_eq!(counted, expected, "{source}, {mode}");
        }
        assert_eq!(report.json["sources_counted"], 500);
    }
    Ok(())
}

fn a_replayed_capture_file_is_counted_frame_by_frame() -> Result {
    let link = client_and_server(LinkOptions::default())?;
    let frame = || link.left.frame_to(&link.right);
    let frames = [
        frame()
            .ipv4("198.51.100.7", link.right.ipv4)
            .udp(53, 4000)
            .payload([1; 100])
            .build(),
        frame()
            .ipv4("198.51.100.7", link.right.ipv4)
            .tcp(443, 4000)
            .syn()
            .build(),
        frame()
            .ipv6("2001:db8:7::1", link.right.ipv6)
            .hop_by_hop()
            .udp(1, 2)
            .build(),
        frame().to_broadcast().arp_request("192.0.2.1", "192.0.2.2").build(),
        frame().ether_type(0x88cc).payload([0; 46]).build(),
        // Random bytes behind an IPv4 EtherType: whatever they are, host and kernel agree on it.
        frame()
            .ether_type(0x0800)
            .payload(packets::random_bytes(7, 200))
            .build(),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("traffic.pcap");
    pcap::write(&file, &frames)?;

    let counting = Counting::on(&link.right, &[]);
    assert_eq!(pcap::replay(&link.left.host, "eth0", &file)?, frames.len() as u64);
    let report = counting.stop_after(frames.len() as u64);
    assert_eq!(report.counted(), Counted::on_host(&frames));
    assert!(
        report.stderr.contains("first malformed packet of its kind"),
        "{}",
        report.stderr
    );
    Ok(())
}

fn tagged_frames_are_counted_on_a_live_interface() -> Result {
    for mode in MODES {
        let link = client_and_server(LinkOptions::default())?;
        let frame = || link.left.frame_to(&link.right);
        let frames = [
            frame().vlan(10).ipv4("192.0.2.7", link.right.ipv4).udp(1, 2).build(),
            frame()
                .vlan(10)
                .vlan(20)
                .ipv4("192.0.2.7", link.right.ipv4)
                .udp(1, 2)
                .build(),
            frame()
                .service_vlan(30)
                .vlan(10)
                .ipv6("2001:db8::7", link.right.ipv6)
                .udp(1, 2)
                .build(),
            frame()
                .vlan(1)
                .vlan(2)
                .vlan(3)
                .ipv4("192.0.2.7", link.right.ipv4)
                .build(),
        ];
        let counting = Counting::on(&link.right, &["--xdp-mode", mode]);
        link.left.host.injector("eth0")?.send_all(&frames)?;
        let report = counting.stop_after(frames.len() as u64);
        assert_eq!(report.counted(), Counted::on_host(&frames), "{mode}");
    }
    Ok(())
}

fn what_several_cpus_count_at_once_adds_up() -> Result {
    testbed::harness::needs_two_cpus();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    for mode in MODES {
        let link = client_and_server(LinkOptions {
            queues: cpus as u32,
            ..LinkOptions::default()
        })?;
        let counting = Counting::on(&link.right, &["--xdp-mode", mode, "--top", "0"]);
        // All of them send from the same sources, so that they meet at every new entry.
        let flood = Flood::new(&link.left, &link.right).sources(500).count(5000);
        std::thread::scope(|scope| {
            for cpu in 0..cpus {
                let flood = &flood;
                scope.spawn(move || {
                    testbed::stay_on_cpu(cpu).unwrap();
                    flood.send().unwrap()
                });
            }
        });
        let all = 5000 * cpus as u64;
        let report = counting.stop_after(all);
        assert_eq!(report.total(), counter(all, 60), "{mode}");
        let counted = report.counted();
        assert_eq!(counted.sources.len(), 500);
        for (source, counted) in counted.sources {
            assert_eq!(counted, counter(10 * cpus as u64, 60), "{source}, {mode}");
        }
    }
    Ok(())
}

fn sources_beyond_max_sources_are_told_and_none_of_their_packets_is_lost() -> Result {
    let link = client_and_server(LinkOptions::default())?;
    let counting = Counting::on(&link.right, &["--max-sources", "2"]);
    Flood::new(&link.left, &link.right).sources(5).count(500).send()?;
    let report = counting.stop_after(500);

    let counted = report.counted();
    assert_eq!(counted.sources.len(), 2);
    assert!(counted.sources.values().all(|of_source| *of_source == counter(100, 60)));
    assert_eq!(counted.untracked, counter(300, 60));
    assert_eq!(counted.protocols["IPv4 UDP"], counter(500, 60));
    let warning = "warn: no room for another source: from here on, packets of new ones are counted together\n";
    assert!(report.stderr.contains(warning), "{}", report.stderr);
    Ok(())
}

fn counter(packets: u64, bytes_each: u64) -> Counter {
    Counter {
        packets,
        bytes: packets * bytes_each,
    }
}
