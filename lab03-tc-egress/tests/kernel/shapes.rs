//! What exceeds a rate (F4, P2): dropped where packets cannot wait, and told when to leave where they can. Rates are so
//! low and bursts so large that what a slow machine's clock adds meanwhile changes no answer.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use lab02_xdp_firewall_common::firewall::Verdict;
use lab03_tc_egress::{
    attach::Direction::{Egress, Ingress},
    policy::Policy,
    tables::now_ns,
};
use lab03_tc_egress_common::decide::Reason;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use testbed::{
    End, Host,
    bpf::{TestRun, test_run},
    harness::unsupported,
    packets,
    traffic::{self, Server},
};

use crate::{
    flows::sk_buff,
    lab::{Lab, PATIENCE},
    program::Program,
};

testbed::listed_tests![
    what_exceeds_a_rate_is_dropped_and_counted,
    the_longest_prefix_has_the_rate_and_others_have_none,
    what_can_wait_is_sent_later_up_to_the_horizon,
    each_segment_of_a_super_packet_pays_for_its_headers,
    what_passes_is_within_a_twentieth_of_the_rate_from_1_mbit_to_1_gbit,
    fq_holds_packets_until_they_may_leave_and_none_is_lost,
    fq_holds_a_tcp_connection_to_the_rate_without_a_loss,
];

/// A packet, with IPv4 and UDP headers.
const IP_BYTES: u64 = 1000;
const BURST: u64 = 65_536;

fn shaped(shapes: &[&str]) -> Program {
    Program::with(&Policy {
        shapes: shapes.iter().map(|text| text.parse().unwrap()).collect(),
        bursts: vec![BURST.to_string().parse().unwrap()],
        ..Policy::default()
    })
}

fn to(address: &str) -> Vec<u8> {
    of_size(address, IP_BYTES)
}

fn of_size(address: &str, ip_bytes: u64) -> Vec<u8> {
    packets::ethernet()
        .ipv4("192.0.2.1", address)
        .udp(1, 53)
        .payload(vec![0; ip_bytes as usize - 28])
        .build()
}

/// Packets sent at once, sent later and dropped.
fn outcomes(program: &Program, shape: usize) -> [u64; 3] {
    let counters = program.counted().by_shape;
    [0, 1, 2].map(|outcome| counters[shape * 3 + outcome].packets)
}

/// Sends until the rate is exceeded; how many have passed.
fn passed_at_once(program: &Program, frame: &[u8], context: &[u8]) -> u64 {
    let mut passed = 0;
    while program.see_with(Egress, frame, context).verdict() == Verdict::Pass {
        passed += 1;
        assert!(passed < 10_000, "no rate holds");
    }
    passed
}

fn what_exceeds_a_rate_is_dropped_and_counted() {
    let program = shaped(&["8kbit"]);
    let frame = to("192.0.2.2");
    let passed = passed_at_once(&program, &frame, &sk_buff(frame.len() as u32, 1, 0));
    // A packet a second comes on top; a minute is more than this takes anywhere.
    assert!((BURST / IP_BYTES..=BURST / IP_BYTES + 60).contains(&passed), "{passed}");
    assert_eq!(outcomes(&program, 0), [passed, 0, 1]);
    assert_ne!(
        program.see(Ingress, &frame),
        Reason::RateExceeded,
        "what comes in has no rate"
    );
    let dropped = program.statistics().met(Egress, Verdict::Drop);
    assert_eq!(dropped.packets, 1);
}

fn the_longest_prefix_has_the_rate_and_others_have_none() {
    let program = shaped(&["198.51.100.0/24=800mbit", "198.51.100.7=8kbit"]);
    let context = sk_buff(to("198.51.100.7").len() as u32, 1, 0);
    let passed = passed_at_once(&program, &to("198.51.100.7"), &context);
    assert!(passed >= BURST / IP_BYTES);
    assert_eq!(outcomes(&program, 0), [passed, 0, 1], "the longest comes first");
    assert_eq!(program.see_with(Egress, &to("198.51.100.8"), &context), Reason::New);
    assert_eq!(outcomes(&program, 1), [1, 0, 0]);
    for _ in 0..2 * BURST / IP_BYTES {
        let reason = program.see_with(Egress, &to("203.0.113.1"), &context);
        assert_eq!(reason.verdict(), Verdict::Pass);
    }
    assert_eq!(outcomes(&program, 1), [1, 0, 0]);
}

