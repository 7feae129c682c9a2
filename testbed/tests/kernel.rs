//! The testbed on a real kernel.

use std::{
    net::UdpSocket,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use testbed::{
    Host, LinkOptions, Result, Switch,
    bpf::{self, ProgramType, TestRun},
    packets,
};

const SOON: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(300);

testbed::kernel_tests! {
    fn a_capture_sees_exactly_the_frames_that_were_injected() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        let frames = [
            link.left.frame_to(&link.right).ipv4("192.0.2.1", "192.0.2.2").udp(1000, 9).payload(b"plain").build(),
            link.left.frame_to(&link.right).vlan(10).ipv4("192.0.2.1", "192.0.2.2").udp(1000, 9).build(),
            link.left.frame_to(&link.right).service_vlan(20).vlan(10).ipv6("2001:db8::1", "2001:db8::2").build(),
            link.left.frame_to(&link.right).vlan(1).priority(5).vlan(2).vlan(3).arp_request("192.0.2.1", "192.0.2.2").build(),
            link.left.frame_to(&link.right).ether_type(0x88cc).payload(packets::random_bytes(1, 1500)).build(),
        ];
        let mut capture = link.right.host.capture("eth0")?;
        let sent = link.left.host.injector("eth0")?.send_all(&frames)?;
        assert_eq!(sent, 5);
        assert_eq!(capture.all(SILENCE)?, frames);
        Ok(())
    }

    fn a_quiet_link_is_silent() -> Result {
        let (client, server) = (Host::new("client")?, Host::new("server")?);
        client.join(&server)?;
        let mut captures = [client.capture("eth0")?, server.capture("eth0")?];
        for capture in &mut captures {
            assert_eq!(capture.next(Duration::from_secs(2))?, None);
        }
        Ok(())
    }

    fn connecting_a_host_to_a_quiet_switch_is_silent() -> Result {
        let switch = Switch::new()?;
        let (first, second) = (Host::new("first")?, Host::new("second")?);
        switch.connect(&first)?;
        let mut capture = first.capture("eth0")?;
        switch.connect(&second)?;
        assert_eq!(capture.next(Duration::from_secs(2))?, None);
        Ok(())
    }

    fn ten_thousand_frames_at_once_all_arrive() -> Result {
        for native_xdp in [false, true] {
            let link = Host::new("client")?.join(&Host::new("server")?)?;
            if native_xdp {
                link.right.pass_xdp()?;
            }
            let frame = link.left.frame_to(&link.right).ipv4("192.0.2.1", "192.0.2.2").udp(1000, 9).build();
            let mut capture = link.right.host.capture("eth0")?;
            link.left.host.injector("eth0")?.send_all(std::iter::repeat_n(&frame, 10_000))?;
            assert_eq!(capture.all(SILENCE)?.len(), 10_000, "with native XDP: {native_xdp}");
        }
        Ok(())
    }

    fn three_hosts_on_a_switch_reach_each_other_and_overhear_nothing() -> Result {
        let switch = Switch::new()?;
        let hosts = ["a", "b", "c"].map(|name| Host::new(name).unwrap());
        let ends = hosts.each_ref().map(|host| switch.connect(host).unwrap());
        let mut overheard = hosts[1].capture("eth0")?;

        for (from, to) in [(0, 2), (2, 0)] {
            let (from, to) = (&ends[from], &ends[to]);
            for address in [std::net::IpAddr::from(to.ipv4), to.ipv6.into()] {
                let listener = to.host.run(|| UdpSocket::bind((address, 7))).unwrap();
                listener.set_read_timeout(Some(SOON)).unwrap();
                let sender = from.host.run(|| UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })).unwrap();
                sender.send_to(b"hello", (address, 7)).unwrap();
                let mut buffer = [0; 16];
                let (length, _) = listener.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], b"hello");
            }
        }
        assert_eq!(overheard.next(SILENCE)?, None);
        Ok(())
    }

    fn further_links_get_further_subnets_and_interfaces() -> Result {
        let (left, right) = (Host::new("left")?, Host::new("right")?);
        left.join(&right)?;
        let second = left.join_with(&right, LinkOptions { mtu: 9000, queues: 2, ..LinkOptions::default() })?;
        assert_eq!(second.right.interface, "eth1");
        assert_eq!(second.right.ipv4.to_string(), "198.51.100.2");
        assert_eq!(second.left.ipv6.to_string(), "2001:db8:0:2::1");
        Ok(())
    }

    fn the_other_end_of_a_link_vanishes_with_its_host() -> Result {
        let (client, server) = (Host::new("client")?, Host::new("server")?);
        client.join(&server)?;
        drop(client);
        let start = Instant::now();
        while server.index_of("eth0").is_ok() {
            assert!(start.elapsed() < Duration::from_secs(10), "eth0 is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn an_empty_program_of_each_type_lets_a_packet_pass() -> Result {
        let frame = packets::ethernet().ipv4("192.0.2.1", "192.0.2.2").udp(1, 2).payload([0; 64]).build();
        for program_type in [ProgramType::Xdp, ProgramType::SchedCls, ProgramType::CgroupSkb] {
            let program = bpf::empty_program(program_type)?;
            let outcome = bpf::test_run(program.as_fd(), TestRun::repeated(&frame, 1000))?;
            assert_eq!(outcome.retval, program_type.pass(), "{program_type:?}");
            assert_eq!(outcome.data_out[14..], frame[14..], "{program_type:?}");
        }
        Ok(())
    }

    fn a_panic_inside_a_host_is_passed_on() {
        let host = Host::new("host").unwrap();
        let panic = std::panic::catch_unwind(|| host.run(|| panic!("inside"))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    }
}
