//! Policies, written as the command's options are.

use lab02_xdp_firewall::{
    policy::Policy,
    value::{Rate, WrittenPrefix},
};
use lab02_xdp_firewall_common::firewall::Fragments;

/// What the command does without options.
pub fn no_rules() -> Policy {
    Policy::NO_RULES
}

/// What the command does with these options.
pub fn policy(options: &str) -> Policy {
    let mut policy = no_rules();
    let words: Vec<&str> = options.split_whitespace().collect();
    for pair in words.chunks(2) {
        let [option, value] = pair else {
            panic!("{options}: an option without value")
        };
        match *option {
            "--block-ip" => policy.block.push(value.parse::<WrittenPrefix>().unwrap().prefix),
            "--allow-ip" => policy.allow.push(value.parse::<WrittenPrefix>().unwrap().prefix),
            "--block-port" => policy.block_ports.push(value.parse().unwrap()),
            "--block-source-port" => policy.block_source_ports.push(value.parse().unwrap()),
            "--allow-port" => policy.allow_ports.push(value.parse().unwrap()),
            "--block-mac" => policy.block_macs.push(value.parse().unwrap()),
            "--rate-limit" => {
                let rate: Rate = value.parse().unwrap();
                policy.limit = Some((rate, rate.default_burst()));
            }
            // Behind the rate.
            "--burst" => policy.limit.as_mut().unwrap().1 = value.parse().unwrap(),
            "--default" => policy.drop_by_default = is_drop(value),
            "--malformed" => policy.drop_malformed = is_drop(value),
            "--fragments" => {
                policy.fragments = match *value {
                    "pass" => Fragments::Pass,
                    "drop" => Fragments::Drop,
                    "track" => Fragments::Track,
                    other => panic!("--fragments {other}"),
                }
            }
            other => panic!("{other} is no option here"),
        }
    }
    policy
}

fn is_drop(verdict: &str) -> bool {
    match verdict {
        "drop" => true,
        "pass" => false,
        other => panic!("{other} is no verdict"),
    }
}
