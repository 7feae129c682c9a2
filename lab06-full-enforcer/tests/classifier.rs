//! What the programs decide, by the tables and on the host, against the reference of policies (N2, A3, Z2, P1, P6).

mod calls;
#[path = "../../lab02-xdp-firewall/common/tests/oracle/mod.rs"]
#[expect(dead_code, reason = "it is shared with tests of lab02's parser")]
mod oracle;
#[path = "../../lab02-xdp-firewall/common/tests/random/mod.rs"]
#[expect(
    dead_code,
    reason = "it is shared with tests of lab02, which have rules of their own"
)]
mod random;
mod reference;
mod shapes;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    net::Ipv4Addr,
    panic,
    time::Instant,
};

use enforcer_policy::{Identity, Policy, model};
use lab06_full_enforcer::{
    api::ChangeKind,
    compile::{Capacities, Compiled, Divisions, compile, compile_again},
    names::{ImaginedSocket, Names},
    sets::{self, Changes},
};
use lab06_full_enforcer_common::{
    classify::{Classifier, counting_matches, steps},
    counters::Outcome,
    decision::{FromEthernet, FromIp, Inspection, Place},
    flow::NoFlows,
    key::{Hook, LOOPBACK, UnknownSocket},
    table::{MAX_LISTS, MAX_PARTITIONS},
};
use random::Dice;
use shapes::Shape;
use testbed::harness::is_long;

/// What is compared: the name that it is counted under, what becomes of it, and the rules that only count it.
type Decided = (String, Outcome, Vec<String>);

/// The circumstances of a packet: its hook, its interface and its socket.
#[derive(Clone, Copy, Debug)]
struct Case {
    hook: Hook,
    interface: &'static str,
    cgroup: &'static str,
    uid: u32,
    gid: Option<u32>,
}

const TC: Case = Case {
    hook: Hook::TcIngress,
    interface: "eth0",
    cgroup: "a",
    uid: 0,
    gid: None,
};

fn by_tables(compiled: &Compiled, inspection: &mut Inspection, frame: &[u8], case: Case) -> Decided {
    let classifier = Classifier {
        config: &compiled.config,
        tables: compiled,
    };
    let place = Place {
        hook: case.hook,
        interface: match case.interface {
            "lo" => LOOPBACK,
            name => compiled.places.interface(name),
        },
        mode: compiled.mode,
    };
    let socket = ImaginedSocket {
        names: &compiled.places,
        cgroup: case.cgroup,
        uid: case.uid,
        gid: case.gid,
    };
    let ether_type = u16::from_be_bytes([frame[12], frame[13]]);
    match case.hook {
        Hook::TcIngress | Hook::TcEgress | Hook::XdpIngress => {
            inspection.decide(
                || FromEthernet(frame),
                UnknownSocket,
                || 0,
                &place,
                &classifier,
                &NoFlows,
            );
        }
        Hook::CgroupIngress => {
            let packet = || FromIp(&frame[14..], ether_type);
            if !inspection.is_blocked_at_socket(packet, socket, &place, &classifier, &NoFlows) {
                return ("none".into(), Outcome::Passed, Vec::new());
            }
        }
        Hook::CgroupEgress => inspection.decide(
            || FromIp(&frame[14..], ether_type),
            socket,
            || 0,
            &place,
            &classifier,
            &NoFlows,
        ),
        hook => panic!("{hook:?} sees no packets"),
    }
    if inspection.is_limited() {
        inspection.charge(frame.len() as u64, classifier);
    }
    let name = match inspection.rule() {
        Some(rule) => compiled.names[rule.id as usize].clone(),
        None => inspection.reason().name().to_owned(),
    };
    if !case.hook.decides() {
        return (name, inspection.outcome(), Vec::new());
    }
    let mut logged = BTreeSet::new();
    counting_matches(compiled, inspection.asked(), inspection.number(), |rule| {
        assert!(
            logged.insert(rule.id),
            "{} counts twice",
            compiled.names[rule.id as usize]
        );
    });
    let logged = logged.into_iter().map(|number| compiled.names[number as usize].clone());
    (name, inspection.outcome(), logged.collect())
}

