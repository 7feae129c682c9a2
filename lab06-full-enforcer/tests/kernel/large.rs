//! The largest policies that the enforcer is made for, in the kernel (Z3, F14).

use enforcer_policy::{Identity, Outcome, Policy};
use lab06_full_enforcer::compile::compile;
use lab06_full_enforcer_common::key::Hook;
use testbed::{Host, Link, packets};

use crate::{
    program::Programs,
    random::Dice,
    reference,
    shapes::{self, Shape},
};

testbed::listed_tests![
    a_hundred_thousand_rules_decide_as_by_the_reference,
    each_of_a_million_prefixes_is_met,
];

/// Programs for packets of this hook, on an interface that is not `lo`.
const HOOK: Hook = Hook::TcIngress;

fn a_hundred_thousand_rules_decide_as_by_the_reference() {
    let mut dice = Dice::new(13);
    let policy = shapes::policy(Shape::Acl, 100_000, &mut dice);
    let mut outcomes = [0; 2];
    let enforcing = Enforcing::new(&policy);
    for _ in 0..100 {
        let frame = shapes::frame(&policy, &mut dice);
        let packet = reference::packet(&frame, HOOK, "eth0");
        let decision = reference::decide(&policy, &packet, HOOK, &Identity::UNKNOWN).unwrap();
        let passes = decision.outcome(true) != Outcome::Drop;
        assert_eq!(
            enforcing.lets_pass(&frame),
            passes,
            "{} {frame:02x?}",
            decision.rule_name(&policy)
        );
        outcomes[usize::from(passes)] += 1;
    }
    assert!(outcomes.iter().all(|count| *count >= 10), "{outcomes:?}");
}

/// Each of eight addresses, sixteen apart.
fn each_of_a_million_prefixes_is_met() {
    const PREFIXES: u32 = 1_000_000;
    let policy = reference::without_eight_of_every_sixteen(PREFIXES);
    let mut dice = Dice::new(14);
    let enforcing = Enforcing::new(&policy);
    for _ in 0..5_000 {
        let number = dice.below(PREFIXES as usize * 16 + 1_000) as u32;
        let source = reference::source(number);
        let frame = packets::ethernet().ipv4(source, "192.0.2.1").udp(1, 2).build();
        let is_listed = number / 16 < PREFIXES && number % 16 < 8;
        assert_eq!(enforcing.lets_pass(&frame), !is_listed, "{source}");
    }
}

/// A program on a host of its own, with a policy in force.
struct Enforcing {
    programs: Programs,
    link: Link,
}

impl Enforcing {
    fn new(policy: &Policy) -> Self {
        let here = Host::new("here").unwrap();
        Self {
            programs: Programs::enforcing(&compile(policy).unwrap(), &[HOOK]),
            link: here.join(&Host::new("there").unwrap()).unwrap(),
        }
    }

    fn lets_pass(&self, frame: &[u8]) -> bool {
        let _inside = self.link.left.host.enter().unwrap();
        self.programs.lets_pass(HOOK, frame, self.link.left.index)
    }
}
