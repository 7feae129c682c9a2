//! The rate limit under floods of several CPUs (F2, P2): how much passes is the rate times the time, and the burst.

use std::{
    cell::Cell,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd as _,
    panic::resume_unwind,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use lab02_xdp_firewall_common::firewall::Verdict;
use testbed::{
    End, LinkOptions, Result,
    bpf::{TestRun, test_run},
    harness::needs_two_cpus,
    packets, stay_on_cpu,
    traffic::Server,
};

use crate::{
    lab::{Firewall, MODES, PATIENCE, cable_with, wait_until},
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

/// How long a rate is measured, once the burst is used up.
const LONG: Duration = Duration::from_secs(5);

/// The burst in these measurements: what comes in so many seconds. It is used up first; from then on every token that
/// comes is waited for, and however unevenly a machine sends, none is lost unless it pauses for so long.
const BURST_S: u64 = 2;

fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(2)
}

/// What was sent.
struct Flood {
    frames: u64,
    /// Until the last one was sent.
    elapsed: Duration,
    /// The longest time in which a CPU sent nothing.
    longest_pause: Duration,
}

/// Sends frames from every CPU until told to end, `per_second` from each where the machine can.
fn flood(
    from: &End,
    per_second: u64,
    frame: impl Fn(usize, u64) -> Vec<u8> + Sync,
    is_enough: impl Fn(Duration) -> bool,
) -> Flood {
    const PAUSE: Duration = Duration::from_millis(2);
    const BATCH: u64 = 256;
    let (start, ended) = (Instant::now(), AtomicBool::new(false));
    let send = |cpu: usize| {
        stay_on_cpu(cpu).unwrap();
        let injector = from.host.injector(&from.interface).unwrap();
        let (mut sent, mut last_sent, mut longest_pause) = (0, start, Duration::ZERO);
        while !ended.load(Ordering::Relaxed) {
            let due = (start.elapsed().as_micros() as u64 * per_second).div_ceil(1_000_000);
            sent += injector
                .send_all((sent..due.min(sent + BATCH)).map(|number| frame(cpu, number)))
                .unwrap();
            longest_pause = longest_pause.max(last_sent.elapsed());
            last_sent = Instant::now();
            if sent >= due {
                thread::sleep(PAUSE);
            }
        }
        // Not the time that closing the socket takes, which is long on a busy machine.
        Flood {
            frames: sent,
            elapsed: last_sent - start,
            longest_pause,
        }
    };
    let sent: Vec<Flood> = thread::scope(|scope| {
        let senders: Vec<_> = (0..cpus()).map(|cpu| scope.spawn(move || send(cpu))).collect();
        while !is_enough(start.elapsed()) && !senders.iter().any(ScopedJoinHandle::is_finished) {
            thread::sleep(10 * PAUSE);
        }
        ended.store(true, Ordering::Relaxed);
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    Flood {
        frames: sent.iter().map(|sent| sent.frames).sum(),
        elapsed: sent.iter().map(|sent| sent.elapsed).max().unwrap_or_default(),
        longest_pause: sent.iter().map(|sent| sent.longest_pause).max().unwrap_or_default(),
    }
}

/// Sends twice as many frames as the rate lets pass from every CPU: until the burst is used up, for long enough after
/// that, and until no token is left again, however much slower the machine has sent meanwhile.
fn flood_beyond(firewall: &Firewall, from: &End, frames_per_second: u64, frame: &[u8]) -> Flood {
    let used_up_at: Cell<Option<Duration>> = Cell::new(None);
    let dropped_by_then: Cell<Option<u64>> = Cell::new(None);
    let is_enough = |elapsed: Duration| {
        let dropped = firewall.report().dropped();
        match (used_up_at.get(), dropped_by_then.get()) {
            (None, _) if dropped > 0 => used_up_at.set(Some(elapsed)),
            (Some(since), None) if elapsed > since + LONG => dropped_by_then.set(Some(dropped)),
            _ => {}
        }
        elapsed > testbed::patience(PATIENCE) || dropped_by_then.get().is_some_and(|before| dropped > before)
    };
    flood(from, 2 * frames_per_second, |_, _| frame.to_vec(), is_enough)
}

/// Beside the burst, within 5 % of what the rate gives in this time; it is not known better than by a sender's longest
/// pause when the first frame came, and when the last one did.
#[track_caller]
fn assert_cut_to(passed: u64, per_second: u64, flood: &Flood, what: &str) {
    let beside_burst = passed as f64 - (BURST_S * per_second) as f64;
    let at_most = (flood.elapsed + flood.longest_pause).as_secs_f64() * per_second as f64 * 1.05;
    let at_least = flood.elapsed.saturating_sub(2 * flood.longest_pause).as_secs_f64() * per_second as f64 * 0.95;
    assert!(
        (at_least..at_most).contains(&beside_burst),
        "{what}: beside the burst {beside_burst} passed of an expected {at_least:.0} to {at_most:.0}, with pauses of up to {} ms",
        flood.longest_pause.as_millis()
    );
}

fn two_cpus_never_take_the_same_token() {
    // Without a pause, and the most of what passes at the beginning, when both take at every packet: where they would
    // meet, were there no lock. The bucket is emptied long before the end and never full again, so nothing is left over.
    const RUNS: u32 = 40_000;
    needs_two_cpus();
    let (rate, burst) = (50_000_u32, 2_000_000_u32);
    let program = Program::with(&policy(&format!("--rate-limit {rate} --burst {burst}")));
    let frame = packets::ethernet().ipv4("10.1.2.3", "192.0.2.1").udp(1, 9).build();
    let fd = program.fd();
    let emptied = || program.statistics().met(Verdict::Drop).packets > u64::from(burst);
    let (start, ended) = (Instant::now(), AtomicBool::new(false));
    let take = |cpu: usize| {
        stay_on_cpu(cpu).unwrap();
        let mut last_begun = Duration::ZERO;
        while !ended.load(Ordering::Relaxed) {
            last_begun = start.elapsed();
            test_run(fd.as_fd(), TestRun::repeated(&frame, RUNS)).unwrap();
        }
        last_begun
    };
    let last_begun = thread::scope(|scope| {
        let takers: Vec<_> = (0..cpus()).map(|cpu| scope.spawn(move || take(cpu))).collect();
        while !emptied() && start.elapsed() < testbed::patience(PATIENCE) {
            thread::sleep(Duration::from_millis(10));
        }
        ended.store(true, Ordering::Relaxed);
        let begun = takers.into_iter().map(|taker| taker.join().unwrap());
        begun.max().unwrap_or_default()
    });
    let expected = |elapsed: Duration| f64::from(rate) * elapsed.as_secs_f64() + f64::from(burst);
    let (at_least, at_most) = (expected(last_begun), expected(start.elapsed()));
    let passed = program.statistics().met(Verdict::Pass).packets as f64;
    assert!(emptied(), "the bucket was not emptied: {passed} passed");
    assert!(passed <= at_most * 1.001, "{passed} passed of at most {at_most:.0}");
    assert!(passed >= at_least * 0.97, "{passed} passed of {at_least:.0}");
}

fn packets_of_one_source_on_two_cpus_are_cut_to_the_rate() -> Result {
    needs_two_cpus();
    at_once(
        [("native", 500), ("native", 2000), ("generic", 1000)],
        |(mode, rate)| {
            let (client, server) = cable_with(TWO_QUEUES)?;
            let (rate_text, burst_text) = (rate.to_string(), (BURST_S * rate).to_string());
            let args = ["--xdp-mode", mode, "--rate-limit", &rate_text, "--burst", &burst_text];
            let firewall = Firewall::on(&server, &args);
            let packet = client.frame_to(&server).ipv4("10.1.2.3", server.ipv4);
            let frame = packet.udp(1, 9).payload([0; 18]).build();
            let flood = flood_beyond(&firewall, &client, rate, &frame);
            let (report, _) = firewall.stop_after(flood.frames);
            assert_eq!(report.total(), flood.frames);
            assert_eq!(report.of("drop", "rate-limit"), report.dropped());
            let what = format!("{rate} packets a second, {mode}");
            assert_cut_to(report.passed(), rate, &flood, &what);
            Ok(())
        },
    )
}

fn bytes_of_one_source_on_two_cpus_are_cut_to_the_rate() -> Result {
    needs_two_cpus();
    // Bits as bytes a second, of packets of 1000 bytes.
    at_once([("4mbit", 500_000), ("20mbit", 2_500_000)], |(rate, per_second)| {
        let (client, server) = cable_with(TWO_QUEUES)?;
        let burst_text = (BURST_S * per_second).to_string();
        let firewall = Firewall::on(&server, &["--rate-limit", rate, "--burst", &burst_text]);
        let packet = client.frame_to(&server).ipv6("2001:db8:99::1", server.ipv6);
        let frame = packet.udp(1, 9).payload([0; 1000 - 48]).build();
        let flood = flood_beyond(&firewall, &client, per_second / 1000, &frame);
        let (report, _) = firewall.stop_after(flood.frames);
        assert_eq!(report.total(), flood.frames);
        // Counted with the Ethernet header, limited without it.
        let bytes = report.amount_of("pass", "default", "bytes") - 14 * report.passed();
        assert_cut_to(bytes, per_second, &flood, rate);
        Ok(())
    })
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
            let forge = |cpu, number| {
                // Each comes once.
                let source = Ipv4Addr::from_bits(0x2000_0000 | (cpu as u32) << 24 | (number as u32).wrapping_mul(7919));
                client.frame_to(&server).ipv4(source, server.ipv4).udp(1, 9).build()
            };
            let forged = flood(&client, 15_000, forge, |elapsed| elapsed >= duration);
            (forged.frames, honest_sender.join().unwrap())
        });
        let (report, _) = firewall.stop_after(forged + honest_sent);
        assert_eq!(report.total(), forged + honest_sent);
        // One packet each is within everybody's rate.
        assert_eq!(report.dropped(), 0, "{report:?}");
    }
    Ok(())
}