fn by_reference(policy: &Policy, frame: &[u8], case: Case) -> Decided {
    let packet = reference::packet(frame, case.hook, case.interface);
    let identity = Identity {
        cgroup: Some(case.cgroup.trim_start_matches('/').to_owned()),
        uid: Some(case.uid),
        gid: case.gid,
    };
    let Some(decision) = reference::decide(policy, &packet, case.hook, &identity) else {
        return ("none".into(), Outcome::Passed, Vec::new());
    };
    let outcome = match decision.outcome(true) {
        enforcer_policy::Outcome::Pass => Outcome::Passed,
        enforcer_policy::Outcome::ObserveDrop => Outcome::Observed,
        enforcer_policy::Outcome::Drop => Outcome::Dropped,
    };
    let logged = decision.logged_by.iter().map(|index| policy.rules[*index].name.clone());
    (decision.rule_name(policy).to_owned(), outcome, logged.collect())
}

/// How many decisions are compared: ten million with `--long`.
fn decisions() -> usize {
    if is_long() { 10_000_000 } else { 200_000 }
}

/// How many of them under each random policy.
const DECISIONS_EACH: usize = 400;

/// The seeds of policies about which tables and reference once disagreed, one a line: they are tried first, for ever.
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seeds.txt");

#[test]
fn two_hundred_thousand_decisions_are_those_of_the_reference() {
    let kept = fs::read_to_string(SEEDS).unwrap();
    let kept = kept.lines().filter(|line| !line.starts_with('#'));
    let kept = kept.map(|line| line.parse().unwrap());
    let mut seen: Seen = BTreeMap::new();
    for seed in kept.chain(0..(decisions() / DECISIONS_EACH) as u64) {
        let compared = panic::catch_unwind(|| compare_decisions(seed));
        let Ok(of_seed) = compared else {
            let mut kept = fs::OpenOptions::new().append(true).open(SEEDS).unwrap();
            writeln!(kept, "{seed}").unwrap();
            panic!("seed {seed} fails, as said above; it is kept in {SEEDS}");
        };
        for (what, count) in of_seed {
            *seen.entry(what).or_default() += count;
        }
    }
    for reason in ["rule", "default", "malformed", "at a socket"] {
        for outcome in Outcome::ALL {
            let count = seen.get(&(reason, outcome)).copied().unwrap_or(0);
            assert!(count >= 100, "{reason} and {outcome:?} are too rare: {seen:?}");
        }
    }
    assert!(seen[&("essential", Outcome::Passed)] >= 1000, "{seen:?}");
}

