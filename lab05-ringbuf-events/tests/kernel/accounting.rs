//! The books (P4): of every decision exactly one of emitted, suppressed and lost is counted, whatever the reader does; and
//! the verdict stands.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use aya::programs::Xdp;
use lab01_count_packets::load;
use lab02_xdp_firewall::policy::Policy;
use lab02_xdp_firewall_common::{bucket::Limit, firewall::Fragments};
use lab05_ringbuf_events::{
    reader::record_in,
    watch::{Sizes, Watch},
};
use lab05_ringbuf_events_common::decision::{Decision, Hook, Outcome, Settings};
use nix::sys::signal::Signal;
use testbed::{
    Cgroup, Result,
    bpf::{TestRun, test_run},
    harness::needs_two_cpus,
    packets, stay_on_cpu,
    traffic::Server,
};

use crate::{
    actor,
    lab::{Lab, PATIENCE, assert_balanced, cable, in_host},
};

testbed::listed_tests![
    the_books_balance_exactly_while_the_reader_stands_still_under_load,
    what_is_left_out_on_purpose_is_counted_as_that,
    the_options_that_leave_out_are_heard_and_what_they_leave_out_is_counted,
    a_full_ring_buffer_changes_no_verdict,
    the_limit_on_records_holds_for_all_cpus_together,
    a_command_that_is_stopped_under_load_loses_records_and_no_count,
    each_process_that_ends_is_told_or_counted_as_lost,
];

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// The smallest ring buffer that the command takes: some hundred records.
const SIZES: Sizes = Sizes {
    max_entries: 16,
    ring_bytes: 1 << 16,
    max_flows: 64,
};

const TELL_ALL: Settings = Settings {
    tell_packets: 1,
    ..Settings::DEFAULT
};

fn policy() -> Policy {
    Policy {
        block_ports: vec!["udp/9".parse().unwrap()],
        fragments: Fragments::Pass,
        drop_malformed: true,
        ..Policy::NO_RULES
    }
}

fn frame(port: u16) -> Vec<u8> {
    packets::ethernet()
        .ipv4("192.0.2.1", "192.0.2.2")
        .udp(1000, port)
        .payload([0; 18])
        .build()
}

fn firewall(watch: &mut Watch) -> OwnedFd {
    let program: &mut Xdp = load::program(watch.ebpf(), "firewall", "XDP").unwrap();
    program.fd().unwrap().as_fd().try_clone_to_owned().unwrap()
}

/// Runs `action` inside a runtime, which readers need.
fn in_runtime<T>(action: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(action())
}

fn the_books_balance_exactly_while_the_reader_stands_still_under_load() {
    const ROUNDS: u64 = 40;
    const RUNS: u32 = 500;
    needs_two_cpus();
    in_runtime(async || {
        let mut watch = Watch::load(SIZES, &policy(), TELL_ALL).unwrap();
        let program = firewall(&mut watch);
        let cpus = 2_u64;
        let is_over = Arc::new(AtomicBool::new(false));
        let producers: Vec<_> = (0..cpus)
            .map(|cpu| {
                let program = program.try_clone().unwrap();
                thread::spawn(move || {
                    stay_on_cpu(cpu as usize).unwrap();
                    for round in 0..ROUNDS {
                        let frame = frame(if round % 2 == 0 { 9 } else { 53 });
                        test_run(program.as_fd(), TestRun::repeated(&frame, RUNS)).unwrap();
                    }
                })
            })
            .collect();
        let waiter = {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                for producer in producers {
                    producer.join().unwrap();
                }
                is_over.store(true, Ordering::Release);
            })
        };
        // The ring buffer holds some 580 records: it is full long before the reader moves.
        while watch.books.balance().unwrap().decisions.lost == 0 {
            assert!(
                !is_over.load(Ordering::Acquire),
                "nothing was lost: {:?}",
                watch.books.balance()
            );
            thread::yield_now();
        }
        let (mut read, mut drops, mut last_ns) = (0_u64, 0_u64, 0_u64);
        let mut each = |bytes: &[u8]| {
            let record: Decision = record_in(bytes).unwrap();
            assert_eq!(record.hook, Hook::Xdp as u8);
            drops += u64::from(record.outcome == Outcome::Block as u8);
            last_ns = last_ns.max(record.time_ns);
            read += 1;
        };
        while !is_over.load(Ordering::Acquire) {
            watch.decisions.read_now(&mut each);
        }
        waiter.join().unwrap();
        watch.decisions.read_now(&mut each);
        let balance = watch.books.balance().unwrap();
        let line = balance.decisions;
        assert_eq!(line.happened, ROUNDS * u64::from(RUNS) * cpus);
        assert_eq!(line.emitted + line.suppressed + line.lost, line.happened, "{line:?}");
        assert_eq!(read, line.emitted);
        assert!(line.lost > 0 && line.suppressed == 0 && drops > 0, "{line:?}");
        for reason in &balance.by_reason {
            let line = reason.line;
            assert_eq!(line.emitted + line.suppressed + line.lost, line.happened, "{reason:?}");
        }
        assert!(last_ns > 0);
    });
}

