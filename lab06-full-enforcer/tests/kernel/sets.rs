//! Entries of sets are added and removed while the policy is in force (`enforcer set`).

use std::{net::IpAddr, time::Duration};

use testbed::traffic::{self, Server};

use crate::{
    lab::{AT_CGROUP, AT_INTERFACE, Lab, wait_until},
    metadata::path,
};

testbed::listed_tests![
    an_entry_holds_from_the_next_packet_on_until_it_is_removed,
    an_entry_ends_with_its_time_and_so_does_a_removal,
    entries_survive_modes_and_cgroups_that_come_and_another_policy_with_the_set,
    what_is_no_entry_is_refused_and_changes_nothing,
    sets_are_listed_with_whose_their_entries_are,
];

const POLICY: &str = "
version: 1
name: no-abuse
mode: block
sets:
  abuse: { prefixes: [198.51.100.0/24, \"2001:db8:bad::/48\"] }
  unused: { prefixes: [192.0.2.0/24] }
rules:
  - { name: abuse, direction: ingress, source: \"@abuse\", action: block }
";

/// Long enough for an answer, and short enough to wait for none.
const ANSWER: Duration = Duration::from_millis(300);

/// A datagram of the client to the server comes back.
fn passes(lab: &Lab, to: IpAddr) -> bool {
    let exchange = traffic::udp_exchange(&lab.client.host, (to, 7).into(), 1, ANSWER).unwrap();
    exchange.is_complete()
}

fn an_entry_holds_from_the_next_packet_on_until_it_is_removed() {
    let lab = Lab::new();
    let _echo = Server::udp(&lab.server.host, 7).unwrap();
    let _enforcer = lab.enforce(&lab.file("policy.yaml", POLICY), &AT_INTERFACE);
    let (v4, v6) = (lab.client.ipv4.to_string(), lab.client.ipv6.to_string());
    let pass = || {
        [
            passes(&lab, lab.server.ipv4.into()),
            passes(&lab, lab.server.ipv6.into()),
        ]
    };
    assert_eq!(pass(), [true, true]);
    let told = lab.done(&["set", "add", "abuse", &v4]);
    assert_eq!(told, format!("{v4} is in the set abuse; it has 3 entries\n"));
    assert_eq!(pass(), [false, true]);
    lab.done(&["set", "add", "abuse", &v6]);
    assert_eq!(pass(), [false, false]);
    assert_eq!(lab.counted("abuse"), [0, 0, 3]);
    // The policy in force is the one with them: `explain` and `show` know.
    let explain = [
        "--src",
        &v4,
        "--dst",
        "192.0.2.9",
        "--proto",
        "udp",
        "--dport",
        "7",
        "--json",
    ];
    let told = lab.json(&[&["policy", "explain"], &explain[..]].concat());
    assert_eq!((&told["rule"], &told["verdict"]), (&"abuse".into(), &"block".into()));
    assert!(lab.done(&["policy", "show", "--as", "yaml"]).contains(&v4));

    let told = lab.done(&["set", "remove", "abuse", &v4]);
    assert_eq!(told, format!("{v4} is no longer in the set abuse; it has 3 entries\n"));
    assert_eq!(pass(), [true, false]);
    lab.done(&["set", "remove", "abuse", &v6]);
    assert_eq!(pass(), [true, true]);
    assert_eq!(lab.counted("abuse"), [0, 0, 4]);
    assert_eq!(lab.json(&["status", "--json"])["applied"], 1);
}

fn an_entry_ends_with_its_time_and_so_does_a_removal() {
    let lab = Lab::new();
    let _echo = Server::udp(&lab.server.host, 7).unwrap();
    let address = lab.client.ipv4.to_string();
    let policy = POLICY.replace("198.51.100.0/24", &address);
    let _enforcer = lab.enforce(&lab.file("policy.yaml", &policy), &AT_INTERFACE);
    let passes = || passes(&lab, lab.server.ipv4.into());
    assert!(!passes());
    lab.done(&["set", "remove", "abuse", &address, "--for", "1h"]);
    assert!(passes());
    let told = lab.done(&["set", "add", "abuse", &address, "--for", "2s"]);
    assert!(
        told.starts_with(&format!("{address} is in the set abuse, for 2 s; ")),
        "{told}"
    );
    assert!(!passes());
    // The removal was over with it, and it is the policy's again.
    wait_until("its time is over", || {
        lab.json(&["set", "list", "--json"])[0]["added"] == 0
    });
    assert!(!passes());

    lab.done(&["set", "remove", "abuse", &address, "--for", "4s"]);
    assert!(passes());
    wait_until("it is back", || {
        lab.json(&["set", "list", "abuse", "--json"])["removed"] == serde_json::json!([])
    });
    assert!(!passes());
}

fn entries_survive_modes_and_cgroups_that_come_and_another_policy_with_the_set() {
    let lab = Lab::new();
    let _echo = Server::udp(&lab.server.host, 7).unwrap();
    let address = lab.client.ipv4.to_string();
    let jobs = lab.cgroup.child("jobs").unwrap();
    let naming = format!(
        "{POLICY}  - {{ name: jobs, direction: egress, cgroup: {}, action: log }}\n",
        path(&jobs)
    );
    drop(jobs);
    let policy = lab.file("policy.yaml", &naming);
    let _enforcer = lab.enforce(&policy, &[]);
    let passes = || passes(&lab, lab.server.ipv4.into());
    lab.done(&["set", "add", "abuse", &address]);
    lab.done(&["set", "add", "unused", &address]);
    lab.done(&["set", "remove", "abuse", "198.51.100.0/24"]);
    lab.done(&["mode", "observe"]);
    assert!(passes());
    lab.done(&["set", "add", "abuse", "203.0.113.7"]);
    assert_eq!(
        lab.json(&["mode", "--json"])["mode"],
        "observe",
        "the mode survives entries"
    );
    lab.done(&["mode", "block"]);
    assert!(!passes());
    let missing = || lab.json(&["status", "--json"])["missing"].as_array().unwrap().len();
    assert_eq!(missing(), 1);
    let _jobs = lab.cgroup.child("jobs").unwrap();
    wait_until("the cgroup is known", || missing() == 0);
    assert!(!passes());

    let without_unused = naming.replace("  unused: { prefixes: [192.0.2.0/24] }\n", "");
    let other = lab.file("other.yaml", &without_unused);
    let apply = ["policy", "apply", other.to_str().unwrap()];
    let expected =
        "2 entries that `enforcer set` has added stay in their sets\n2 changes by `enforcer set` are forgotten\n";
    for dry_run in [&["--dry-run"][..], &[]] {
        let told = lab.done(&[&apply[..], dry_run].concat());
        assert!(told.contains(expected), "{told}");
    }
    assert!(!passes());
    let set = lab.json(&["set", "list", "abuse", "--json"]);
    let entries = set["entries"].as_array().unwrap();
    let entries = entries.iter().map(|entry| entry["prefix"].as_str().unwrap());
    assert!(
        entries.eq(["198.51.100.0/24", "2001:db8:bad::/48", &address, "203.0.113.7"]),
        "{set:#}"
    );
}

fn what_is_no_entry_is_refused_and_changes_nothing() {
    let lab = Lab::new();
    let error = lab.refused(&["set", "list"], 1);
    assert!(error.starts_with("error: no enforcer is listening on "), "{error}");
    let _enforcer = lab.enforce(&lab.file("policy.yaml", POLICY), &AT_CGROUP);
    let before = lab.json(&["policy", "show", "--json"]);
    for (args, status, said) in [
        (
            &["add", "abus", "192.0.2.1"][..],
            1,
            "error: the policy in force has no set abus; there are: abuse, unused\n",
        ),
        (&["list", "abus"], 1, "error: the policy in force has no set abus"),
        (
            &["add", "abuse", "203.0.113.7/24"],
            1,
            "has host bits: bits set behind its length; write 203.0.113.0/24",
        ),
        (&["add", "abuse", "203.0.113.0/33"], 1, "error: "),
        (&["add", "abuse", "example.org"], 1, "error: "),
        (
            &["add", "abuse", "198.51.100.0/24"],
            1,
            "error: 198.51.100.0/24 is in the set abuse already",
        ),
        (
            &["add", "abuse", "198.51.100.0/24", "--for", "1h"],
            1,
            "is in the set abuse already",
        ),
        (
            &["remove", "abuse", "198.51.100.7"],
            1,
            "error: 198.51.100.7 is no entry of the set abuse, but part of 198.51.100.0/24",
        ),
        (
            &["remove", "abuse", "198.51.0.0/16"],
            1,
            "error: 198.51.0.0/16 is no entry of the set abuse; ",
        ),
        (&["add", "@abuse", "192.0.2.1"], 2, "error: \"@abuse\" is no name"),
        (&["add", "../policy", "192.0.2.1"], 2, "is no name"),
        (&["add", "abuse", "192.0.2.1", "--for", "0s"], 2, "more than nothing"),
        (&["add", "abuse", "192.0.2.1", "--for", "soon"], 2, "write it like"),
        (
            &["add", "abuse", "192.0.2.1", "--for", "11years"],
            2,
            "the longest is ten years",
        ),
        (&["add", "abuse"], 2, "<PREFIX>"),
    ] {
        let error = lab.refused(&[&["set"], args].concat(), status);
        assert!(error.contains(said), "{args:?}: {error}");
    }
    assert_eq!(lab.json(&["policy", "show", "--json"]), before);
}

fn sets_are_listed_with_whose_their_entries_are() {
    let lab = Lab::new();
    let _enforcer = lab.enforce(&lab.file("policy.yaml", POLICY), &AT_CGROUP);
    lab.done(&["set", "add", "abuse", "203.0.113.7", "--for", "10h"]);
    lab.done(&["set", "remove", "abuse", "198.51.100.0/24"]);
    let told = lab.done(&["set", "add", "unused", "10.0.0.0/8"]);
    assert!(
        told.ends_with("no rule names the set unused, so nothing changes for any packet\n"),
        "{told}"
    );
    let told = lab.done(&["set", "list", "abuse"]);
    let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(told.starts_with("set abuse, 2 entries, named by abuse\n"), "{told}");
    assert_eq!(
        lines[2..],
        [
            vec!["entry", "by", "for"],
            vec!["2001:db8:bad::/48", "policy", "good"],
            vec!["203.0.113.7", "command", lines[4][2], "h"],
            vec!["198.51.100.0/24", "removed", "good"],
        ]
    );
    assert!(["9", "10"].contains(&lines[4][2]), "{told}");
    let told = lab.done(&["set", "list"]);
    let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [
            ["set", "entries", "added", "removed", "rules"],
            ["abuse", "2", "1", "1", "1"],
            ["unused", "2", "1", "0", "0"],
        ]
    );
}
