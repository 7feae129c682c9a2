//! What the reference says, in the terms of the classifier.

use enforcer_policy::{DecidedBy, Policy, Verdict, model::RuleMode};
use lab04_cgroup_policy_common::classifier::{DEFAULT_RULE, ESSENTIAL_RULE, MALFORMED_RULE, RESERVED_RULES};

/// Who decides, whether it is blocked, and whether that is only reported, whatever the policy's mode.
pub fn expected(policy: &Policy, reference: &enforcer_policy::Decision) -> (u32, bool, bool) {
    let blocks = reference.verdict == Verdict::Block;
    let observes = match reference.by {
        DecidedBy::Rule(index) => policy.rules[index].mode == Some(RuleMode::Observe),
        _ => false,
    };
    (rule_number(reference.by), blocks, blocks && observes)
}

/// As the compiler numbers them.
pub fn rule_number(by: DecidedBy) -> u32 {
    match by {
        DecidedBy::Rule(index) => RESERVED_RULES + index as u32,
        DecidedBy::Essential => ESSENTIAL_RULE,
        DecidedBy::Default => DEFAULT_RULE,
        DecidedBy::Malformed => MALFORMED_RULE,
    }
}
