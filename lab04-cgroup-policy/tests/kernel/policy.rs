//! Policies in the kernel: what stands in the maps, how they are replaced, and what they take (Z3, Z12, A3).

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use aya::maps::MapData;
use enforcer_policy::{
    Policy,
    model::{Action, Address, Mode, Order, Prefix, Range, Rule},
};
use lab04_cgroup_policy::{
    OBJECT,
    attach::Hook,
    compile::compile,
    enforcement::Loaded,
    tables::{Entries, map_sizes},
};
use lab04_cgroup_policy_common::{
    classifier::{BLOCKS, OBSERVES},
    key::KeyV4,
};
use testbed::{
    bpf::{TestRun, test_run},
    harness::needs_two_cpus,
    packets,
};

use crate::program::{Program, policy};

testbed::listed_tests![
    entries_stand_in_the_maps_as_the_rules_have_them,
    a_new_policy_takes_effect_whole_and_rules_keep_their_counters,
    no_packet_is_decided_by_half_of_a_policy,
    ten_thousand_entries_are_in_force_and_take_less_than_ten_megabytes,
    every_combination_of_wildcards_loses_to_a_more_specific_one,
    a_rule_may_observe_while_the_policy_blocks,
];

fn entries_stand_in_the_maps_as_the_rules_have_them() {
    let program = Program::with(
        "{ version: 1, name: test, match: specific, rules: [
           { name: dns, direction: egress, destination: 192.0.2.53, destination_ports: 53, protocol: udp, action: allow },
           { name: net, direction: egress, destination: 192.0.2.0/24, mode: observe, action: block } ] }",
    );
    let Entries { v4, v6 } = program.loaded.tables.entries().unwrap();
    assert!(v6.is_empty());
    let mut found: Vec<_> = v4
        .into_iter()
        .map(|(key, entry)| {
            (
                entry.rank,
                program.name(entry.rule),
                entry.flags,
                KeyV4 {
                    tuple: 0,
                    slot: 0,
                    ..key
                },
            )
        })
        .collect();
    found.sort_unstable();
    let expected = [
        (
            0,
            "dns".to_owned(),
            0,
            KeyV4 {
                destination: [192, 0, 2, 53],
                destination_port: 53,
                protocol: 17,
                ..KeyV4::default()
            },
        ),
        (
            1,
            "net".to_owned(),
            BLOCKS | OBSERVES,
            KeyV4 {
                destination: [192, 0, 2, 0],
                ..KeyV4::default()
            },
        ),
    ];
    assert_eq!(found, expected);
}

fn to(name: &str, destination: &str, action: &str) -> String {
    format!("{{ name: {name}, destination: {destination}, action: {action} }}")
}

fn a_new_policy_takes_effect_whole_and_rules_keep_their_counters() {
    let with = |rules: &[String]| {
        policy(&format!(
            "{{ version: 1, name: test, mode: block, defaults: {{ egress: deny }}, rules: [ {} ] }}",
            rules.join(", ")
        ))
    };
    let frame = |destination: &str| packets::ethernet().ipv4("192.0.2.1", destination).udp(1, 2).build();
    let mut program = Program::load();
    program.apply(&with(&[to("a", "192.0.2.10", "allow"), to("b", "192.0.2.11", "block")]));
    for (destination, passes) in [("192.0.2.10", true), ("192.0.2.11", false), ("192.0.2.12", false)] {
        assert_eq!(
            program.decide(Hook::Egress, &frame(destination)).passed,
            passes,
            "{destination}"
        );
    }
    let packets_of = |program: &Program, name: &str| {
        let number = program
            .loaded
            .tables
            .numbers()
            .find(|(known, _)| *known == name)
            .unwrap()
            .1;
        program.counted()[&number][0].packets
    };
    assert_eq!(["a", "b", "default"].map(|name| packets_of(&program, name)), [1, 1, 1]);

    // One goes, one stays under its name and means something else, one is new.
    program.apply(&with(&[to("c", "192.0.2.12", "allow"), to("a", "192.0.2.11", "allow")]));
    assert_eq!(["a", "c", "default"].map(|name| packets_of(&program, name)), [1, 0, 1]);
    for (destination, passes) in [("192.0.2.10", false), ("192.0.2.11", true), ("192.0.2.12", true)] {
        assert_eq!(
            program.decide(Hook::Egress, &frame(destination)).passed,
            passes,
            "{destination}"
        );
    }
    assert_eq!(["a", "c", "default"].map(|name| packets_of(&program, name)), [2, 1, 2]);
    let Entries { v4, .. } = program.loaded.tables.entries().unwrap();
    assert_eq!(v4.len(), 2, "the old entries are gone: {v4:?}");
}