fn what_is_left_out_on_purpose_is_counted_as_that() {
    const RUNS: u32 = 400;
    in_runtime(async || {
        // The settings, the port, and how many are told at the least and at the most.
        let cases = [
            (Settings::DEFAULT, 53, 0, 0),
            (Settings::DEFAULT, 9, 400, 400),
            (TELL_ALL, 53, 400, 400),
            // One in four of 400, by a generator of random numbers: far beyond six standard deviations on both sides.
            (Settings { one_in: 4, ..TELL_ALL }, 9, 40, 170),
            (
                Settings {
                    one_in: u32::MAX,
                    ..TELL_ALL
                },
                9,
                0,
                3,
            ),
            // Ten at once, and one an hour.
            (
                limited(Limit {
                    token_ns_scaled: 3_600_000_000_000 << 18,
                    burst_ns: 36_000_000_000_000,
                }),
                9,
                10,
                10,
            ),
        ];
        for (settings, port, least, most) in cases {
            let mut watch = Watch::load(SIZES, &policy(), settings).unwrap();
            let program = firewall(&mut watch);
            test_run(program.as_fd(), TestRun::repeated(&frame(port), RUNS)).unwrap();
            let line = watch.books.balance().unwrap().decisions;
            assert_eq!((line.happened, line.lost), (u64::from(RUNS), 0), "{settings:?}");
            assert_eq!(line.emitted + line.suppressed, line.happened, "{settings:?}");
            assert!((least..=most).contains(&line.emitted), "{settings:?}: {line:?}");
            assert_eq!(watch.decisions.read_now(|_| {}) as u64, line.emitted);
        }
    });
}

fn the_options_that_leave_out_are_heard_and_what_they_leave_out_is_counted() -> Result {
    const CALLS: usize = 100;
    let (client, server) = cable()?;
    let echo = Server::tcp(&server.host, 0)?;
    let script = format!("tcp:{}:{} ", server.ipv4, echo.port()).repeat(CALLS);
    // The options, and how many of the calls are told at the most.
    let cases: [(&[&str], usize); 3] = [
        (&[], CALLS),
        (&["--one-in", "4000000000"], 1),
        // One at once, and one a second from there on: fewer than a test waits for.
        (&["--events-per-second", "1"], 1 + PATIENCE.as_secs() as usize),
    ];
    for (options, most) in cases {
        let cgroup = Cgroup::new("left-out")?;
        let lab = Lab::on(&client, &cgroup, &[&["--json"], options].concat());
        let (pid, finished) = actor::run(&client, &cgroup, &script, &[]);
        assert_eq!(finished.stdout.matches("connected").count(), CALLS, "{finished:?}");
        lab.wait_for_exit(pid);
        let told = lab.stop();
        let balance = assert_balanced(&told);
        let calls = &balance["by_reason"].as_array().unwrap()[..];
        let calls = calls.iter().find(|line| line["hook"] == "connect4").unwrap();
        let emitted = told.decisions(pid).len();
        assert_eq!(calls["happened"], CALLS, "{options:?}: {balance}");
        assert_eq!(calls["emitted"], emitted, "{options:?}: {balance}");
        assert_eq!(calls["suppressed"], CALLS - emitted, "{options:?}: {balance}");
        let least = if options.is_empty() { CALLS } else { 0 };
        assert!((least..=most).contains(&emitted), "{options:?}: {balance}");
    }
    Ok(())
}

fn limited(limit: Limit) -> Settings {
    Settings {
        limit,
        is_limited: 1,
        ..TELL_ALL
    }
}

