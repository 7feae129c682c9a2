//! A new policy takes effect between two packets (P7): decisions without a pause, while policies are exchanged.

use std::{
    net::Ipv4Addr,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lab02_xdp_firewall_common::{firewall::Reason, prefix_set::build::Prefix};
use testbed::{
    bpf::{TestRun, test_run},
    harness::needs_two_cpus,
    packets,
};

use crate::{options::policy, program::Program};

testbed::listed_tests![no_decision_is_made_by_half_of_a_policy,];

/// The /31 of every `step`th pair of addresses: two of these lie quite differently in the tables.
fn every(step: u32, count: u32) -> Vec<Prefix> {
    let address = |index: u32| Ipv4Addr::from_bits(0x0a00_0000 + index * step * 2);
    (0..count)
        .filter_map(|index| Prefix::new(address(index).into(), 31))
        .collect()
}

fn no_decision_is_made_by_half_of_a_policy() {
    needs_two_cpus();
    // In both: 10.0.65.160 (far inside, as every third and every fourth pair) and port 53; in neither: the pair behind it
    // and port 54.
    let (mut one, mut other) = (policy("--block-port 50-53"), policy("--block-port 53 --block-port 99"));
    (one.block, other.block) = (every(3, 3000), every(4, 2200));
    let frame = |source: &str, port| packets::ethernet().ipv4(source, "192.0.2.1").udp(1, port).build();
    let frames = [
        (frame("10.0.65.160", 54), Reason::Address),
        (frame("10.0.65.162", 53), Reason::Port),
        (frame("10.0.65.162", 54), Reason::PassedByDefault),
    ];
    let mut program = Program::with(&one);
    let (fd, stop) = (program.fd(), AtomicBool::new(false));
    let before = program.statistics();
    let runs = thread::scope(|scope| {
        let deciding = scope.spawn(|| {
            let mut runs = 0;
            while !stop.load(Ordering::Relaxed) {
                for (frame, _) in &frames {
                    test_run(fd.as_fd(), TestRun::repeated(frame, RUNS)).unwrap();
                }
                runs += u64::from(RUNS);
            }
            runs
        });
        for policy in [&other, &one].into_iter().cycle().take(200) {
            program.apply(policy);
        }
        stop.store(true, Ordering::Relaxed);
        deciding.join().unwrap()
    });
    let after = program.statistics();
    assert!(runs > 500_000, "{runs} runs tell little");
    for reason in Reason::ALL {
        let decided = after.of(reason).packets - before.of(reason).packets;
        let is_expected = frames.iter().any(|(_, expected)| *expected == reason);
        assert_eq!(decided, if is_expected { runs } else { 0 }, "{reason:?}");
    }
}

/// Decisions in a row: beginning takes the kernel as long as some ten thousand of them (`bpf_prog_change_xdp`).
const RUNS: u32 = 100_000;
