//! The flow table in the kernel, by test runs of both programs (F3): as on the host, in `common/tests/decide.rs`, and
//! what only the kernel has, tags beside the frame, time that passes, and floods on several CPUs.

use std::{net::Ipv4Addr, os::fd::AsFd as _, thread, time::Duration};

use lab03_tc_egress::{
    attach::Direction::{self, Egress, Ingress},
    policy::Policy,
};
use lab03_tc_egress_common::decide::{
    FlowEvent,
    Reason::{self, Denied, Flow, ListedPort, Malformed, New, NotIp, Related, Stranger},
};
use testbed::{
    bpf::{TestRun, test_run},
    harness::needs_two_cpus,
    packets::{self, Packet},
    pcap, stay_on_cpu, walk,
};

use crate::program::Program;

testbed::listed_tests![
    a_connection_goes_through_all_its_states,
    only_replies_and_listed_ports_come_in,
    icmp_errors_follow_the_flow_that_they_quote,
    a_tag_beside_the_frame_is_a_tag,
    a_silent_flow_is_forgotten,
    a_flood_of_half_open_flows_pushes_no_established_one_out,
    rules_deny_and_count_by_themselves,
    a_replayed_capture_makes_the_same_flows_as_on_the_host,
    of_a_million_flows_each_is_kept_or_counted_as_evicted,
];

const US: &str = "192.0.2.1";
const THEM: &str = "192.0.2.2";

fn out() -> Packet {
    packets::ethernet().ipv4(US, THEM)
}

fn back() -> Packet {
    packets::ethernet().ipv4(THEM, US)
}

fn stateful() -> Policy {
    Policy {
        stateful: true,
        allow_ports: vec!["tcp/443".parse().unwrap()],
        max_flows: 1024,
        ..Policy::default()
    }
}

fn state(program: &Program) -> &'static str {
    let flows = program.flows();
    assert_eq!(flows.len(), 1, "{flows:?}");
    flows[0].state
}

fn a_connection_goes_through_all_its_states() {
    let program = Program::with(&stateful());
    let steps: [(Direction, Packet, Reason, &str); 6] = [
        (Egress, out().tcp(1000, 80).syn(), New, "syn-sent"),
        (Ingress, back().tcp(80, 1000).syn().ack(), Flow, "syn-received"),
        (Egress, out().tcp(1000, 80).ack(), Flow, "established"),
        (Ingress, back().tcp(80, 1000).fin().ack(), Flow, "fin-by-responder"),
        (Egress, out().tcp(1000, 80).fin().ack(), Flow, "closed"),
        (Egress, out().tcp(1000, 80).rst(), Flow, "reset"),
    ];
    for (direction, packet, reason, expected) in steps {
        assert_eq!(program.see(direction, &packet.build()), reason, "{expected}");
        assert_eq!(state(&program), expected);
    }
    let flow = &program.flows()[0];
    assert_eq!((flow.packets_out, flow.packets_back), (4, 2));
    assert_eq!((flow.originator.to_string(), flow.originator_port), (US.into(), 1000));
    assert_eq!(
        program.see(Ingress, &back().tcp(80, 1000).syn().build()),
        Stranger,
        "it is over"
    );
}