fn the_limit_on_records_holds_for_all_cpus_together() {
    needs_two_cpus();
    in_runtime(async || {
        let limit = Limit {
            token_ns_scaled: 3_600_000_000_000 << 18,
            burst_ns: 36_000_000_000_000,
        };
        let mut watch = Watch::load(SIZES, &policy(), limited(limit)).unwrap();
        let program = firewall(&mut watch);
        thread::scope(|scope| {
            for cpu in 0..2 {
                let program = &program;
                scope.spawn(move || {
                    stay_on_cpu(cpu).unwrap();
                    test_run(program.as_fd(), TestRun::repeated(&frame(9), 2000)).unwrap();
                    test_run(program.as_fd(), TestRun::repeated(&frame(53), 2000)).unwrap();
                });
            }
        });
        let balance = watch.books.balance().unwrap();
        // Ten for each reason: what is blocked by port does not use up what passes may tell.
        let emitted: Vec<u64> = balance.by_reason.iter().map(|reason| reason.line.emitted).collect();
        assert_eq!(emitted, [10, 10], "{balance:?}");
    });
}

fn a_full_ring_buffer_changes_no_verdict() {
    in_runtime(async || {
        let mut watch = Watch::load(SIZES, &policy(), TELL_ALL).unwrap();
        let program = firewall(&mut watch);
        let verdict = |port| test_run(program.as_fd(), TestRun::once(&frame(port))).unwrap().retval;
        assert_eq!((verdict(9), verdict(53)), (XDP_DROP, XDP_PASS));
        test_run(program.as_fd(), TestRun::repeated(&frame(53), 2000)).unwrap();
        assert!(watch.books.balance().unwrap().decisions.lost > 0);
        let lost_before = watch.books.balance().unwrap().decisions.lost;
        assert_eq!((verdict(9), verdict(53)), (XDP_DROP, XDP_PASS));
        assert_eq!(watch.books.balance().unwrap().decisions.lost, lost_before + 2);
    });
}

fn a_command_that_is_stopped_under_load_loses_records_and_no_count() -> Result {
    const FRAMES: usize = 3000;
    let (client, server) = cable()?;
    let args = [
        "--iface",
        &server.interface,
        "--no-cgroup",
        "--no-processes",
        "--block-port",
        "udp/9",
        "--ring-size",
        "64K",
        "--json",
    ];
    let lab = Lab::start(in_host(&server.host, &args));
    let injector = client.host.injector(&client.interface)?;
    let frame = client
        .frame_to(&server)
        .ipv4(client.ipv4, server.ipv4)
        .udp(1000, 9)
        .payload([0; 18])
        .build();
    injector.send(&frame)?;
    lab.wait_for(&["enforce_decision", "\"block\""]);
    lab.signal(Signal::SIGSTOP);
    injector.send_all(vec![&frame; FRAMES])?;
    lab.signal(Signal::SIGCONT);
    injector.send(&frame)?;
    // The last one comes when there is room again, or is lost as well: what is waited for is that most were told.
    let told = lab.stop();
    let balance = assert_balanced(&told);
    let decisions = &balance["decisions"];
    assert_eq!(decisions["happened"], FRAMES + 2, "{balance}");
    assert!(decisions["lost"].as_u64().unwrap() > 0, "{balance}");
    assert_eq!(
        decisions["emitted"],
        told.of_type("enforce_decision").len(),
        "{balance}"
    );
    Ok(())
}

fn each_process_that_ends_is_told_or_counted_as_lost() -> Result {
    const SIDE_BY_SIDE: usize = 8;
    const IN_TURN: usize = 20;
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("ends")?;
    let lab = Lab::on(&client, &cgroup, &["--json"]);
    let run = || {
        let mut child = cgroup.command(&client.host, "true").unwrap().spawn().unwrap();
        let pid = child.id();
        assert!(child.wait().unwrap().success());
        pid
    };
    let ended: Vec<u32> = thread::scope(|scope| {
        let sides: Vec<_> = (0..SIDE_BY_SIDE)
            .map(|_| scope.spawn(|| (0..IN_TURN).map(|_| run()).collect::<Vec<_>>()))
            .collect();
        sides.into_iter().flat_map(|side| side.join().unwrap()).collect()
    });
    let told = lab.stop();
    let lost = assert_balanced(&told)["processes"]["lost"].as_u64().unwrap();
    let exits = told.of_type("exit");
    let is_told = |pid: &&u32| exits.iter().any(|line| line["pid"] == **pid);
    let untold = ended.iter().filter(|pid| !is_told(pid)).count() as u64;
    assert!(untold <= lost, "{untold} of {} are not told, {lost} lost", ended.len());
    Ok(())
}