fn no_packet_is_decided_by_half_of_a_policy() {
    needs_two_cpus();
    // Each allows the packet by another rule; between them nothing would.
    let one = "{ version: 1, name: one, mode: block, defaults: { egress: deny }, match: specific, rules: [
                 { name: port, destination_ports: 53, action: allow },
                 { name: not-the-net, destination: 192.0.2.0/24, protocol: tcp, action: block } ] }";
    let other = "{ version: 1, name: other, mode: block, defaults: { egress: deny }, match: specific, rules: [
                 { name: net, destination: 192.0.2.0/24, source: 192.0.2.1, action: allow },
                 { name: not-the-port, destination_ports: 53, protocol: tcp, action: block } ] }";
    let frame = packets::ethernet().ipv4("192.0.2.1", "192.0.2.2").udp(1, 53).build();
    let (one, other) = (policy(one), policy(other));
    let mut program = Program::load();
    program.apply(&one);
    let (fd, stop) = (program.fd(Hook::Egress), AtomicBool::new(false));
    let runs = thread::scope(|scope| {
        let deciding = scope.spawn(|| {
            let mut runs = 0;
            while !stop.load(Ordering::Relaxed) {
                let outcome = test_run(fd.as_fd(), TestRun::repeated(&frame, 20_000)).unwrap();
                assert_eq!(outcome.retval & 1, 1);
                runs += 20_000;
            }
            runs
        });
        for policy in [&other, &one].into_iter().cycle().take(100) {
            program.apply(policy);
        }
        stop.store(true, Ordering::Relaxed);
        deciding.join().unwrap()
    });
    assert!(runs >= 100_000, "{runs} runs tell little");
    // In force at the end is `one`, and the default has never decided.
    let default = program
        .loaded
        .tables
        .numbers()
        .find(|(name, _)| *name == "default")
        .unwrap()
        .1;
    assert_eq!(program.counted()[&default][0].packets, 0);
}

fn ten_thousand_entries_are_in_force_and_take_less_than_ten_megabytes() {
    let address = |number: u32| Ipv4Addr::from(0x0a00_0000 + number * 7);
    let rules = (0..10_000).map(|number| Rule {
        destination: vec![Address::Prefix(Prefix::single(address(number).into()))],
        destination_ports: vec![Range::single(443)],
        ..Rule::new(&format!("r{number}"), Action::Block)
    });
    let policy = Policy {
        mode: Mode::Block,
        order: Order::Specific,
        rules: rules.collect(),
        ..Policy::allow_all("large")
    };
    let bpffs = crate::bpffs::Bpffs::mount();
    let pins = bpffs.path().join("pins");
    let mut loaded = Loaded::load(OBJECT, 10_000, Some(&pins)).unwrap();
    let compiled = compile(&policy, 10_000).unwrap();
    loaded.tables.apply(&compiled).unwrap();
    loaded.tables.set_blocking(true).unwrap();
    // A second time, while the first is in force: both fit.
    loaded.tables.apply(&compiled).unwrap();
    let program = Program { loaded };
    for (number, port, passes) in [
        (0, 443, false),
        (9_999, 443, false),
        (5_000, 443, false),
        (5_000, 80, true),
    ] {
        let frame = packets::ethernet()
            .ipv4("192.0.2.1", address(number))
            .tcp(1, port)
            .syn()
            .build();
        let outcome = test_run(program.fd(Hook::Egress).as_fd(), TestRun::once(&frame)).unwrap();
        assert_eq!(outcome.retval & 1 == 1, passes, "{number}, port {port}");
    }
    let mut total = 0;
    for pin in fs::read_dir(&pins).unwrap() {
        let path = pin.unwrap().path();
        // Programs are pinned there, too.
        let Ok(map) = MapData::from_pin(&path) else { continue };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).unwrap();
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
        total += bytes.trim().parse::<u64>().unwrap();
    }
    assert!(total > 1_000_000, "{total} bytes: the maps were not found");
    assert!(
        total <= 10 * 1024 * 1024,
        "{total} bytes of maps for {:?}",
        map_sizes(10_000)
    );
}

