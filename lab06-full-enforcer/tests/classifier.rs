//! What the programs decide, by the tables and on the host, against the reference of policies (N2, A3, Z2, P1, P6).

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

use std::collections::BTreeMap;

use enforcer_policy::{Flow, Identity, Policy, decide, model};
use lab06_full_enforcer::compile::{Capacities, Compiled, compile};
use lab06_full_enforcer_common::{
    classify::Classifier,
    counters::Outcome,
    decision::{FromEthernet, FromIp, Inspection, Place},
    key::Hook,
    veil::Veil,
};
use random::Dice;

/// What is compared: the name that it is counted under, what becomes of it, and the rules that only count it.
type Decided = (String, Outcome, Vec<String>);

fn by_tables(compiled: &Compiled, inspection: &mut Inspection, frame: &[u8], place: Place) -> Decided {
    let classifier = Classifier {
        config: &compiled.config,
        tables: compiled,
        veil: Veil::new(0x5555_1234),
    };
    let ether_type = u16::from_be_bytes([frame[12], frame[13]]);
    match place.hook {
        Hook::TcIngress => inspection.decide(&FromEthernet(frame), &place, &classifier),
        Hook::CgroupEgress => inspection.decide(&FromIp(&frame[14..], ether_type), &place, &classifier),
    }
    let name = match inspection.rule() {
        Some(rule) => compiled.names[rule.id as usize].clone(),
        None => inspection.reason().name().to_owned(),
    };
    let logged = (0..64).filter(|number| inspection.logged() >> number & 1 != 0);
    let logged = logged.map(|number| compiled.names[number].clone()).collect();
    (name, inspection.outcome(place.mode), logged)
}

fn by_reference(policy: &Policy, frame: &[u8], place: Place) -> Decided {
    let packet = reference::packet(frame, place.hook, place.is_loopback);
    let decision = decide(policy, &packet, &Flow::New, &Identity::UNKNOWN);
    let outcome = match decision.outcome(true) {
        enforcer_policy::Outcome::Pass => Outcome::Passed,
        enforcer_policy::Outcome::ObserveDrop => Outcome::Observed,
        enforcer_policy::Outcome::Drop => Outcome::Dropped,
    };
    let logged = decision.logged_by.iter().map(|index| policy.rules[*index].name.clone());
    (decision.rule_name(policy).to_owned(), outcome, logged.collect())
}

#[test]
fn two_hundred_thousand_decisions_are_those_of_the_reference() {
    let mut dice = Dice::new(6);
    let mut inspection = Inspection::EMPTY;
    let mut seen: BTreeMap<(&str, Outcome), u32> = BTreeMap::new();
    for _ in 0..500 {
        let policy = reference::policy(&mut dice);
        let compiled = compile(&policy, &Capacities::DEFAULT).unwrap();
        for _ in 0..200 {
            let frame = reference::frame(&mut dice);
            for hook in Hook::ALL {
                let place = Place {
                    hook,
                    is_loopback: dice.percent(3),
                    mode: compiled.mode,
                };
                let decided = by_tables(&compiled, &mut inspection, &frame, place);
                let expected = by_reference(&policy, &frame, place);
                assert_eq!(decided, expected, "{place:?} {frame:02x?}\n{policy:#?}");
                *seen.entry((inspection.reason().name(), decided.1)).or_default() += 1;
            }
        }
    }
    for reason in ["rule", "default", "malformed"] {
        for outcome in Outcome::ALL {
            let count = seen.get(&(reason, outcome)).copied().unwrap_or(0);
            assert!(count >= 100, "{reason} and {outcome:?} are too rare: {seen:?}");
        }
    }
    assert!(seen[&("essential", Outcome::Passed)] >= 1000, "{seen:?}");
}

#[test]
fn sets_of_ten_thousand_prefixes_are_looked_up_right() {
    let mut policy = Policy::allow_all("large");
    let prefix = |number: u32| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number * 16);
        model::Prefix::new(address.into(), 29).unwrap()
    };
    let set = model::Set {
        prefixes: (0..10_000).map(prefix).collect(),
        ..model::Set::default()
    };
    policy.sets.insert("many".into(), set);
    let mut rule = model::Rule::new("no-many", model::Action::Block);
    rule.source = vec![model::Address::Set("many".into())];
    policy.rules = vec![rule];
    policy.mode = model::Mode::Block;
    let compiled = compile(&policy, &Capacities::DEFAULT).unwrap();
    let mut inspection = Inspection::EMPTY;
    let mut dice = Dice::new(7);
    for _ in 0..20_000 {
        let source = std::net::Ipv4Addr::from_bits(0x0a00_0000 + dice.below(170_000) as u32);
        let frame = testbed::packets::ethernet().ipv4(source, "192.0.2.1").udp(1, 2).build();
        let place = Place {
            hook: Hook::TcIngress,
            is_loopback: false,
            mode: compiled.mode,
        };
        let decided = by_tables(&compiled, &mut inspection, &frame, place);
        assert_eq!(decided, by_reference(&policy, &frame, place), "{source}");
    }
}

#[test]
fn what_is_too_large_or_not_enforced_is_refused_by_name() {
    let refused = |policy: &Policy| {
        let cannot = compile(policy, &Capacities::DEFAULT).map(drop).unwrap_err();
        cannot.to_string().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut policy = Policy::allow_all("p");
    let rule = |number| model::Rule::new(&format!("rule-{number}"), model::Action::Allow);
    policy.rules = (0..64).map(rule).collect();
    assert!(compile(&policy, &Capacities::DEFAULT).is_ok());
    policy.rules.push(rule(64));
    let causes = refused(&policy);
    assert!(
        causes[0].starts_with("the policy has 65 rules, and this version enforces 64 at most"),
        "{causes:?}"
    );

    let mut policy = Policy::allow_all("p");
    policy.rules = vec![rule(0), rule(1)];
    policy.rules[0].cgroup = vec!["batch.slice".into()];
    policy.rules[0].uid = vec![model::Range::single(1000)];
    policy.rules[1].state = vec![model::State::New];
    let causes = refused(&policy);
    let begins = ["rule rule-0: cgroup", "rule rule-0: uid", "rule rule-1: state"];
    assert_eq!(causes.len(), begins.len());
    for (cause, begin) in causes.iter().zip(begins) {
        assert!(
            cause.starts_with(&format!("{begin} is not enforced by this version; ")),
            "{cause}"
        );
    }

    let mut policy = Policy::allow_all("p");
    policy.rules = vec![rule(0)];
    let prefix = |number: u32| model::Prefix::new(std::net::Ipv4Addr::from_bits(number * 4).into(), 31).unwrap();
    policy.rules[0].source = (0..40_000)
        .map(|number| model::Address::Prefix(prefix(number)))
        .collect();
    let causes = refused(&policy);
    assert!(
        causes[0].starts_with("the IPv4 prefixes and ports of the policy take "),
        "{causes:?}"
    );
}