fn what_can_wait_is_sent_later_up_to_the_horizon() {
    // 10 packets a second: about 20 of them lie ahead of the horizon of two seconds.
    let mut program = shaped(&["80kbit"]);
    program.tables.set_can_wait(true).unwrap();
    let frame = to("192.0.2.2");
    let passed = passed_at_once(&program, &frame, &sk_buff(frame.len() as u32, 1, 0));
    let [at_once, later, dropped] = outcomes(&program, 0);
    assert_eq!((at_once + later, dropped), (passed, 1));
    assert!(at_once >= BURST / IP_BYTES, "{at_once}");
    assert!(later >= 19, "{later} of {passed}");
}

fn each_segment_of_a_super_packet_pays_for_its_headers() {
    let program = shaped(&["8kbit"]);
    let frame = packets::ethernet()
        .ipv4("192.0.2.1", "192.0.2.2")
        .tcp(1, 80)
        .ack()
        .payload([0; 1400])
        .build();
    // On the wire: ten packets of 1000 bytes and their Ethernet headers.
    let context = sk_buff(10 * (14 + IP_BYTES as u32), 10, IP_BYTES as u32 - 40);
    let passed = passed_at_once(&program, &frame, &context);
    assert!(
        (BURST / (10 * IP_BYTES)..=BURST / (10 * IP_BYTES) + 6).contains(&passed),
        "{passed}"
    );
}

fn what_passes_is_within_a_twentieth_of_the_rate_from_1_mbit_to_1_gbit() {
    // At high rates super-packets, or a slow machine would not exceed the rate.
    let rates = [
        ("198.51.100.1", "1mbit", "10mbit", 125_000, 100, 1),
        ("198.51.100.2", "10mbit", "100mbit", 1_250_000, IP_BYTES, 1),
        ("198.51.100.3", "100mbit", "1gbit", 12_500_000, 10 * IP_BYTES, 10),
        ("198.51.100.4", "1gbit", "10gbit", 125_000_000, 60 * IP_BYTES, 60),
    ];
    // Ten seconds' worth, for which no machine sleeps, or what came meanwhile would overflow. It is used up first.
    let program = Program::with(&Policy {
        shapes: rates
            .map(|(address, rate, ..)| format!("{address}={rate}").parse().unwrap())
            .into(),
        bursts: rates
            .map(|(address, _, burst, ..)| format!("{address}={burst}").parse().unwrap())
            .into(),
        ..Policy::default()
    });
    // As they were given: prefixes of one length keep their order.
    for (shape, (address, rate, _, bytes_per_second, ip_bytes, segments)) in rates.into_iter().enumerate() {
        let frame = of_size(address, ip_bytes / segments);
        let wire_len = (ip_bytes + segments * 14) as u32;
        let context = sk_buff(wire_len, segments as u32, (ip_bytes / segments) as u32 - 28);
        let send = || {
            let run = TestRun {
                context: &context,
                ..TestRun::repeated(&frame, 100)
            };
            test_run(program.fd(Egress).as_fd(), run).unwrap();
            outcomes(&program, shape)
        };
        // The bucket was empty at some moment between two times, and so many packets had passed by the later one.
        let until_dropped = || {
            let dropped = outcomes(&program, shape)[2];
            loop {
                let earliest_ns = now_ns();
                let [passed, _, dropped_now] = send();
                if dropped_now > dropped {
                    return (earliest_ns, now_ns(), passed);
                }
            }
        };
        let (start_earliest_ns, start_latest_ns, before) = until_dropped();
        while now_ns() - start_latest_ns < 500_000_000 {
            send();
        }
        let (end_earliest_ns, end_latest_ns, after) = until_dropped();
        let passed = ((after - before) * ip_bytes) as f64;
        let due = |from_ns: u64, to_ns: u64| f64::from(bytes_per_second) * (to_ns - from_ns) as f64 / 1e9;
        let least = due(start_latest_ns, end_earliest_ns);
        let most = due(start_earliest_ns, end_latest_ns);
        assert!(
            (0.95 * least..1.05 * most).contains(&passed),
            "{rate}: {passed} bytes passed of {least} to {most}"
        );
    }
}

