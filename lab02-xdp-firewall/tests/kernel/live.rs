//! Real ping, TCP and UDP through the command on an interface (F13, M3, P5, P6): before, while and after they are blocked.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use nix::sys::signal::Signal;
use testbed::{
    End, Result,
    traffic::{self, Connection, Server},
};

use crate::lab::{Firewall, MODES, cable, wait_until};

testbed::listed_tests![
    a_list_that_is_rewritten_cuts_a_working_connection_off_and_lets_it_go_on,
    ping_and_udp_are_blocked_by_address,
    ports_are_blocked_by_protocol_and_for_answers_by_source,
    a_blocked_sender_is_cut_off_whatever_its_addresses,
    under_default_drop_what_is_allowed_works,
    datagrams_in_fragments_work_when_tracked_and_not_when_dropped,
    the_rate_limit_bites_only_who_sends_too_much,
    after_kill_9_nothing_is_attached_and_the_next_start_counts_from_0,
    sigterm_and_ctrl_c_detach,
];

/// What comes back at all comes back in this time, retransmissions included.
const SOON: Duration = Duration::from_secs(4);
/// What is blocked is waited for so long.
const A_WHILE: Duration = Duration::from_millis(300);

fn addresses(end: &End) -> [IpAddr; 2] {
    [end.ipv4.into(), end.ipv6.into()]
}

fn a_list_that_is_rewritten_cuts_a_working_connection_off_and_lets_it_go_on() -> Result {
    for mode in MODES {
        let (client, server) = cable()?;
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.txt");
        fs::write(&list, "# nobody yet\n").unwrap();
        let firewall = Firewall::on(&server, &["--xdp-mode", mode, "--block-file", list.to_str().unwrap()]);

        let echo = Server::tcp(&server.host, 0)?;
        let target = SocketAddr::from((server.ipv4, echo.port()));
        let mut stream = client.host.run(|| TcpStream::connect_timeout(&target, SOON)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = [0; 6];
        stream.write_all(b"before").unwrap();
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"before");

        fs::write(&list, format!("{}\n", client.ipv4)).unwrap();
        firewall.wait_for_word("the lists changed: 1 prefixes are blocked now", 1);
        stream.write_all(b"blockd").unwrap();
        stream.set_read_timeout(Some(A_WHILE)).unwrap();
        let error = stream.read_exact(&mut buffer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{mode}");
        assert_eq!(traffic::ping(&client.host, server.ipv4, 1, A_WHILE)?.received, 0);
        assert_eq!(
            traffic::try_connect(&client.host, target, A_WHILE)?,
            Connection::TimedOut
        );
        // IPv6 is not on the list.
        assert!(traffic::ping(&client.host, server.ipv6, 2, SOON)?.is_complete());

        fs::write(&list, "").unwrap();
        firewall.wait_for_word("the lists changed: 0 prefixes are blocked now", 1);
        // TCP sends it again, and so nothing is lost.
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"blockd");
        let (report, _) = firewall.stop();
        assert!(report.of("drop", "address") >= 3, "{report:?}");
        assert!(!server.has_xdp()?);
    }
    Ok(())
}

fn ping_and_udp_are_blocked_by_address() -> Result {
    for mode in MODES {
        let (client, server) = cable()?;
        let echo = Server::udp(&server.host, 0)?;
        for (blocked, works) in [(0, 1), (1, 0)] {
            let source = addresses(&client)[blocked].to_string();
            let firewall = Firewall::on(&server, &["--xdp-mode", mode, "--block-ip", &source]);
            for (index, target) in addresses(&server).into_iter().enumerate() {
                let answers = if index == works { 2 } else { 0 };
                let timeout = if index == works { SOON } else { A_WHILE };
                assert_eq!(
                    traffic::ping(&client.host, target, 2, timeout)?.received,
                    answers,
                    "{source}"
                );
                let udp = traffic::udp_exchange(&client.host, (target, echo.port()).into(), 2, timeout)?;
                assert_eq!(udp.received, answers, "{source} and {target}");
            }
            let (report, _) = firewall.stop_after(8);
            assert_eq!((report.of("drop", "address"), report.of("pass", "default")), (4, 4));
            assert_eq!(report.0["xdp_mode"], mode);
        }
    }
    Ok(())
}

fn ports_are_blocked_by_protocol_and_for_answers_by_source() -> Result {
    let (client, server) = cable()?;
    let (tcp, udp) = (Server::tcp(&server.host, 7000)?, Server::udp(&server.host, 7000)?);
    let (target, target_v6) = (
        SocketAddr::from((server.ipv4, tcp.port())),
        SocketAddr::from((server.ipv6, udp.port())),
    );
    let firewall = Firewall::on(&server, &["--block-port", "tcp/6999-7001"]);
    for target in [target, target_v6] {
        assert_eq!(
            traffic::try_connect(&client.host, target, A_WHILE)?,
            Connection::TimedOut
        );
        assert!(traffic::udp_exchange(&client.host, target, 2, SOON)?.is_complete());
    }
    assert!(firewall.stop().0.of("drop", "port") >= 2);

    // At the client's side what comes from the server's port is the answer.
    let firewall = Firewall::on(&client, &["--block-source-port", "udp/7000"]);
    assert_eq!(traffic::udp_exchange(&client.host, target, 2, A_WHILE)?.received, 0);
    assert!(traffic::tcp_exchange(&client.host, target, 100_000, SOON)?.is_complete());
    assert_eq!(firewall.stop().0.of("drop", "source-port"), 2);
    Ok(())
}

