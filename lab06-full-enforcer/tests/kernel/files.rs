//! The commands that need neither a daemon nor root (A13, F9, N2).

use crate::lab::{AT_CGROUP, Lab};

testbed::listed_tests![
    a_packet_is_explained_in_every_format,
    what_differs_between_files_is_told,
    the_examples_are_checked_explained_and_applied,
];

const POLICIES: [(&str, &str); 4] = [
    (
        "web.yaml",
        "
version: 1
name: web
mode: block
defaults: { ingress: deny }
sets:
  abuse: { prefixes: [203.0.113.0/24, \"2001:db8:bad::/48\"] }
rules:
  - { name: watch, direction: ingress, protocol: tcp, action: log }
  - { name: no-abuse, priority: 1, direction: ingress, source: \"@abuse\", action: block }
  - { name: web-in, direction: ingress, protocol: tcp, destination_ports: [80, 443], action: allow }
",
    ),
    (
        "web.toml",
        "
version = 1
name = 'web'
mode = 'block'
defaults = { ingress = 'deny' }
sets = { abuse = { prefixes = ['203.0.113.0/24', '2001:db8:bad::/48'] } }
rules = [
  { name = 'watch', direction = 'ingress', protocol = 'tcp', action = 'log' },
  { name = 'no-abuse', priority = 1, direction = 'ingress', source = '@abuse', action = 'block' },
  { name = 'web-in', direction = 'ingress', protocol = 'tcp', destination_ports = [80, 443], action = 'allow' },
]
",
    ),
    (
        "web.json",
        r#"{"version": 1, "name": "web", "mode": "block", "defaults": {"ingress": "deny"},
  "sets": {"abuse": {"prefixes": ["203.0.113.0/24", "2001:db8:bad::/48"]}},
  "rules": [
    {"name": "watch", "direction": "ingress", "protocol": "tcp", "action": "log"},
    {"name": "no-abuse", "priority": 1, "direction": "ingress", "source": "@abuse", "action": "block"},
    {"name": "web-in", "direction": "ingress", "protocol": "tcp", "destination_ports": [80, 443], "action": "allow"}
  ]}"#,
    ),
    (
        "web.hcl",
        r#"
version  = 1
name     = "web"
mode     = "block"
defaults = { ingress = "deny" }
sets     = { abuse = { prefixes = ["203.0.113.0/24", "2001:db8:bad::/48"] } }
rules = [
  { name = "watch", direction = "ingress", protocol = "tcp", action = "log" },
  { name = "no-abuse", priority = 1, direction = "ingress", source = "@abuse", action = "block" },
  { name = "web-in", direction = "ingress", protocol = "tcp", destination_ports = [80, 443], action = "allow" },
]
"#,
    ),
];

/// By packet: verdict, rule, reason, outcome.
const EXPLAINED: [(&str, [&str; 4]); 8] = [
    (
        "--src 198.51.100.1 --dst 192.0.2.1 --proto tcp --dport 80",
        ["allow", "web-in", "rule", "pass"],
    ),
    (
        "--src 198.51.100.1 --dst 192.0.2.1 --proto tcp --dport 81",
        ["block", "default", "default", "drop"],
    ),
    (
        "--src 203.0.113.9 --dst 192.0.2.1 --proto tcp --dport 80",
        ["block", "no-abuse", "rule", "drop"],
    ),
    (
        "--src 2001:db8:bad::1 --dst 2001:db8::1 --proto 17 --dport 53",
        ["block", "no-abuse", "rule", "drop"],
    ),
    (
        "--src fe80::1 --dst ff02::1 --proto icmpv6 --icmp-type 135",
        ["allow", "essential", "neighbour_discovery", "pass"],
    ),
    (
        "--src 192.0.2.9 --dst 192.0.2.1 --proto udp --sport 67 --dport 68",
        ["allow", "essential", "dhcp_client", "pass"],
    ),
    (
        "--src 127.0.0.1 --dst 127.0.0.1 --proto tcp --dport 25 --iface lo",
        ["allow", "essential", "loopback", "pass"],
    ),
    (
        "--direction egress --src 192.0.2.1 --dst 203.0.113.9 --proto icmp",
        ["allow", "default", "default", "pass"],
    ),
];

fn a_packet_is_explained_in_every_format() {
    let lab = Lab::new();
    for (name, text) in POLICIES {
        let file = lab.file(name, text);
        let file = file.to_str().unwrap();
        assert!(lab.done(&["policy", "check", file]).contains("3 rules"));
        assert_eq!(lab.json(&["policy", "check", file, "--json"])["valid"], true);
        for (packet, [verdict, rule, reason, outcome]) in EXPLAINED {
            let mut args = vec!["policy", "explain", "--json", "--policy", file];
            args.extend(packet.split(' '));
            let told = lab.json(&args);
            let expected = [verdict, rule, reason, outcome].map(serde_json::Value::from);
            assert_eq!(
                ["verdict", "rule", "reason", "outcome"].map(|key| told[key].clone()),
                expected,
                "{packet}"
            );
            let egress = packet.contains("egress");
            assert_eq!(
                told["hook"],
                if egress {
                    "cgroup-egress"
                } else {
                    "xdp-ingress or tc-ingress"
                }
            );
            assert_eq!(told["steps"].as_array().unwrap().len(), 6);
        }
    }
    let file = lab.file("web.yaml", POLICIES[0].1);
    let explain = |packet: &str| {
        let mut args = vec!["policy", "explain", "--policy", file.to_str().unwrap()];
        args.extend(packet.split(' '));
        lab.finish(&args)
    };
    let told = explain(EXPLAINED[2].0).stdout;
    assert!(
        told.starts_with("block by rule no-abuse, and it is dropped\ndecided at xdp-ingress or tc-ingress\n"),
        "{told}"
    );
    let told = explain(EXPLAINED[0].0).stdout;
    assert!(told.contains("counted before by watch\n"), "{told}");
    for (packet, said) in [
        (
            "--src 192.0.2.1 --dst ::1 --proto tcp --dport 1",
            "different versions of IP",
        ),
        (
            "--src 192.0.2.1 --dst 192.0.2.2 --proto tcp",
            "tcp has ports: say --dport",
        ),
        (
            "--src 192.0.2.1 --dst 192.0.2.2 --proto icmp --dport 1",
            "icmp has no ports",
        ),
        (
            "--src 192.0.2.1 --dst 192.0.2.2 --proto http",
            "is no protocol; write tcp",
        ),
        (
            "--src 192.0.2.256 --dst 192.0.2.2 --proto tcp --dport 1",
            "invalid value",
        ),
        (
            "--src 192.0.2.1 --dst 192.0.2.2 --proto tcp --dport 65536",
            "invalid value",
        ),
    ] {
        let finished = explain(packet);
        assert_eq!(finished.status.code(), Some(2), "{packet}: {finished:#?}");
        assert!(finished.stderr.contains(said), "{packet}: {finished:#?}");
    }
}

fn what_differs_between_files_is_told() {
    let lab = Lab::new();
    let old = lab.file("old.yaml", POLICIES[0].1);
    let text = POLICIES[0]
        .1
        .replace("[80, 443]", "443")
        .replace("watch", "look")
        .replace("ingress: deny", "egress: deny");
    let new = lab.file("new.yaml", &text);
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let told = lab.done(&["policy", "diff", new, "--against", old]);
    for line in [
        "~ defaults.egress: allow → deny",
        "~ defaults.ingress: deny → allow",
        "~ web-in: ",
        "+ look: ",
        "- watch: ",
    ] {
        assert!(told.lines().any(|told| told.starts_with(line)), "{line}: {told}");
    }
    let told = lab.json(&["policy", "diff", new, "--against", old, "--json"]);
    assert_eq!(told["rules"].as_array().unwrap().len(), 3, "{told:#}");
}

/// All examples: those that ask for what this version cannot enforce are refused where they do, and have a counterpart that
/// does not.
fn the_examples_are_checked_explained_and_applied() {
    let lab = Lab::new();
    // Not read where they lie: in a virtual machine there is only this program.
    lab.file("abuse.txt", include_str!("../../../examples/abuse.txt"));
    let first = lab.file("web.yaml", POLICIES[0].1);
    let _enforcer = lab.enforce(&first, &AT_CGROUP);
    // One packet each: the rule that it meets, or the rules and keys that stand in the way.
    for (name, text, packet, (verdict, rule)) in [
        (
            "database",
            include_str!("../../../examples/database.yaml"),
            "--src 192.0.2.17 --dst 192.0.2.33 --proto tcp --dport 5432",
            ("allow", "queries"),
        ),
        (
            "deny-all",
            include_str!("../../../examples/deny-all.yaml"),
            "--src 192.0.2.17 --dst 192.0.2.33 --proto tcp --dport 5432",
            ("block", "default"),
        ),
        (
            "workstation",
            include_str!("../../../examples/workstation.yaml"),
            "--src 192.168.1.1 --dst 192.168.1.2 --proto icmp --icmp-type 8",
            ("allow", "ping"),
        ),
        (
            "web-server-basic",
            include_str!("../../../examples/web-server-basic.yaml"),
            "--direction egress --src 192.0.2.33 --dst 192.0.2.17 --proto tcp --sport 443 --dport 40000",
            ("allow", "web-answers"),
        ),
        (
            "ci-runner-basic",
            include_str!("../../../examples/ci-runner-basic.yaml"),
            "--direction egress --src 192.0.2.33 --dst 10.1.2.3 --proto tcp --dport 80",
            ("block", "not-inside"),
        ),
        (
            "web-server",
            include_str!("../../../examples/web-server.yaml"),
            "--src 192.0.2.17 --dst 192.0.2.33 --proto tcp --dport 80",
            ("rate_limit", "web"),
        ),
        (
            "ci-runner",
            include_str!("../../../examples/ci-runner.yaml"),
            "--src 10.1.2.3 --dst 192.0.2.33 --proto tcp --dport 22 --cgroup builds.slice/7",
            ("block", "nobody-calls-a-build"),
        ),
    ] {
        let file = lab.file(&format!("{name}.yaml"), text);
        let file = file.to_str().unwrap();
        let mut explain = vec!["policy", "explain", "--json", "--policy", file];
        explain.extend(packet.split(' '));
        lab.done(&["policy", "check", file]);
        let told = lab.json(&explain);
        assert_eq!(
            (&told["verdict"], &told["rule"]),
            (&verdict.into(), &rule.into()),
            "{name}: {told:#}"
        );
        lab.done(&["policy", "apply", file]);
        assert_eq!(lab.json(&["status", "--json"])["policy"], name);
    }
    assert_eq!(lab.json(&["status", "--json"])["applied"], 8);
}