/// Of the 32 combinations of fixed fields (P1), each is tried against every one that fixes a field more.
fn every_combination_of_wildcards_loses_to_a_more_specific_one() {
    let rule = |kind: usize, action| {
        let mut rule = Rule::new(&format!("kind-{kind}"), action);
        let prefix = |text: &str| vec![Address::Prefix(Prefix::single(text.parse().unwrap()))];
        if kind & 1 != 0 {
            rule.source = prefix("192.0.2.1");
        }
        if kind & 2 != 0 {
            rule.destination = prefix("192.0.2.2");
        }
        if kind & 4 != 0 {
            rule.source_ports = vec![Range::single(1000)];
        }
        if kind & 8 != 0 {
            rule.destination_ports = vec![Range::single(2000)];
        }
        if kind & 16 != 0 {
            rule.protocol = Some(enforcer_policy::model::Protocol::UDP);
        }
        rule
    };
    let frame = packets::ethernet()
        .ipv4("192.0.2.1", "192.0.2.2")
        .udp(1000, 2000)
        .build();
    let mut program = Program::load();
    // All at once: the one that fixes everything wins.
    let all = Policy {
        order: Order::Specific,
        rules: (0..32).map(|kind| rule(kind, Action::Allow)).collect(),
        ..Policy::allow_all("all")
    };
    program.apply(&all);
    let decided = program.decide(Hook::Egress, &frame);
    assert_eq!(program.name(decided.rule), "kind-31");
    // And without those that fix more, each in turn wins over all that fix less.
    for kind in 0..32_usize {
        let weaker = (0..32_usize).filter(|other| other.count_ones() < kind.count_ones());
        let policy = Policy {
            rules: weaker.chain([kind]).map(|kind| rule(kind, Action::Block)).collect(),
            ..all.clone()
        };
        program.apply(&policy);
        let decided = program.decide(Hook::Egress, &frame);
        assert_eq!(program.name(decided.rule), format!("kind-{kind}"));
    }
}

fn a_rule_may_observe_while_the_policy_blocks() {
    let mut program = Program::with(
        "{ version: 1, name: test, mode: block, rules: [
           { name: strict, destination: 192.0.2.1, action: block },
           { name: trial, destination: 192.0.2.2, mode: observe, action: block } ] }",
    );
    let frame = |destination: &str| packets::ethernet().ipv4("192.0.2.9", destination).udp(1, 2).build();
    let outcome = |program: &Program, destination: &str| {
        let decided = program.decide(Hook::Egress, &frame(destination));
        (decided.passed, decided.would_drop)
    };
    assert_eq!(outcome(&program, "192.0.2.1"), (false, false));
    assert_eq!(outcome(&program, "192.0.2.2"), (true, true));
    // Switched at once, both ways.
    program.loaded.tables.set_blocking(false).unwrap();
    assert_eq!(outcome(&program, "192.0.2.1"), (true, true));
    program.loaded.tables.set_blocking(true).unwrap();
    assert_eq!(outcome(&program, "192.0.2.1"), (false, false));
}