fn a_blocked_sender_is_cut_off_whatever_its_addresses() -> Result {
    for mode in MODES {
        let (client, server) = cable()?;
        let firewall = Firewall::on(&server, &["--xdp-mode", mode, "--block-mac", "02:00:00:00:00:01"]);
        for target in addresses(&server) {
            assert_eq!(traffic::ping(&client.host, target, 1, A_WHILE)?.received, 0);
        }
        assert_eq!(firewall.stop().0.of("drop", "mac"), 2);
    }
    Ok(())
}

fn under_default_drop_what_is_allowed_works() -> Result {
    let (client, server) = cable()?;
    let echo = Server::tcp(&server.host, 0)?;
    let port = format!("tcp/{}", echo.port());
    let firewall = Firewall::on(&server, &["--default", "drop", "--allow-port", &port]);
    for target in addresses(&server) {
        assert!(traffic::tcp_exchange(&client.host, (target, echo.port()).into(), 10_000, SOON)?.is_complete());
        assert_eq!(traffic::ping(&client.host, target, 1, A_WHILE)?.received, 0);
    }
    let (report, _) = firewall.stop();
    assert_eq!(report.of("drop", "default"), 2);
    assert_eq!(report.of("pass", "allowed"), report.passed());
    Ok(())
}

fn datagrams_in_fragments_work_when_tracked_and_not_when_dropped() -> Result {
    for mode in MODES {
        let (client, server) = cable()?;
        let echo = Server::udp(&server.host, 0)?;
        let (open, closed) = ("1".to_owned(), format!("udp/{}", echo.port()));
        for (fragments, block_port, works) in [
            ("pass", &open, true),
            ("track", &open, true),
            ("drop", &open, false),
            // The first fragment names the port, and the others follow it.
            ("track", &closed, false),
        ] {
            let args = [
                "--xdp-mode",
                mode,
                "--fragments",
                fragments,
                "--block-port",
                block_port.as_str(),
            ];
            let firewall = Firewall::on(&server, &args);
            for target in addresses(&server) {
                let came_back = echoed(&client, (target, echo.port()).into(), 4000);
                assert_eq!(came_back, works, "--fragments {fragments}, {target}, {mode}");
            }
            // Three fragments each.
            let (report, _) = firewall.stop_after(6);
            let counts = ["default", "fragment-follows"].map(|reason| report.of("pass", reason));
            let dropped = ["fragment", "port"].map(|reason| report.of("drop", reason));
            let expected = match (fragments, works) {
                ("pass", _) => ([6, 0], [0, 0]),
                ("track", true) => ([2, 4], [0, 0]),
                ("track", false) => ([0, 0], [4, 2]),
                _ => ([0, 0], [6, 0]),
            };
            assert_eq!((counts, dropped), expected, "--fragments {fragments}: {report:?}");
        }
    }
    Ok(())
}

/// Whether a datagram of so many bytes comes back whole.
fn echoed(client: &End, target: SocketAddr, length: usize) -> bool {
    client.host.run(|| {
        let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(A_WHILE)).unwrap();
        let datagram = testbed::packets::random_bytes(1, length);
        socket.send_to(&datagram, target).unwrap();
        let mut buffer = vec![0; length + 1];
        socket
            .recv(&mut buffer)
            .is_ok_and(|received| buffer[..received] == datagram)
    })
}

fn the_rate_limit_bites_only_who_sends_too_much() -> Result {
    let (client, server) = cable()?;
    let echo = Server::udp(&server.host, 0)?;
    let firewall = Firewall::on(&server, &["--rate-limit", "1", "--burst", "5"]);
    let target = SocketAddr::from((server.ipv4, echo.port()));
    let sent = traffic::udp_send(&client.host, target, 100, b"too much")?;
    wait_until("all have arrived", || firewall.report().total() >= sent);
    let passed = firewall.report().passed();
    assert!((5..10).contains(&passed), "{passed} of {sent} passed");
    // Its IPv6 address is another source.
    assert!(traffic::ping(&client.host, server.ipv6, 3, SOON)?.is_complete());
    let (report, _) = firewall.stop();
    assert_eq!(report.of("drop", "rate-limit"), report.dropped());
    Ok(())
}

fn after_kill_9_nothing_is_attached_and_the_next_start_counts_from_0() -> Result {
    for mode in MODES {
        let (client, server) = cable()?;
        let args = ["--xdp-mode", mode, "--block-ip", "192.0.2.1"];
        let firewall = Firewall::on(&server, &args);
        assert_eq!(traffic::ping(&client.host, server.ipv4, 2, A_WHILE)?.received, 0);
        wait_until("they are counted", || firewall.report().dropped() == 2);
        assert!(!firewall.end_by(Signal::SIGKILL).status.success());
        // The kernel closes the link's descriptor with the process, and detaches a moment later.
        wait_until("it is detached", || !server.has_xdp().unwrap());
        assert!(traffic::ping(&client.host, server.ipv4, 2, SOON)?.is_complete());

        let again = Firewall::on(&server, &args);
        assert_eq!(again.report().total(), 0);
        assert_eq!(traffic::ping(&client.host, server.ipv4, 1, A_WHILE)?.received, 0);
        assert_eq!(again.stop_after(1).0.dropped(), 1);
        assert!(!server.has_xdp()?);
    }
    Ok(())
}

fn sigterm_and_ctrl_c_detach() -> Result {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (client, server) = cable()?;
        let firewall = Firewall::on(&server, &["--block-ip", "192.0.2.1"]);
        assert!(server.has_xdp()?);
        let finished = firewall.end_by(signal);
        assert!(finished.status.success(), "{finished:#?}");
        assert!(!server.has_xdp()?);
        assert!(traffic::ping(&client.host, server.ipv4, 1, SOON)?.is_complete());
    }
    Ok(())
}