/// A cable whose left end is queued by `fq`.
fn cable_with_fq() -> testbed::Result<(End, End)> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    if let Err(error) = link.left.queue_by("fq") {
        // ENOENT: there is no such discipline.
        assert!(error.to_string().contains("No such file or directory"), "{error}");
        unsupported("this kernel has no fq queueing discipline (CONFIG_NET_SCH_FQ)");
    }
    Ok((link.left, link.right))
}

/// How long it takes at least until the last of so many bytes may leave, at 1 mbit.
fn last_leaves_after(ip_bytes: u64) -> Duration {
    Duration::from_micros((ip_bytes - BURST) * 8)
}

fn fq_holds_packets_until_they_may_leave_and_none_is_lost() -> testbed::Result {
    const PACKETS: u64 = 100;
    let (client, server) = cable_with_fq()?;
    let lab = Lab::on(&client, &["--shape", "1mbit", "--burst", "65536", "--pacing", "wait"]);
    let receiver = server.host.run(|| UdpSocket::bind((server.ipv4, 0))).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    // By default there is room for 92 of them, which is too little if this thread is kept from reading meanwhile.
    setsockopt(&receiver, RcvBufForce, &(1 << 20)).unwrap();
    let target = receiver.local_addr().unwrap();
    let start = Instant::now();
    assert_eq!(
        traffic::udp_send(&client.host, target, PACKETS, &[0; IP_BYTES as usize - 28])?,
        PACKETS
    );
    for number in 0..PACKETS {
        receiver
            .recv(&mut [0; IP_BYTES as usize])
            .unwrap_or_else(|error| panic!("after {number} packets: {error}"));
    }
    // Whatever the machine does meanwhile makes it later, never sooner.
    assert!(
        start.elapsed() >= last_leaves_after(PACKETS * IP_BYTES),
        "{:?}",
        start.elapsed()
    );
    let report = lab.wait_for("all are counted", |report| shape(report, "sent") == PACKETS);
    assert_eq!(shape(&report, "dropped"), 0);
    assert!(shape(&report, "delayed") > 0, "{report:?}");
    Ok(())
}

fn fq_holds_a_tcp_connection_to_the_rate_without_a_loss() -> testbed::Result {
    const BYTES: u64 = 200_000;
    let (client, server) = cable_with_fq()?;
    let lab = Lab::on(&client, &["--shape", "1mbit", "--burst", "65536", "--pacing", "wait"]);
    let echo = Server::tcp(&server.host, 0)?;
    let target = SocketAddr::from((server.ipv4, echo.port()));
    let start = Instant::now();
    let exchange = traffic::tcp_exchange(&client.host, target, BYTES, PATIENCE)?;
    assert!(exchange.is_complete(), "{exchange:?}");
    assert!(start.elapsed() >= last_leaves_after(BYTES), "{:?}", start.elapsed());
    let report = lab.wait_for("it is counted", |report| shape(report, "delayed") > 0);
    assert_eq!(shape(&report, "dropped"), 0);
    Ok(())
}

/// Packets of the only rate with an outcome.
fn shape(report: &crate::lab::Report, outcome: &str) -> u64 {
    report.0["shapes"][0][outcome]["packets"]
        .as_u64()
        .unwrap_or_else(|| panic!("{report:?}"))
}
