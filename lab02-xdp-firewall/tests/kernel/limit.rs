//! The rate limit under floods of several CPUs (F2, P2): how much passes is the rate times the time, and the burst.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd as _,
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use lab02_xdp_firewall_common::firewall::Verdict;
use testbed::{
    End, LinkOptions, Result,
    bpf::{TestRun, test_run},
    harness::{needs_two_cpus, unsupported},
    packets, stay_on_cpu,
    traffic::Server,
};

use crate::{
    lab::{Firewall, MODES, cable_with, wait_until},
    options::policy,
    program::Program,
};

testbed::listed_tests![
    two_cpus_never_take_the_same_token,
    packets_of_one_source_on_two_cpus_are_cut_to_the_rate,
    bytes_of_one_source_on_two_cpus_are_cut_to_the_rate,
    a_flood_of_forged_sources_stops_nobody_who_sends_little,
];

const TWO_QUEUES: LinkOptions = LinkOptions {
    mtu: 1500,
    queues: 2,
    quiet: true,
    offloads: true,
};

/// How long a rate is measured.
const LONG: Duration = Duration::from_secs(5);

fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(2)
}

/// What was sent.
struct Flood {
    frames: u64,
    elapsed: Duration,
    /// The longest time in which a CPU sent nothing.
    longest_pause: Duration,
}