fn only_replies_and_listed_ports_come_in() {
    let program = Program::with(&stateful());
    let v6 = |from: &str, to: &str| packets::ethernet().ipv6(from, to);
    let (here, there) = ("2001:db8::1", "2001:db8::2");
    for (direction, packet, reason) in [
        (Ingress, back().tcp(4000, 22).syn(), Stranger),
        (Ingress, back().tcp(4000, 22).ack(), Stranger),
        (Ingress, back().udp(53, 1000), Stranger),
        (Ingress, back().icmp_echo_request(1, 1), Stranger),
        (Ingress, v6(there, here).icmp_echo_request(1, 1), Stranger),
        (
            Ingress,
            v6(there, here).icmp(135, 0, [0; 4]).payload([0; 16]),
            Reason::Essential,
        ),
        (Ingress, packets::ethernet().arp_request(THEM, US), NotIp),
        (
            // A test run takes no frame that is cut behind its Ethernet header.
            Ingress,
            packets::ethernet().service_vlan(1).vlan(2).vlan(3).ipv4(THEM, US),
            Malformed,
        ),
        (Ingress, back().tcp(4000, 443).syn(), ListedPort),
        (Ingress, back().udp(4000, 443), Stranger),
        (Egress, out().udp(1000, 53), New),
        (Ingress, back().udp(53, 1000), Flow),
        (Ingress, back().udp(53, 1001), Stranger),
        (Egress, v6(here, there).icmp_echo_request(7, 1), New),
        (Ingress, v6(there, here).icmp_echo_reply(7, 1), Flow),
        (Ingress, v6(there, here).icmp_echo_request(7, 1), Stranger),
        (Ingress, v6(there, here).icmp_echo_reply(8, 1), Stranger),
    ] {
        assert_eq!(program.see(direction, &packet.build()), reason, "{packet:?}");
    }
    let fragments = |port: u16| packets::split(&back().udp(53, port).payload([0; 3000]).build(), 1500, 7);
    let reasons = |frames: &[Vec<u8>]| {
        frames
            .iter()
            .map(|frame| program.see(Ingress, frame))
            .collect::<Vec<_>>()
    };
    assert_eq!(reasons(&fragments(1000)[1..2]), [Reason::Fragment]);
    assert_eq!(
        reasons(&fragments(1000)),
        [Flow, Reason::FragmentFollows, Reason::FragmentFollows]
    );
    assert_eq!(
        reasons(&fragments(1001)),
        [Stranger, Reason::Fragment, Reason::Fragment]
    );
}

fn icmp_errors_follow_the_flow_that_they_quote() {
    let program = Program::with(&stateful());
    let question = out().udp(1000, 53).build();
    let question_v6 = packets::ethernet()
        .ipv6("2001:db8::1", "2001:db8::2")
        .tcp(1000, 80)
        .syn()
        .build();
    assert_eq!(program.see(Egress, &question), New);
    assert_eq!(program.see(Egress, &question_v6), New);
    let router = || packets::ethernet().ipv4("198.51.100.1", US);
    let router_v6 = || packets::ethernet().ipv6("2001:db8:9::1", "2001:db8::1");
    for (error, reason) in [
        (router().icmp_port_unreachable(&question), Related),
        (router_v6().icmp_too_big(1280, &question_v6), Related),
        (router().icmp_port_unreachable(&out().udp(1000, 54).build()), Stranger),
        (
            packets::ethernet()
                .ipv4("198.51.100.1", "192.0.2.9")
                .icmp_port_unreachable(&question),
            Stranger,
        ),
    ] {
        assert_eq!(program.see(Ingress, &error.build()), reason, "{error:?}");
    }
}

/// A `struct __sk_buff` of linux/bpf.h with the fields that a test run takes: `priority`, `tstamp`, and what
/// segmentation offload is about.
pub fn sk_buff(wire_len: u32, gso_segs: u32, gso_size: u32) -> Vec<u8> {
    let mut context = vec![0; 192];
    for (offset, value) in [(160, wire_len), (164, gso_segs), (176, gso_size)] {
        context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    context
}

fn a_tag_beside_the_frame_is_a_tag() -> testbed::Result {
    // A test run cannot put one there; a frame that comes in over a cable gets its outer tag taken out.
    let link = testbed::Host::new("client")?.join(&testbed::Host::new("server")?)?;
    let (client, server) = (link.left, link.right);
    let running = crate::lab::Lab::on(&server, &["--stateful", "--allow-port", "udp/53"]);
    let query = client
        .frame_to(&server)
        .vlan(10)
        .ipv4(client.ipv4, server.ipv4)
        .udp(1000, 53);
    client.host.inject(&client.interface, &query.build())?;
    let three = client
        .frame_to(&server)
        .service_vlan(1)
        .vlan(2)
        .vlan(3)
        .ipv4(client.ipv4, server.ipv4)
        .udp(1000, 53);
    client.host.inject(&client.interface, &three.build())?;
    let report = running.wait_for("both have come", |report| {
        report.of("ingress", "pass", "listed-port") == 1 && report.of("ingress", "drop", "malformed") == 1
    });
    assert_eq!(report.0["malformed"][0]["reason"], "too-many-vlan-tags");
    let flows = crate::lab::flows(&server);
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0]["vlans"], serde_json::json!([10]));
    Ok(())
}