/// Decisions by reason and outcome.
type Seen = BTreeMap<(&'static str, Outcome), u32>;

/// Compares the decisions about random frames by one random policy.
fn compare_decisions(seed: u64) -> Seen {
    let mut dice = Dice::new(seed);
    let mut inspection = Inspection::EMPTY;
    let mut seen = Seen::new();
    let mut policy = reference::policy(&mut dice);
    reference::ask_for_sockets(&mut policy, &mut dice, true);
    let compiled = compile(&policy).unwrap();
    // Each is decided about at four hooks, and most at a socket, too.
    for _ in 0..DECISIONS_EACH / 4 {
        let frame = reference::frame(&mut dice);
        for hook in Hook::ALL
            .into_iter()
            .filter(|hook| !hook.is_of_calls() && reference::is_asked(*hook, &frame))
        {
            let interfaces = if dice.percent(10) {
                reference::INTERFACES
            } else {
                ["eth0", "eth1", "eth2"]
            };
            let case = Case {
                hook,
                interface: dice.one_of(&interfaces),
                cgroup: dice.one_of(&["/", "a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/e", "a-b/c", "e"]),
                uid: dice.one_of(&reference::UIDS),
                gid: (dice.percent(80)).then(|| dice.one_of(&reference::UIDS)),
            };
            let decided = by_tables(&compiled, &mut inspection, &frame, case);
            let expected = by_reference(&policy, &frame, case);
            assert_eq!(decided, expected, "{case:?} {frame:02x?}\n{policy:#?}");
            let reason = if hook.decides() {
                inspection.reason().name()
            } else {
                "at a socket"
            };
            *seen.entry((reason, decided.1)).or_default() += 1;
        }
    }
    seen
}

/// As many rules as a host may have, of which each asks for something beside addresses, ports and protocol, and all of them
/// together for all that there is.
#[test]
fn ten_thousand_rules_with_every_key_decide_as_by_the_reference() {
    let mut dice = Dice::new(12);
    let mut policy = shapes::policy(Shape::Acl, 10_000, &mut dice);
    let sets = ["near", "far"].map(|name| (name.to_owned(), model::Set::default()));
    policy.sets.extend(sets);
    for set in policy.sets.values_mut() {
        set.prefixes = dice.some_of(1_000, |dice| {
            model::Prefix::new(Ipv4Addr::from_bits(dice.number() as u32).into(), 12).unwrap()
        });
    }
    for (number, rule) in policy.rules.iter_mut().enumerate() {
        ask_for_one_more(rule, number % 12, &mut dice);
    }
    let compiled = compile(&policy).unwrap();
    assert!(compiled.needs().bytes() < 10_000_000, "{:?}", compiled.needs());
    let (mut inspection, mut named) = (Inspection::EMPTY, BTreeSet::new());
    for number in 0..3_000 {
        let mut frame = shapes::frame(&policy, &mut dice);
        frame[6..12].copy_from_slice(&reference::mac(&mut dice).0);
        let hooks = [Hook::TcIngress, Hook::CgroupEgress, Hook::CgroupIngress];
        let case = Case {
            hook: hooks[number % hooks.len()],
            interface: dice.one_of(&["eth0", "eth1", "eth2"]),
            cgroup: dice.one_of(&["a", "a/b", "e"]),
            uid: dice.one_of(&reference::UIDS),
            gid: Some(dice.one_of(&reference::UIDS)),
        };
        let decided = by_tables(&compiled, &mut inspection, &frame, case);
        assert_eq!(decided, by_reference(&policy, &frame, case), "{case:?} {frame:02x?}");
        named.insert(decided.0);
    }
    assert!(named.len() > 300, "only {} rules have decided", named.len());
}

/// Has a rule ask for another key, or do something else.
fn ask_for_one_more(rule: &mut model::Rule, kind: usize, dice: &mut Dice) {
    let out = (rule.action != model::Action::Block).then_some(model::Direction::Egress);
    let ids = |dice: &mut Dice| vec![model::Range::single(dice.one_of(&reference::UIDS))];
    match kind {
        0 => rule.interface = vec![dice.one_of(&["eth0", "eth1"]).to_owned()],
        1 => (rule.direction, rule.mac) = (Some(model::Direction::Ingress), vec![reference::mac(dice)]),
        2 => (rule.direction, rule.cgroup) = (out, vec![dice.one_of(&["a", "a/b"]).to_owned()]),
        3 => (rule.direction, rule.uid) = (out, ids(dice)),
        4 => (rule.direction, rule.gid) = (out, ids(dice)),
        5 => rule.state = vec![dice.one_of(&[model::State::New, model::State::Established])],
        6 => rule.source = vec![model::Address::Set("near".into())],
        7 => rule.destination = vec![model::Address::Set("far".into())],
        8 => rule.mode = Some(model::RuleMode::Observe),
        9 => rule.action = model::Action::Log,
        10 => {
            (rule.source_ports, rule.destination_ports) = (Vec::new(), Vec::new());
            rule.protocol = Some(model::Protocol::ICMP);
            rule.icmp_type = vec![model::Range { first: 3, last: 8 }];
            rule.icmp_code = vec![model::Range::single(0)];
        }
        _ => {}
    }
}

#[test]
fn sets_of_ten_thousand_prefixes_are_looked_up_right() {
    let policy = reference::without_eight_of_every_sixteen(10_000);
    let compiled = compile(&policy).unwrap();
    let mut dice = Dice::new(7);
    compare_sources(&policy, &compiled, (0..20_000).map(|_| dice.below(170_000) as u32));
}

#[test]
fn a_set_of_a_million_prefixes_is_looked_up_right() {
    let compiled = compile(&reference::without_eight_of_every_sixteen(1_000_000)).unwrap();
    assert!(compiled.needs().bytes() < 40_000_000, "{:?}", compiled.needs());
    let mut inspection = Inspection::EMPTY;
    let mut dice = Dice::new(8);
    for _ in 0..20_000 {
        let number = dice.below(16_100_000) as u32;
        let decided = by_tables(&compiled, &mut inspection, &from(number), TC);
        let expected = if number < 16_000_000 && number % 16 < 8 {
            ("no-many", Outcome::Dropped)
        } else {
            ("default", Outcome::Passed)
        };
        assert_eq!(
            (decided.0.as_str(), decided.1),
            expected,
            "{}",
            reference::source(number)
        );
    }
}

/// A datagram from there.
fn from(number: u32) -> Vec<u8> {
    let datagram = testbed::packets::ethernet().ipv4(reference::source(number), "192.0.2.1");
    datagram.udp(1, 2).build()
}

fn compare_sources(policy: &Policy, compiled: &Compiled, numbers: impl Iterator<Item = u32>) {
    let mut inspection = Inspection::EMPTY;
    for number in numbers {
        let frame = from(number);
        let decided = by_tables(compiled, &mut inspection, &frame, TC);
        assert_eq!(
            decided,
            by_reference(policy, &frame, TC),
            "{}",
            reference::source(number)
        );
    }
}

/// N2: whatever single entries are added and removed, in whatever order, the tables are those of the policy with them.
#[test]
fn sets_that_change_entry_by_entry_are_compiled_as_if_they_were_new() {
    let (mut added, mut removed) = (0, 0);
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let mut policy = reference::policy(&mut dice);
        reference::ask_for_sockets(&mut policy, &mut dice, true);
        let mut policy = sets::sort(policy);
        let mut naive: BTreeMap<String, BTreeSet<model::Prefix>> = BTreeMap::new();
        for (name, set) in &policy.sets {
            naive.insert(name.clone(), set.all().copied().collect());
        }
        let (mut changes, mut divisions) = (Changes::default(), Divisions::default());
        // Lists become long and short again on the way: see `LONG` of the compiler.
        for step in 0..40 {
            let name = dice.one_of(&["near", "far"]);
            let entries = naive.get_mut(name).unwrap();
            let some = entries.iter().nth(dice.below(entries.len().max(1))).copied();
            let is_growing = step < 25;
            let (kind, prefix) = match some {
                Some(prefix) if dice.percent(if is_growing { 20 } else { 80 }) => (ChangeKind::Remove, prefix),
                _ => (ChangeKind::Add, reference::prefix(&mut dice)),
            };
            let changed = changes.change(&policy, name, prefix, kind, None, Instant::now());
            match kind {
                ChangeKind::Add => assert_eq!(changed.is_ok(), entries.insert(prefix)),
                ChangeKind::Remove => assert_eq!(changed.is_ok(), entries.remove(&prefix)),
            }
            let Ok(edit) = changed else { continue };
            edit.unwrap().apply(&mut policy);
            match kind {
                ChangeKind::Add => added += 1,
                ChangeKind::Remove => removed += 1,
            }
            assert!(policy.sets[name].all().eq(&naive[name]));
            let again = compile_again(&policy, Names::imagined(&policy), &mut divisions).unwrap();
            assert_eq!(again, compile(&policy).unwrap(), "seed {seed}, step {step}");
            let mut inspection = Inspection::EMPTY;
            for _ in 0..5 {
                let frame = reference::frame(&mut dice);
                let decided = by_tables(&again, &mut inspection, &frame, TC);
                assert_eq!(decided, by_reference(&policy, &frame, TC), "{frame:02x?}\n{policy:#?}");
            }
        }
    }
    assert!(added > 600 && removed > 400, "{added} added, {removed} removed");
}

