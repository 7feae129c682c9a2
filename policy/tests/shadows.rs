//! What the checks say of random policies, held against the reference: a rule that is said never to match never does.

use enforcer_policy::{DecidedBy, Format, NoFiles, decide_at_hook, decide_at_socket, formats::write, read, testing};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_rule_that_is_told_to_be_shadowed_decides_about_nothing(
        policy in testing::policy(5),
        packets in proptest::collection::vec((testing::packet(), testing::flow(), testing::identity()), 20),
    ) {
        let text = write(&policy, Format::Yaml);
        let reading = read("random.yaml", text.as_bytes(), Format::Yaml, &NoFiles);
        let shadowed: Vec<String> = reading
            .diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.code == "shadowed")
            .map(|diagnostic| diagnostic.message.split(' ').nth(2).unwrap().to_owned())
            .collect();
        for (packet, flow, identity) in packets {
            let at_hook = decide_at_hook(&policy, &packet, &flow, &identity);
            let at_socket = decide_at_socket(&policy, &packet, &flow, &identity);
            for decision in std::iter::once(at_hook).chain(at_socket) {
                let name = decision.rule_name(&policy).to_owned();
                prop_assert!(!shadowed.contains(&name), "{name} decides about {packet:?} {flow:?} {identity:?}\n{text}");
                for index in &decision.logged_by {
                    prop_assert!(!shadowed.contains(&policy.rules[*index].name));
                }
                if let DecidedBy::Rule(index) = decision.by {
                    prop_assert!(index < policy.rules.len());
                }
            }
        }
    }
}