fn a_silent_flow_is_forgotten() {
    let policy = Policy {
        udp_idle: Duration::from_millis(300),
        ..stateful()
    };
    let program = Program::with(&policy);
    for (direction, packet) in [
        (Egress, out().udp(1000, 53)),
        (Ingress, back().udp(53, 1000)),
        (Egress, out().udp(1000, 53)),
    ] {
        program.see(direction, &packet.build());
    }
    let answer = back().udp(53, 1000).build();
    // At once it is known, unless this machine slept for longer than it is remembered.
    crate::lab::wait_until("it is forgotten", || {
        thread::sleep(Duration::from_millis(400));
        program.see(Ingress, &answer) == Stranger
    });
    assert_eq!(program.flows().len(), 0);
    assert_eq!(program.see(Egress, &out().udp(1000, 53).build()), New);
}

fn a_flood_of_half_open_flows_pushes_no_established_one_out() {
    const CONNECTIONS: u16 = 500;
    needs_two_cpus();
    let program = Program::with(&stateful());
    for port in 1..=CONNECTIONS {
        program.see(Ingress, &back().tcp(port, 443).syn().build());
        program.see(Egress, &out().tcp(443, port).syn().ack().build());
        program.see(Ingress, &back().tcp(port, 443).ack().build());
    }
    let before = program.statistics();
    assert_eq!(before.fill.established, u64::from(CONNECTIONS));
    assert_eq!(before.event(FlowEvent::EvictedEstablished), 0);
    // Forged sources, answered, from all CPUs at once; many more than the table of half-open flows holds.
    let cpus = 2;
    let floods = 20_000_u32;
    thread::scope(|scope| {
        for cpu in 0..cpus {
            let (ingress, egress) = (program.fd(Ingress), program.fd(Egress));
            scope.spawn(move || {
                stay_on_cpu(cpu as usize).unwrap();
                for number in 0..floods / cpus {
                    let forged = Ipv4Addr::from_bits(0x0a00_0000 | cpu << 20 | number);
                    let syn = packets::ethernet().ipv4(forged, US).tcp(1, 443).syn().build();
                    let answer = packets::ethernet().ipv4(US, forged).tcp(443, 1).syn().ack().build();
                    test_run(ingress.as_fd(), TestRun::once(&syn)).unwrap();
                    test_run(egress.as_fd(), TestRun::once(&answer)).unwrap();
                }
            });
        }
    });
    let after = program.statistics();
    assert_eq!(after.event(FlowEvent::EvictedEstablished), 0);
    assert_eq!(after.fill.established, u64::from(CONNECTIONS));
    let created = after.event(FlowEvent::Created) - before.event(FlowEvent::Created);
    assert_eq!(created, u64::from(floods));
    // None is lost without being counted: those that are not there any more were evicted.
    let evicted = after.event(FlowEvent::EvictedHalfOpen);
    assert_eq!(created, after.fill.half_open + evicted);
    assert!(evicted > created / 2, "{evicted} of {created}");
    for port in 1..=CONNECTIONS {
        assert_eq!(
            program.see(Ingress, &back().tcp(port, 443).ack().build()),
            Flow,
            "{port}"
        );
    }
}

fn rules_deny_and_count_by_themselves() {
    let policy = Policy {
        deny: ["tcp/25", "198.51.100.0/24,udp/53", "198.51.100.0/24", "2001:db8:7::/48"]
            .iter()
            .map(|rule| rule.parse().unwrap())
            .collect(),
        ..Policy::default()
    };
    let program = Program::with(&policy);
    let to = |address: &str| packets::ethernet().ipv4(US, address);
    let to_v6 = |address: &str| packets::ethernet().ipv6("2001:db8::1", address);
    for (packet, rule) in [
        (to("203.0.113.1").tcp(1, 25).syn(), Some(0)),
        (to("203.0.113.1").udp(1, 25), None),
        (to("198.51.100.9").udp(1, 53), Some(1)),
        (to("198.51.100.9").udp(1, 54), Some(2)),
        (to("198.51.100.9").tcp(1, 25).syn(), Some(0)),
        (to("198.51.101.9").udp(1, 53), None),
        (to_v6("2001:db8:7::1").icmp_echo_request(1, 1), Some(3)),
        (to_v6("2001:db8:8::1").icmp_echo_request(1, 1), None),
        (to_v6("2001:db8:8::1").tcp(1, 25).syn(), Some(0)),
    ] {
        let before = program.statistics().by_rule;
        let frame = packet.build();
        let reason = program.see(Egress, &frame);
        let after = program.statistics().by_rule;
        let hit: Vec<usize> = (0..after.len())
            .filter(|index| after[*index] != before[*index])
            .collect();
        assert_eq!(reason == Denied, rule.is_some(), "{packet:?}");
        assert_eq!(hit, Vec::from_iter(rule), "{packet:?}");
        if let Some(rule) = rule {
            assert_eq!(after[rule].bytes - before[rule].bytes, frame.len() as u64);
        }
        assert!(program.see(Ingress, &frame) != Denied, "only what goes out is denied");
    }
}