/// N2, N4: each shape, in both directions.
#[test]
fn thousands_of_rules_are_matched_as_by_the_reference() {
    for shape in Shape::ALL {
        compare_shape(shape, 3000, 2000);
    }
}

/// N4.
#[test]
fn a_hundred_thousand_rules_are_matched_as_by_the_reference() {
    compare_shape(Shape::Acl, 100_000, 100);
    compare_shape(Shape::Ipc, 100_000, 100);
    // Firewalls leave so much open that the tables hold fewer of their rules.
    compare_shape(Shape::Fw, 50_000, 100);
}

fn compare_shape(shape: Shape, rules: usize, frames: usize) {
    let mut dice = Dice::new(9);
    let policy = shapes::policy(shape, rules, &mut dice);
    let compiled = compile(&policy).unwrap();
    let needs = compiled.needs();
    // N4: 10 MB for every 10,000 rules.
    assert!(needs.bytes() < 1000 * rules as u64 + 1_000_000, "{shape:?}: {needs:?}");
    let mut inspection = Inspection::EMPTY;
    let (mut by_rule, mut most) = (0, 0);
    for _ in 0..frames {
        let frame = shapes::frame(&policy, &mut dice);
        for hook in Hook::ALL.into_iter().filter(|hook| !hook.is_of_calls()) {
            let case = Case { hook, ..TC };
            let decided = by_tables(&compiled, &mut inspection, &frame, case);
            assert_eq!(
                decided,
                by_reference(&policy, &frame, case),
                "{shape:?} {case:?} {frame:02x?}"
            );
            by_rule += usize::from(decided.0.starts_with("rule-"));
            most = most.max(steps(&compiled, inspection.asked()));
        }
    }
    assert!(
        by_rule > frames,
        "{shape:?}: only {by_rule} of {frames} frames at two hooks met a rule"
    );
    assert!(
        most <= compiled.worst.deciding,
        "{shape:?}: {most} steps, {:?}",
        compiled.worst
    );
    println!("{shape:?}: {most} steps at most, {:?}, {needs:?}", compiled.worst);
}