/// Sends frames from every CPU for so long, `per_second` from each.
fn flood(from: &End, duration: Duration, per_second: usize, frame: impl Fn(usize, usize) -> Vec<u8> + Sync) -> Flood {
    const PAUSE: Duration = Duration::from_millis(2);
    let start = Instant::now();
    let sent: Vec<(u64, Duration)> = thread::scope(|scope| {
        let send = |cpu: usize| {
            stay_on_cpu(cpu).unwrap();
            let injector = from.host.injector(&from.interface).unwrap();
            let (mut sent, mut last_sent, mut longest_pause) = (0, start, Duration::ZERO);
            while start.elapsed() < duration {
                let due = (start.elapsed().as_micros() as usize * per_second).div_ceil(1_000_000);
                let batch = (sent..due.max(sent)).map(|number| frame(cpu, number));
                sent += injector.send_all(batch).unwrap() as usize;
                longest_pause = longest_pause.max(last_sent.elapsed());
                last_sent = Instant::now();
                thread::sleep(PAUSE);
            }
            (sent as u64, longest_pause)
        };
        let senders: Vec<_> = (0..cpus()).map(|cpu| scope.spawn(move || send(cpu))).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    Flood {
        frames: sent.iter().map(|(frames, _)| frames).sum(),
        elapsed: start.elapsed(),
        longest_pause: sent.iter().map(|(_, pause)| *pause).max().unwrap_or_default(),
    }
}

/// Within 5 % of what the rate gives in this time, and of the burst. More must never pass; less may where the sender
/// was held up for so long that the bucket filled, as it happens to an emulated processor.
#[track_caller]
fn assert_cut_to(passed: u64, per_second: u64, burst: u64, flood: &Flood, what: &str) {
    let expected = per_second as f64 * flood.elapsed.as_secs_f64() + burst as f64;
    let ratio = passed as f64 / expected;
    let filled_in = Duration::from_secs_f64(burst as f64 / per_second as f64);
    let told = format!("{what}: {passed} passed of an expected {expected:.0}");
    assert!(ratio < 1.05, "{told}");
    if ratio <= 0.95 && flood.longest_pause > filled_in / 2 {
        let pause_ms = flood.longest_pause.as_millis();
        unsupported(format!(
            "this machine sends too unevenly, with a pause of {pause_ms} ms; {told}"
        ));
    }
    assert!(ratio > 0.95, "{told}");
}

fn two_cpus_never_take_the_same_token() {
    // Without a pause, and the most of what passes at the beginning, when both take at every packet: where they would
    // meet, were there no lock. The bucket is empty long before the end and never full again, so nothing is left over.
    // One emulated CPU alone, when the other is done, still sends more than the rate.
    const RUNS: u32 = 4_000_000;
    needs_two_cpus();
    let (rate, burst) = (50_000_u32, 2_000_000_u32);
    let program = Program::with(&policy(&format!("--rate-limit {rate} --burst {burst}")));
    let frame = packets::ethernet().ipv4("10.1.2.3", "192.0.2.1").udp(1, 9).build();
    let start = Instant::now();
    thread::scope(|scope| {
        for cpu in 0..cpus() {
            let (fd, frame) = (program.fd(), &frame);
            scope.spawn(move || {
                stay_on_cpu(cpu).unwrap();
                for _ in 0..100 {
                    test_run(fd.as_fd(), TestRun::repeated(frame, RUNS / 100)).unwrap();
                }
            });
        }
    });
    let expected = f64::from(rate) * start.elapsed().as_secs_f64() + f64::from(burst);
    let statistics = program.statistics();
    let [passed, dropped] = [Verdict::Pass, Verdict::Drop].map(|verdict| statistics.met(verdict).packets);
    if dropped == 0 {
        unsupported(format!("this machine is too slow to empty the bucket: {passed} passed"));
    }
    assert!(
        passed as f64 <= expected * 1.001,
        "{passed} passed of at most {expected:.0}"
    );
    assert!(passed as f64 >= expected * 0.97, "{passed} passed of {expected:.0}");
}

fn packets_of_one_source_on_two_cpus_are_cut_to_the_rate() -> Result {
    needs_two_cpus();
    // The burst is what comes in a tenth of a second: senders pause for shorter, so that the bucket is never full.
    let cases = [("native", 1000, 100), ("native", 20_000, 2000), ("generic", 5000, 500)];
    at_once(cases, |(mode, rate, burst)| {
        let (client, server) = cable_with(TWO_QUEUES)?;
        let (rate_text, burst_text) = (rate.to_string(), burst.to_string());
        let args = ["--xdp-mode", mode, "--rate-limit", &rate_text, "--burst", &burst_text];
        let firewall = Firewall::on(&server, &args);
        let packet = client.frame_to(&server).ipv4("10.1.2.3", server.ipv4);
        let frame = packet.udp(1, 9).payload([0; 18]).build();
        let flood = flood(&client, LONG, 15_000, |_, _| frame.clone());
        let (report, _) = firewall.stop_after(flood.frames);
        assert_eq!(report.total(), flood.frames);
        assert_eq!(report.of("drop", "rate-limit"), report.dropped());
        assert_cut_to(
            report.passed(),
            rate,
            burst,
            &flood,
            &format!("{rate} packets a second, {mode}"),
        );
        assert!(report.dropped() > flood.frames / 10, "{report:?}");
        Ok(())
    })
}

fn bytes_of_one_source_on_two_cpus_are_cut_to_the_rate() -> Result {
    needs_two_cpus();
    // 10 Mbit/s and 40 Mbit/s as bytes a second, of packets of 1000 bytes.
    at_once(
        [("10mbit", 1_250_000, 125_000), ("40mbit", 5_000_000, 500_000)],
        |(rate, per_second, burst)| {
            let (client, server) = cable_with(TWO_QUEUES)?;
            let burst_text = burst.to_string();
            let firewall = Firewall::on(&server, &["--rate-limit", rate, "--burst", &burst_text]);
            let packet = client.frame_to(&server).ipv6("2001:db8:99::1", server.ipv6);
            let frame = packet.udp(1, 9).payload([0; 1000 - 48]).build();
            let flood = flood(&client, LONG, 8_000, |_, _| frame.clone());
            let (report, _) = firewall.stop_after(flood.frames);
            assert_eq!(report.total(), flood.frames);
            // Counted with the Ethernet header, limited without it.
            let bytes = report.amount_of("pass", "default", "bytes") - 14 * report.passed();
            assert_cut_to(bytes, per_second, burst, &flood, rate);
            Ok(())
        },
    )
}

/// Tries all cases beside each other, as they mostly wait.
fn at_once<C: Send, const N: usize>(cases: [C; N], attempt: impl Fn(C) -> Result + Sync) -> Result {
    thread::scope(|scope| {
        let attempts = cases.map(|case| scope.spawn(|| attempt(case)));
        attempts
            .into_iter()
            .try_for_each(|attempt| attempt.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn a_flood_of_forged_sources_stops_nobody_who_sends_little() -> Result {
    for mode in MODES {
        let (client, server) = cable_with(TWO_QUEUES)?;
        // The well-behaved one sends 200 a second, a fifth of what it may.
        let firewall = Firewall::on(&server, &["--xdp-mode", mode, "--rate-limit", "1000", "--burst", "100"]);
        let echo = Server::udp(&server.host, 0)?;
        let duration = Duration::from_secs(2);
        let (forged, honest_sent) = thread::scope(|scope| {
            let honest_sender = scope.spawn(|| {
                let socket = client.host.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
                let start = Instant::now();
                let mut sent = 0_u64;
                while start.elapsed() < duration {
                    socket.send_to(b"hello", (server.ipv4, echo.port())).unwrap();
                    sent += 1;
                    thread::sleep(Duration::from_millis(5));
                }
                // Open until the last answer has come, which would be refused otherwise.
                wait_until("all that it sent has arrived", || echo.packets() == sent);
                sent
            });
            let forged = flood(&client, duration, 15_000, |cpu, number| {
                // Each comes once.
                let source = Ipv4Addr::from_bits(0x2000_0000 | (cpu as u32) << 24 | (number as u32).wrapping_mul(7919));
                client.frame_to(&server).ipv4(source, server.ipv4).udp(1, 9).build()
            });
            (forged.frames, honest_sender.join().unwrap())
        });
        let (report, _) = firewall.stop_after(forged + honest_sent);
        assert_eq!(report.total(), forged + honest_sent);
        // One packet each is within everybody's rate.
        assert_eq!(report.dropped(), 0, "{report:?}");
    }
    Ok(())
}
