//! What fits, what does not, and what is not enforced here (Z3, F14).

use enforcer_policy::{
    Policy,
    model::{Action, Address, Direction, Order, Prefix, Protocol, Range, Rule, State},
};
use lab04_cgroup_policy::compile::compile;

fn policy(rules: Vec<Rule>) -> Policy {
    Policy {
        order: Order::Specific,
        rules,
        ..Policy::allow_all("test")
    }
}

fn to(name: &str, destination: &str) -> Rule {
    Rule {
        destination: vec![prefix(destination)],
        ..Rule::new(name, Action::Block)
    }
}

fn prefix(text: &str) -> Address {
    let (address, len) = text.split_once('/').unwrap();
    Address::Prefix(Prefix::new(address.parse().unwrap(), len.parse().unwrap()).unwrap())
}

fn refusals(rules: Vec<Rule>, max_entries: u32) -> Vec<String> {
    let refusals = compile(&policy(rules), max_entries).unwrap_err();
    refusals.iter().map(ToString::to_string).collect()
}

#[test]
fn ten_thousand_rules_fit_and_one_more_does_not() {
    let rule = |number: u32| {
        to(
            &format!("r{number}"),
            &format!("{}/32", std::net::Ipv4Addr::from(0x0a00_0000 + number)),
        )
    };
    let rules: Vec<Rule> = (0..10_000).map(rule).collect();
    let compiled = compile(&policy(rules.clone()), 10_000).unwrap();
    assert_eq!(
        (compiled.v4.len(), compiled.v6.len(), compiled.rules.len()),
        (10_000, 0, 10_000)
    );
    let more = rules.into_iter().chain([rule(10_000)]).collect();
    assert_eq!(
        refusals(more, 10_000),
        ["the policy has 10001 rules, and there is room for 10000; give --max-entries 10001"]
    );
}

#[test]
fn a_rule_takes_an_entry_for_each_combination_of_its_prefixes_and_ports() {
    let mut rule = to("all", "192.0.2.0/24");
    rule.destination
        .extend([prefix("198.51.100.0/24"), prefix("2001:db8::/32")]);
    rule.destination_ports = vec![Range::from(8000..=8099), Range::single(8050)];
    rule.source = vec![prefix("10.0.0.1/32"), prefix("10.0.0.2/32")];
    let compiled = compile(&policy(vec![rule.clone()]), 400).unwrap();
    // No source is of IPv6.
    assert_eq!((compiled.v4.len(), compiled.v6.len()), (2 * 2 * 100, 0));
    let refused = refusals(vec![rule.clone()], 399);
    let start =
        "rule all takes 400 entries, one for each combination of its prefixes and ports, and there is room for 399";
    assert!(refused[0].starts_with(start), "{refused:?}");

    // Numbers that would never be multiplied out in memory.
    rule.source_ports = vec![Range::from(1..=65_535)];
    rule.destination_ports = vec![Range::from(1..=65_535)];
    assert!(refusals(vec![rule], 10_000)[0].starts_with("rule all takes 17179344900 entries"));
}

#[test]
fn rules_that_fit_alone_may_not_fit_together() {
    let ports = |name: &str, first| Rule {
        destination_ports: vec![Range::from(first..=first + 299)],
        ..to(name, "192.0.2.1/32")
    };
    let refused = refusals(vec![ports("low", 1000), ports("high", 2000)], 500);
    assert_eq!(
        refused,
        ["the rules take 600 entries for IPv4, and there is room for 500; give --max-entries 600"]
    );
}

#[test]
fn more_combinations_than_look_ups_are_refused_by_their_number() {
    let rules = |lengths: u8| {
        (1..=lengths)
            .map(|len| to(&format!("len-{len}"), &format!("0.0.0.0/{len}")))
            .collect::<Vec<_>>()
    };
    compile(&policy(rules(32)), 100).unwrap();
    let mut one_more = rules(32);
    one_more.push(Rule {
        protocol: Some(Protocol::TCP),
        ..to("tcp", "192.0.2.1/32")
    });
    let refused = refusals(one_more.clone(), 100);
    let direction = |word| {
        format!(
            "the rules on IPv4 packets going {word} have 33 combinations of fields and prefix lengths, and each costs a \
             look-up; 32 are the most: use fewer prefix lengths"
        )
    };
    assert_eq!(refused, [direction("out"), direction("in")]);
    one_more[32].direction = Some(Direction::Ingress);
    assert_eq!(refusals(one_more, 100), [direction("in")]);
}

#[test]
fn what_is_not_enforced_here_is_named_rule_by_rule() {
    let mut rule = to("all-of-it", "192.0.2.1/32");
    rule.icmp_type = vec![Range::single(8)];
    rule.icmp_code = vec![Range::single(0)];
    rule.interface = vec!["eth0".to_owned()];
    rule.mac = vec![lab02_mac()];
    rule.cgroup = vec!["batch.slice".to_owned()];
    rule.uid = vec![Range::single(1000)];
    rule.gid = vec![Range::single(1000)];
    rule.state = vec![State::New];
    rule.action = Action::Log;
    let refused = refusals(vec![Rule::new("fine", Action::Allow), rule], 100);
    let keys = [
        "icmp_type",
        "icmp_code",
        "interface",
        "mac",
        "cgroup",
        "uid",
        "gid",
        "state",
    ];
    assert_eq!(refused.len(), keys.len() + 1, "{refused:#?}");
    for (key, line) in keys.iter().zip(&refused) {
        assert!(
            line.starts_with(&format!("rule all-of-it: `{key}` is not enforced here: ")),
            "{line}"
        );
    }
    assert!(refused[8].starts_with("rule all-of-it: the action `log` is not enforced here, only allow and block are"));
}

fn lab02_mac() -> enforcer_policy::model::Mac {
    "02:00:00:00:00:01".parse().unwrap()
}