#[test]
fn more_long_lists_than_there_are_bits_for_are_taken_apart() {
    let mut dice = Dice::new(10);
    let mut policy = Policy::allow_all("lists");
    policy.mode = model::Mode::Block;
    policy.rules = (0..MAX_LISTS + 6)
        .map(|number| {
            let mut rule = model::Rule::new(&format!("rule-{number}"), model::Action::Block);
            let single = |number| model::Prefix::new(reference::source(number).into(), 32).unwrap();
            let prefixes = (0..40).map(|_| single(dice.below(1 << 12) as u32));
            rule.source = prefixes.map(model::Address::Prefix).collect();
            rule
        })
        .collect();
    let compiled = compile(&policy).unwrap();
    compare_sources(&policy, &compiled, 0..1 << 12);
}

/// N4: rules of which each overlaps with all others in another way.
#[test]
fn what_no_number_of_tables_holds_is_refused() {
    let mut policy = Policy::allow_all("nested");
    let prefix = |length| {
        let prefix = model::Prefix::new([10, 0, 0, 0].into(), length);
        vec![model::Address::Prefix(prefix.unwrap())]
    };
    for source in 1..=32 {
        for destination in 1..=32 {
            let mut rule = model::Rule::new(&format!("rule-{source}-{destination}"), model::Action::Allow);
            (rule.source, rule.destination) = (prefix(source), prefix(destination));
            policy.rules.push(rule);
        }
    }
    let refused = compile(&policy).map(drop).unwrap_err().to_string();
    assert!(refused.starts_with("the rules overlap in so many ways"), "{refused}");
    policy.rules.truncate(MAX_PARTITIONS);
    compile(&policy).unwrap();
}