fn a_replayed_capture_makes_the_same_flows_as_on_the_host() {
    use lab03_tc_egress_common::decide::Hook;
    let mut frames = Vec::new();
    for number in 0..600_u32 {
        // Few ends and many flags, so that everything meets everything.
        let bits = number.wrapping_mul(2_654_435_761) >> 7;
        let (port, peer) = (
            1000 + (bits & 3) as u16,
            Ipv4Addr::from_bits(0xc633_6401 + (bits >> 2 & 1)),
        );
        let leaves = bits >> 3 & 1 == 1;
        let (packet, ports) = if leaves {
            (packets::ethernet().ipv4(US, peer), (port, 80))
        } else {
            (packets::ethernet().ipv4(peer, US), (80, port))
        };
        let flags = [2, 18, 16, 17, 4, 16, 24, 1][(bits >> 4) as usize & 7];
        let packet = match bits >> 7 & 3 {
            0 => packet.udp(ports.0, ports.1),
            1 if leaves => packet.icmp_echo_request(port, 1),
            1 => packet.icmp_echo_reply(port, 1),
            _ => packet.tcp(ports.0, ports.1).tcp_flags(flags),
        };
        frames.push(packet.build());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mixed.pcap");
    pcap::write(&file, &frames).unwrap();
    let program = Program::with(&stateful());
    let mut host = crate::memory::World::new(128, 512);
    host.config.stateful = 1;
    host.listed = vec![443];
    for frame in pcap::read(&file).unwrap() {
        let leaves = frame[26..30] == [192, 0, 2, 1];
        let (direction, hook) = if leaves {
            (Egress, Hook::Egress)
        } else {
            (Ingress, Hook::Ingress)
        };
        assert_eq!(program.see(direction, &frame), host.see(hook, &frame), "{frame:02x?}");
    }
    let on_host: Vec<_> = host
        .established
        .flows()
        .into_iter()
        .chain(host.half_open.flows())
        .collect();
    let in_kernel = program.flows();
    assert_eq!(in_kernel.len(), on_host.len());
    let mut host_states: Vec<_> = on_host
        .iter()
        .map(|flow| (flow.packets, flow.state().unwrap().name()))
        .collect();
    let mut kernel_states: Vec<_> = in_kernel
        .iter()
        .map(|flow| ([flow.packets_out, flow.packets_back], flow.state))
        .collect();
    host_states.sort_unstable();
    kernel_states.sort_unstable();
    assert_eq!(kernel_states, host_states);
}

fn of_a_million_flows_each_is_kept_or_counted_as_evicted() {
    const FLOWS: u32 = 1_000_000;
    let program = Program::with(&Policy {
        max_flows: FLOWS,
        ..stateful()
    });
    let fds = [program.fd(Ingress).as_fd(), program.fd(Egress).as_fd()];
    let (clients, server) = (Ipv4Addr::new(10, 0, 0, 0), US.parse().unwrap());
    walk::shake_hands(fds, &[], clients, server, FLOWS).unwrap();
    let statistics = program.statistics();
    let met = |direction, reason| statistics.of(direction, reason).packets;
    let evicted = statistics.event(FlowEvent::EvictedEstablished);
    let all = u64::from(FLOWS);
    for (what, counted, expected) in [
        ("SYNs let in", met(Ingress, ListedPort), all),
        ("answers let out", met(Egress, Flow), all),
        ("ACKs let in", met(Ingress, Flow), all),
        ("flows created", statistics.event(FlowEvent::Created), all),
        ("flows proven", statistics.event(FlowEvent::Established), all),
        // A thousand at a time are half open, and there is room for 250,000.
        (
            "half-open flows evicted",
            statistics.event(FlowEvent::EvictedHalfOpen),
            0,
        ),
        ("half-open flows left", statistics.fill.half_open, 0),
        ("flows kept or evicted", statistics.fill.established + evicted, all),
    ] {
        assert_eq!(counted, expected, "{what}");
    }
    // 795 by Poisson's distribution, with a standard deviation of about 30: see `common/tests/table.rs`.
    assert!((600..1000).contains(&evicted), "{evicted}");
}