/// N4: more boxes than a search by halving has turns for.
#[test]
fn rules_that_list_too_many_combinations_are_refused() {
    let mut policy = Policy::allow_all("combinations");
    let rule = |number: u32| {
        let mut rule = model::Rule::new(&format!("rule-{number}"), model::Action::Block);
        let single = |part: u32| model::Prefix::new(reference::source(16 * number + 2 * part).into(), 32).unwrap();
        rule.source = (0..8).map(|part| model::Address::Prefix(single(part))).collect();
        rule.protocol = Some(model::Protocol(17));
        rule.destination_ports = (0..8).map(|port| model::Range::single(2 * port)).collect();
        rule
    };
    policy.rules = (0..20_000).map(rule).collect();
    let refused = compile(&policy).map(drop).unwrap_err().to_string();
    assert!(
        refused.starts_with("the first 16384 rules alone make 1048576 boxes or more"),
        "{refused}"
    );
    policy.rules.truncate(16_000);
    let compiled = compile(&policy).unwrap();
    compare_sources(&policy, &compiled, (0..500).chain(255_500..256_000));
}

/// N4, F14: what is known of packets beside their headers is numbered, each combination with a number of its own.
#[test]
fn rules_that_combine_too_many_interfaces_and_users_are_refused() {
    let mut policy = Policy::allow_all("combinations");
    let rule = |name: &str| {
        let mut rule = model::Rule::new(name, model::Action::Block);
        rule.direction = Some(model::Direction::Egress);
        rule
    };
    let (mut by_interface, mut by_user) = (rule("interfaces"), rule("users"));
    by_interface.interface = (0..300).map(|number| format!("eth{number}")).collect();
    by_user.uid = (0..300).map(|number| model::Range::single(2 * number)).collect();
    policy.rules = vec![by_interface, by_user];
    let refused = compile(&policy).map(drop).unwrap_err().to_string();
    assert!(
        refused.starts_with("the interfaces, MAC addresses, cgroups, users and groups of the rules combine in"),
        "{refused}"
    );
    policy.rules[1].uid.truncate(100);
    compile(&policy).unwrap();
}

/// F14: a program asks for the cgroup on each level that rules name.
#[test]
fn cgroups_on_too_many_levels_are_refused() {
    let mut policy = Policy::allow_all("levels");
    let mut rule = model::Rule::new("levels", model::Action::Block);
    rule.cgroup = (1..=9).map(|levels| vec!["a"; levels].join("/")).collect();
    policy.rules = vec![rule];
    let refused = compile(&policy).map(drop).unwrap_err().to_string();
    assert!(
        refused.starts_with("the cgroups of the rules are on 9 levels of the hierarchy, and the enforcer takes 8"),
        "{refused}"
    );
    policy.rules[0].cgroup.pop();
    compile(&policy).unwrap();
}

#[test]
fn a_policy_that_has_outgrown_the_tables_is_refused() {
    let mut dice = Dice::new(11);
    let small = compile(&shapes::policy(Shape::Acl, 10, &mut dice)).unwrap();
    let large = compile(&shapes::policy(Shape::Acl, 20_000, &mut dice)).unwrap();
    let room = Capacities::around(&small);
    room.hold(&small).unwrap();
    let refused = room.hold(&large).unwrap_err().to_string();
    assert!(
        refused.contains("the rules of the policy take 20000 places in a table that has 8192"),
        "{refused}"
    );
    assert!(refused.contains("start the enforcer with this one"), "{refused}");
    Capacities::around(&large).hold(&large).unwrap();
}

#[test]
fn what_is_not_enforced_is_refused_by_name() {
    let refused = |policy: &Policy| {
        let cannot = compile(policy).map(drop).unwrap_err();
        cannot.to_string().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let rule = |number| model::Rule::new(&format!("rule-{number}"), model::Action::Allow);
    let mut policy = Policy::allow_all("p");
    policy.rules = vec![rule(0), rule(1)];
    policy.rules[0].cgroup = vec!["batch.slice".into()];
    policy.rules[0].mac = vec![model::Mac([2, 0, 0, 0, 0, 1])];
    let causes = refused(&policy);
    let begins = ["rule rule-0: mac beside cgroup, uid or gid"];
    assert_eq!(causes.len(), begins.len());
    for (cause, begin) in causes.iter().zip(begins) {
        assert!(
            cause.starts_with(&format!("{begin} is not enforced by this version; ")),
            "{cause}"
        );
    }
}
