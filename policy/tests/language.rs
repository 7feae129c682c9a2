//! What the reader says about policies that are wrong: the code, the place and the mend, in every format (F14, A13, Z8).

use std::{fmt::Write as _, fs, io, path::Path};

use enforcer_policy::{
    Files, Format, NoFiles, Reading, diagnostic::Severity, formats::write, read, read::MAX_DIAGNOSTICS, read_path,
};

/// What is found, as `code line:column pointed-at text`, in the order in which it is told.
fn found(reading: &Reading) -> Vec<String> {
    reading
        .diagnostics
        .iter()
        .map(|diagnostic| {
            let Some(label) = &diagnostic.label else {
                return diagnostic.code.to_owned();
            };
            let source = &reading.sources[label.source];
            let position = source.position(label.span.start);
            let text = &source.text[source.fit(label.span.clone())];
            let text = text.lines().next().unwrap_or("");
            format!("{} {}:{} {text}", diagnostic.code, position.line, position.column)
        })
        .collect()
}

fn yaml(text: &str) -> Reading {
    read("test.yaml", text.as_bytes(), Format::Yaml, &NoFiles)
}

/// The reading of a policy of which only the interesting lines are written, from line 3 on.
fn lines(lines: &str) -> Reading {
    yaml(&format!("version: 1\nname: test\n{lines}\n"))
}

/// The reading of a rule of which only the interesting keys are written, in line 4 from column 5 on.
fn rule(keys: &str) -> Reading {
    let action = if keys.contains("action:") {
        ""
    } else {
        ", action: allow"
    };
    lines(&format!("rules:\n- {{ name: r, {keys}{action} }}"))
}

fn help(reading: &Reading) -> String {
    reading
        .diagnostics
        .iter()
        .filter_map(|diagnostic| diagnostic.help.clone())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_same_mistake_is_pointed_at_in_every_format() {
    let cases = [
        (
            Format::Yaml,
            "version: 1\nname: test\nrules:\n  - name: web\n    actoin: allow\n",
            "5:5",
        ),
        (
            Format::Toml,
            "version = 1\nname = \"test\"\n\n[[rules]]\nname = \"web\"\nactoin = \"allow\"\n",
            "6:1",
        ),
        (
            Format::Json,
            "{\n  \"version\": 1,\n  \"name\": \"test\",\n  \"rules\": [\n    {\"name\": \"web\", \"actoin\": \"allow\"}\n  ]\n}\n",
            "5:21",
        ),
        (
            Format::Hcl,
            "version = 1\nname = \"test\"\n\nrule \"web\" {\n  actoin = \"allow\"\n}\n",
            "5:3",
        ),
    ];
    for (format, text, place) in cases {
        let reading = read("test", text.as_bytes(), format, &NoFiles);
        let found = found(&reading);
        let unknown = found.iter().find(|found| found.starts_with("unknown-key")).unwrap();
        assert!(
            unknown.starts_with(&format!("unknown-key {place} ")),
            "{format}: {found:?}"
        );
        assert!(unknown.contains("actoin"), "{format}: {found:?}");
        assert!(help(&reading).contains("did you mean `action`?"), "{format}");
        assert!(reading.policy.is_none());
    }
}

#[test]
fn a_value_is_pointed_at_in_every_format() {
    let cases = [
        (
            Format::Yaml,
            "version: 1\nname: t\nsets: {s: {prefixes: [10.0.0.1/8]}}\n",
            "3:23 10.0.0.1/8",
        ),
        (
            Format::Toml,
            "version = 1\nname = \"t\"\nsets.s.prefixes = [\"10.0.0.1/8\"]\n",
            "3:20 \"10.0.0.1/8\"",
        ),
        (
            Format::Json,
            "{\"version\": 1, \"name\": \"t\",\n\"sets\": {\"s\": {\"prefixes\": [\"10.0.0.1/8\"]}}}",
            "2:29 \"10.0.0.1/8\"",
        ),
        (
            Format::Hcl,
            "version = 1\nname = \"t\"\nset \"s\" {\n  prefixes = [\"10.0.0.1/8\"]\n}\n",
            "4:15 \"10.0.0.1/8\"",
        ),
    ];
    for (format, text, place) in cases {
        let reading = read("test", text.as_bytes(), format, &NoFiles);
        assert!(
            found(&reading).contains(&format!("prefix {place}")),
            "{format}: {:?}",
            found(&reading)
        );
        assert!(help(&reading).contains("10.0.0.0/8"), "{format}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let reading =
        lines("moed: block\ndefaults: { egress: block }\nrules:\n- { name: a, action: drop }\n- { action: allow }");
    assert_eq!(
        found(&reading),
        [
            "unknown-key 3:1 moed",
            "value 4:21 block",
            "value 6:22 drop",
            "missing-key 7:3 { action: allow }",
        ]
    );
    let help = help(&reading);
    for mend in ["`mode`", "`deny`", "`block`"] {
        assert!(help.contains(&format!("did you mean {mend}?")), "{help}");
    }
}

#[test]
fn what_could_not_be_read_makes_no_further_mistakes() {
    for (keys, expected) in [
        ("protocol: icpm, icmp_type: 8", "protocol 4:24 icpm"),
        ("cgroup: a.slice, action: accept", "value 4:39 accept"),
        (
            "source: [192.0.2.1, banana, 192.0.2.1], destination: '2001:db8::1', action: block",
            "prefix 4:34 banana",
        ),
    ] {
        let (right, further): (Vec<_>, Vec<_>) = found(&rule(keys)).into_iter().partition(|found| found == expected);
        assert_eq!(right.len(), 1, "{keys}: {further:?}");
        assert!(
            further.iter().all(|found| found.starts_with("repeated 4:22 ")),
            "{keys}: {further:?}"
        );
    }
}

#[test]
fn keys_of_other_languages_are_known() {
    for (key, meant) in [
        ("src: 192.0.2.1", "source"),
        ("dport: 80", "destination_ports"),
        ("port: 80", "destination_ports"),
        ("proto: tcp", "protocol"),
        ("destination_port: 80", "destination_ports"),
        ("Protocol: tcp", "protocol"),
    ] {
        let reading = rule(key);
        assert!(
            help(&reading).contains(&format!("did you mean `{meant}`?")),
            "{key}: {}",
            help(&reading)
        );
    }
    let reading = rule("banana: 1");
    assert!(
        help(&reading).contains("the keys of a rule are name, "),
        "{}",
        help(&reading)
    );
}

#[test]
fn values_of_rules_are_checked() {
    let cases = [
        // Addresses.
        ("source: 10.0.0.1/8", "prefix 4:22 10.0.0.1/8"),
        ("source: 10.0.0.0/33", "prefix 4:22 10.0.0.0/33"),
        ("source: [192.0.2.1, banana]", "prefix 4:34 banana"),
        ("source: '@no such'", "prefix 4:22 '@no such'"),
        ("source: []", "empty-list 4:22 []"),
        ("source: 7", "type 4:22 7"),
        // Ports.
        ("protocol: tcp, destination_ports: 0", "port 4:48 0"),
        ("protocol: tcp, destination_ports: 70000", "port 4:48 70000"),
        ("protocol: tcp, destination_ports: -80", "port 4:48 -80"),
        ("protocol: tcp, destination_ports: 80.5", "type 4:48 80.5"),
        ("protocol: tcp, destination_ports: 0x50", "type 4:48 0x50"),
        ("protocol: tcp, destination_ports: 0o120", "type 4:48 0o120"),
        ("protocol: tcp, destination_ports: 080", "type 4:48 080"),
        ("protocol: tcp, destination_ports: 1e3", "type 4:48 1e3"),
        (
            "protocol: tcp, destination_ports: 99999999999999999999",
            "type 4:48 99999999999999999999",
        ),
        ("protocol: tcp, destination_ports: 9-8", "port 4:48 9-8"),
        ("protocol: tcp, destination_ports: 0-8", "port 4:48 0-8"),
        ("protocol: tcp, destination_ports: http", "port 4:48 http"),
        ("protocol: tcp, destination_ports: [80, true]", "type 4:53 true"),
        (
            "protocol: icmp, destination_ports: 80",
            "ports-without-protocol 4:30 destination_ports: 80",
        ),
        (
            "protocol: 47, source_ports: 80",
            "ports-without-protocol 4:28 source_ports: 80",
        ),
        // ICMP.
        ("protocol: tcp, icmp_type: 8", "icmp-without-protocol 4:29 icmp_type: 8"),
        ("icmp_code: 0", "icmp-without-protocol 4:14 icmp_code: 0"),
        ("protocol: icmp, icmp_type: 256", "icmp 4:41 256"),
        // Others.
        ("protocol: tpc", "protocol 4:24 tpc"),
        ("protocol: 256", "protocol 4:24 256"),
        ("direction: both", "value 4:25 both"),
        ("mode: block", "value 4:20 block"),
        ("priority: -1", "priority 4:24 -1"),
        ("priority: high", "type 4:24 high"),
        (
            "interface: a-very-long-interface",
            "interface 4:25 a-very-long-interface",
        ),
        ("direction: ingress, mac: 02-00", "mac 4:39 02-00"),
        (
            "direction: egress, cgroup: /sys/fs/cgroup/a.slice",
            "cgroup 4:41 /sys/fs/cgroup/a.slice",
        ),
        ("direction: egress, cgroup: ../up", "cgroup 4:41 ../up"),
        ("direction: egress, uid: root", "uid 4:38 root"),
        ("direction: egress, uid: 4294967295", "uid 4:38 4294967295"),
        ("state: fresh", "value 4:21 fresh"),
        ("action: { rate_limit: { packets: 0/s } }", "rate 4:47 0/s"),
        ("action: { rate_limit: { packets: 10 } }", "rate 4:47 10"),
        ("action: { rate_limit: { bytes: fast } }", "rate 4:45 fast"),
        ("action: { rate_limit: { bytes: 0mbit } }", "rate 4:45 0mbit"),
        ("action: { rate_limit: { bytes: 101gbit } }", "rate 4:45 101gbit"),
        ("action: { rate_limit: { packets: 9/s, burst: 0 } }", "rate 4:59 0"),
        (
            "action: { rate_limit: { packets: 9/s, bytes: 9/s } }",
            "rate 4:52 bytes",
        ),
        ("action: { rate_limit: { } }", "rate 4:36 { }"),
        ("action: { rate_limit: { packets: 9/s, per: user } }", "value 4:57 user"),
        ("action: rate_limit", "value 4:22 rate_limit"),
        ("action: { }", "missing-key 4:22 { }"),
    ];
    for (keys, expected) in cases {
        let reading = rule(keys);
        assert_eq!(found(&reading), [expected], "{keys}");
        assert!(reading.policy.is_none(), "{keys}");
        assert!(reading.diagnostics[0].severity == Severity::Error);
    }
}

#[test]
fn what_a_hook_cannot_decide_is_refused() {
    for keys in [
        "cgroup: a.slice",
        "direction: ingress, uid: 0",
        "direction: ingress, gid: 0, action: log",
        "cgroup: a.slice, action: { rate_limit: { packets: 1/s } }",
    ] {
        let found = found(&rule(keys));
        assert!(
            found.len() == 1 && found[0].starts_with("identity-ingress "),
            "{keys}: {found:?}"
        );
    }
    for keys in [
        "direction: ingress, cgroup: a.slice, action: block",
        "direction: egress, cgroup: a.slice",
        "uid: 0, action: block",
    ] {
        assert_eq!(found(&rule(keys)), [""; 0], "{keys}");
    }
    for keys in [
        "mac: '02:00:00:00:00:01'",
        "direction: egress, mac: '02:00:00:00:00:01'",
    ] {
        let found = found(&rule(keys));
        assert!(
            found.len() == 1 && found[0].starts_with("mac-egress "),
            "{keys}: {found:?}"
        );
    }
}

#[test]
fn names_are_there_once_and_free() {
    let reading = lines("rules:\n- { name: a, action: log }\n- { name: a, destination_ports: 1, action: log }");
    assert_eq!(found(&reading), ["duplicate-name 5:11 a"]);
    for name in ["essential", "default", "malformed", "''", "a b", "-a", &"a".repeat(65)] {
        let reading = lines(&format!("rules:\n- {{ name: {name}, action: log }}"));
        assert_eq!(found(&reading).len(), 1, "{name}");
        assert!(found(&reading)[0].starts_with("name 4:11 "), "{name}");
    }
}

#[test]
fn sets_are_defined_used_and_not_empty() {
    let reading =
        lines("sets: { partners: { prefixes: [192.0.2.1] } }\nrules:\n- { name: a, source: '@partner', action: log }");
    assert_eq!(
        found(&reading),
        ["unused-set 3:9 partners", "undefined-set 5:22 '@partner'"]
    );
    assert!(help(&reading).contains("did you mean @partners?"));
    let reading = lines("sets: { none: { prefixes: [] } }\nrules:\n- { name: a, source: '@none', action: log }");
    assert_eq!(found(&reading), ["empty-set 5:22 '@none'"]);
    assert!(reading.policy.is_some(), "a warning is no error");
    let reading = lines("sets: { none: { } }\nrules:\n- { name: a, source: '@none', action: log }");
    assert_eq!(found(&reading), ["missing-key 3:15 { }", "empty-set 5:22 '@none'"]);
    let forgotten = rule("source: partners");
    assert!(help(&forgotten).contains("\"@partners\""), "{}", help(&forgotten));
}

#[test]
fn rules_that_never_match_are_told() {
    let cases = [
        (
            "source: 192.0.2.1, destination: 2001:db8::1",
            "never-matches 4:46 2001:db8::1",
        ),
        ("protocol: icmp, source: '2001:db8::/32'", "never-matches 4:24 icmp"),
        (
            "protocol: icmpv6, destination: 192.0.2.0/24",
            "never-matches 4:24 icmpv6",
        ),
        ("protocol: tcp, destination_ports: [80, 1-100, 90]", "repeated 4:60 90"),
        (
            "action: { rate_limit: { bytes: 9/s, burst: 999 } }",
            "small-burst 4:57 999",
        ),
    ];
    for (keys, expected) in cases {
        assert_eq!(found(&rule(keys)), [expected], "{keys}");
    }
}

#[test]
fn a_rule_behind_one_that_decides_about_all_its_packets_is_told() {
    let pair = |first: &str, second: &str| {
        let reading = lines(&format!("rules:\n- {{ name: a, {first} }}\n- {{ name: b, {second} }}"));
        let found = found(&reading);
        assert!(
            found.iter().all(|found| found.starts_with("shadowed 5:11 b")),
            "{found:?}"
        );
        !found.is_empty()
    };
    assert!(pair("action: allow", "protocol: tcp, action: block"));
    assert!(pair(
        "source: 192.0.2.0/24, action: allow",
        "source: 192.0.2.7, action: allow"
    ));
    assert!(pair(
        "source: [10.0.0.0/8, 192.0.2.0/24], action: allow",
        "source: 192.0.2.7, uid: 7, direction: egress, action: allow"
    ));
    assert!(pair(
        "destination_ports: 1-100, action: block",
        "destination_ports: [22, 80], protocol: tcp, action: allow"
    ));
    assert!(pair(
        "direction: egress, cgroup: a.slice, action: block",
        "direction: egress, cgroup: a.slice/b.scope, action: allow"
    ));
    assert!(
        pair("mode: observe, action: block", "protocol: tcp, action: block"),
        "also what observes decides"
    );
    // These are asked about something.
    assert!(!pair("action: log", "action: allow"), "log goes on");
    assert!(!pair("direction: ingress, action: allow", "action: allow"));
    assert!(!pair(
        "source: 192.0.2.0/25, action: allow",
        "source: 192.0.2.0/24, action: allow"
    ));
    assert!(
        !pair("priority: 200, action: allow", "protocol: tcp, action: block"),
        "the second is asked first"
    );
    assert!(
        !pair("action: allow", "cgroup: a.slice, action: block"),
        "the socket asks on ingress"
    );
    assert!(
        !pair("action: block", "protocol: icmpv6, icmp_type: 134, action: allow"),
        "it names an essential"
    );
    assert!(!pair(
        "direction: ingress, action: block",
        "direction: ingress, state: established, action: allow"
    ));
    assert!(!pair(
        "protocol: tcp, state: new, action: allow",
        "protocol: tcp, action: block"
    ));
}

#[test]
fn under_specific_priorities_are_told_to_have_no_effect() {
    let reading = lines("match: specific\nrules:\n- { name: a, priority: 1, action: log }");
    assert_eq!(found(&reading), ["priority-unused 5:14 priority: 1"]);
}

#[test]
fn keys_that_are_there_twice_are_told_in_every_format() {
    let cases = [
        (Format::Yaml, "version: 1\nname: a\nname: b\n", "duplicate-key 3:1"),
        (
            Format::Json,
            "{\"version\": 1, \"name\": \"a\",\n\"name\": \"b\"}",
            "duplicate-key 2:1",
        ),
        (Format::Toml, "version = 1\nname = \"a\"\nname = \"b\"\n", "syntax 3:1"),
        (Format::Hcl, "version = 1\nname = \"a\"\nname = \"b\"\n", "syntax 3:1"),
    ];
    for (format, text, expected) in cases {
        let found = found(&read("test", text.as_bytes(), format, &NoFiles));
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "{format}: {found:?}"
        );
    }
}

#[test]
fn what_is_no_yaml_toml_json_or_hcl_is_told_with_its_place() {
    let cases = [
        (Format::Yaml, "version: 1\nname: [\n", "syntax"),
        (
            Format::Yaml,
            "version: 1\nrules:\n- { source: @abuse }\n",
            "syntax 3:13 @",
        ),
        (Format::Yaml, "version: 1\n---\nname: b\n", "syntax 2:1"),
        (Format::Yaml, "version: 1\nname: !!str a\n", "syntax 2:7"),
        (Format::Yaml, "- a\n", "type 1:1"),
        (Format::Yaml, "", "empty 1:1"),
        (Format::Yaml, "# nothing\n", "empty 1:1"),
        (Format::Toml, "version = \n", "syntax 1:"),
        (Format::Json, "{\"version\": 1,}", "syntax 1:"),
        (Format::Json, "{\"version\": 1} x", "syntax 1:"),
        (Format::Json, "// no\n{}", "syntax 1:1"),
        (Format::Json, "", "empty 1:1"),
        (Format::Hcl, "version = \n", "syntax 1:"),
        (Format::Hcl, "version = 1\nname = upper(\"a\")\n", "syntax 2:8"),
        (Format::Hcl, "version = 1\nname = \"${x}\"\n", "syntax 2:8"),
        (Format::Hcl, "version = 1\nname = web\n", "syntax 2:8"),
        (Format::Hcl, "rule \"a\" \"b\" {\n}\n", "syntax 1:10"),
        (Format::Hcl, "defaults \"a\" {\n}\n", "syntax 1:10"),
    ];
    for (format, text, expected) in cases {
        let reading = read("test", text.as_bytes(), format, &NoFiles);
        let found = found(&reading);
        assert!(
            found.iter().any(|found| found.starts_with(expected)),
            "{format} {text:?}: {found:?}"
        );
        assert!(reading.policy.is_none());
    }
    let at = yaml("version: 1\nrules:\n- { source: @abuse }\n");
    assert!(help(&at).contains("quotes"), "{}", help(&at));
}

#[test]
fn blocks_of_hcl_are_rules_and_sets() {
    let text = r#"
version = 1
name    = "test"
defaults {
  egress = "deny"
}
set "partners" {
  prefixes = ["192.0.2.0/24"]
}
rule "web" {
  destination_ports = [80, "8000-8999"]
  source            = "@partners"
  action {
    rate_limit {
      packets = "10/s"
    }
  }
}
rules "rest" {
  action = "block"
}
"#;
    let reading = read("test.hcl", text.as_bytes(), Format::Hcl, &NoFiles);
    let policy = reading
        .policy
        .clone()
        .unwrap_or_else(|| panic!("{}", reading.render(false)));
    let names: Vec<&str> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["web", "rest"]);
    assert_eq!(policy.sets["partners"].len(), 1);
}

#[test]
fn a_byte_order_mark_and_carriage_returns_are_nothing() {
    let text = "\u{feff}version: 1\r\nname: test\r\nrules:\r\n- name: a\r\n  acton: log\r\n  action: log\r\n";
    let reading = yaml(text);
    assert_eq!(found(&reading), ["unknown-key 5:3 acton"]);
    for format in Format::ALL {
        let text = write(&enforcer_policy::Policy::allow_all("test"), format).replace('\n', "\r\n");
        let reading = read("test", format!("\u{feff}{text}").as_bytes(), format, &NoFiles);
        assert!(reading.diagnostics.is_empty(), "{format}: {}", reading.render(false));
    }
}

#[test]
fn places_are_counted_in_characters() {
    let reading = lines("rules:\n- { name: a, description: 'grüße 😀', acton: log, action: log }");
    assert_eq!(found(&reading), ["unknown-key 4:38 acton"]);
}

#[test]
fn bytes_that_are_no_text_are_told_with_their_line() {
    for (bytes, part) in [
        (&b"version: 1\nname: \xff\n"[..], "test.yaml:2: the text is not UTF-8"),
        (
            b"version: 1\n\nname: a\0b\n",
            "test.yaml:3: the text has a NUL character",
        ),
        (b"\xff\xfev\0e\0", "the text is UTF-16"),
    ] {
        let reading = read("test.yaml", bytes, Format::Yaml, &NoFiles);
        assert!(reading.render(false).contains(part), "{}", reading.render(false));
        assert!(reading.policy.is_none());
    }
}

#[test]
fn deep_nesting_ends_soon_in_every_format() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    let cases = [
        (Format::Yaml, deep("[", "]")),
        (Format::Yaml, deep("{a: ", "}")),
        (
            Format::Yaml,
            (0..5_000).map(|depth| " ".repeat(depth) + "a:\n").collect(),
        ),
        (Format::Json, deep("[", "]")),
        (Format::Json, deep("{\"a\":", "}")),
        (Format::Toml, format!("a = {}", deep("[", "]"))),
        (Format::Toml, format!("{} = 1", vec!["a"; 20_000].join("."))),
        (Format::Toml, format!("[{}]", vec!["a"; 20_000].join("."))),
        (Format::Hcl, format!("a = {}\n", deep("[", "]"))),
        (Format::Hcl, format!("a = {}1\n", "-".repeat(100_000))),
        (Format::Hcl, format!("a = {}\n", deep("(", ")"))),
        (Format::Hcl, "a {\n".repeat(20_000)),
        (Format::Hcl, format!("a = \"{}\"\n", deep("${\"", "\"}"))),
        (Format::Hcl, format!("a = {}1\n", "1 + ".repeat(20_000))),
    ];
    for (format, text) in cases {
        let reading = read("test", text.as_bytes(), format, &NoFiles);
        assert!(reading.policy.is_none(), "{format}");
        assert!(
            reading.render(false).len() < 20_000,
            "{format}: the message is as long as the file"
        );
    }
}

#[test]
fn anchors_are_copied_and_do_not_grow_without_bounds() {
    let reading = lines(
        "sets:\n  a: { prefixes: &list [192.0.2.1, 192.0.2.2] }\n  b: { prefixes: *list }\nrules:\n- { name: r, source: ['@a', '@b'], action: log }",
    );
    assert!(reading.diagnostics.is_empty(), "{}", reading.render(false));
    assert_eq!(reading.policy.unwrap().sets["b"].len(), 2);
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..20 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{inner}]").unwrap();
    }
    let reading = yaml(&bomb);
    assert!(
        reading.diagnostics[0].message.contains("anchors and aliases"),
        "{}",
        reading.render(false)
    );
    let reading = yaml("a: &a [*a]\n");
    assert!(found(&reading)[0].starts_with("syntax 1:"), "{:?}", found(&reading));
}

#[test]
fn a_flood_of_mistakes_is_cut() {
    let rules: String = (0..5000).map(|_| "- { nmae: a, action: log }\n").collect();
    let reading = lines(&format!("rules:\n{rules}"));
    assert_eq!(reading.diagnostics.len(), MAX_DIAGNOSTICS);
    assert!(reading.left_out > 4000);
    assert!(reading.render(false).contains(" more\n"));
}

#[test]
fn ten_thousand_rules_are_read_in_every_format() {
    let mut policy = enforcer_policy::Policy::allow_all("large");
    policy.rules = (0..10_000_u32)
        .map(|number| {
            let mut rule =
                enforcer_policy::model::Rule::new(&format!("r{number}"), enforcer_policy::model::Action::Block);
            rule.source =
                vec![enforcer_policy::text::parse_address(&std::net::Ipv4Addr::from(number << 8).to_string()).unwrap()];
            rule
        })
        .collect();
    for format in Format::ALL {
        let text = write(&policy, format);
        let reading = read("large", text.as_bytes(), format, &NoFiles);
        assert_eq!(found(&reading).len(), 1, "{format}");
        assert!(found(&reading)[0].starts_with("not-compared "), "{format}");
        assert_eq!(reading.policy.as_ref(), Some(&policy), "{format}");
    }
}

/// Files that stand in the test.
struct InMemory(&'static [(&'static str, &'static [u8])]);

impl Files for InMemory {
    fn read(&self, file: &str) -> (String, io::Result<Vec<u8>>) {
        let content = self.0.iter().find(|(name, _)| *name == file);
        let content = content.map(|(_, bytes)| bytes.to_vec());
        (
            format!("dir/{file}"),
            content.ok_or_else(|| io::ErrorKind::NotFound.into()),
        )
    }
}

#[test]
fn the_files_of_sets_are_read_and_pointed_into() {
    const POLICY: &str = "version: 1\nname: t\nsets: { s: { prefixes: [192.0.2.1], file: s.txt } }
rules: [{ name: r, source: '@s', action: block }]\n";
    let with = |content: &'static [u8]| {
        let files: &'static [(&str, &[u8])] = Box::leak(Box::new([("s.txt", content)]));
        read("t.yaml", POLICY.as_bytes(), Format::Yaml, &InMemory(files))
    };
    let reading = with(b"# two\n198.51.100.0/24 # a\r\n\n2001:db8::/32\n");
    assert!(reading.diagnostics.is_empty());
    let policy = reading.policy.unwrap();
    assert_eq!(policy.sets["s"].len(), 3);
    assert_eq!(policy.self_contained().sets["s"].prefixes.len(), 3);

    let reading = with(b"198.51.100.0/24\n  banana # no\n10.0.0.300\n");
    assert_eq!(found(&reading), ["prefix 2:3 banana", "prefix 3:1 10.0.0.300"]);
    assert!(
        reading.render(false).contains("dir/s.txt:2:3"),
        "{}",
        reading.render(false)
    );
    assert!(reading.policy.is_none());

    let reading = with(b"198.51.100.7/24\n198.51.100.9/24\n");
    assert_eq!(found(&reading), ["host-bits 1:1 198.51.100.7/24"]);
    assert!(
        reading.render(false).contains("1 more lines"),
        "{}",
        reading.render(false)
    );
    assert!(reading.policy.is_some());

    let reading = with(b"198.51.100.0/24\n\xff\xfe\n");
    assert!(found(&reading)[0].starts_with("prefix 2:1 "), "{:?}", found(&reading));

    let reading = read("t.yaml", POLICY.as_bytes(), Format::Yaml, &InMemory(&[]));
    assert_eq!(found(&reading), ["set-file 3:43 s.txt"]);
    let reading = read("t.yaml", POLICY.as_bytes(), Format::Yaml, &NoFiles);
    assert!(
        reading.render(false).contains("write the prefixes into it"),
        "{}",
        reading.render(false)
    );
}

#[test]
fn files_of_sets_lie_beside_the_policy_and_what_never_ends_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    let policy = |file: &str| {
        format!(
            "version: 1\nname: t\nsets: {{ s: {{ file: {file} }} }}\nrules: [{{ name: r, source: '@s', action: log }}]\n"
        )
    };
    fs::write(folder.path().join("s.txt"), "192.0.2.1\n").unwrap();
    fs::write(&path, policy("s.txt")).unwrap();
    assert!(read_path(&path).diagnostics.is_empty());
    fs::write(&path, policy("/dev/zero")).unwrap();
    assert!(
        read_path(&path)
            .render(false)
            .contains("neither a file nor a link to one")
    );
}

#[test]
fn a_policy_that_cannot_be_read_says_why() {
    for (path, part) in [
        ("/no/such.yaml", "cannot be read: No such file"),
        ("/proc/self/status", "the extension says no format"),
        ("/dev", "/dev is a folder, and no policy"),
    ] {
        let text = read_path(Path::new(path)).render(false);
        assert!(text.contains(part) && text.contains("help: "), "{text}");
    }
}

#[test]
fn diagnostics_look_like_those_of_rustc() {
    let reading =
        lines("rules:\n  - name: web\n    destination_ports: [80, 443]\n    actoin: allow\n    action: allow");
    let expected = "\
error[unknown-key]: a rule has no key `actoin`
 --> test.yaml:6:5
  |
6 |     actoin: allow
  |     ^^^^^^
  |
  = help: did you mean `action`?

test.yaml: 1 error; this policy cannot be used
";
    assert_eq!(reading.check_text(false), expected);
    assert!(reading.check_text(true).contains("\u{1b}["), "a terminal has colours");
    let json = serde_json::to_value(reading.check_json()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "valid": false, "errors": 1, "warnings": 0, "left_out": 0,
            "diagnostics": [{
                "severity": "error", "code": "unknown-key", "message": "a rule has no key `actoin`",
                "file": "test.yaml", "line": 6, "column": 5, "end_line": 6, "end_column": 11,
                "help": "did you mean `action`?"
            }]
        })
    );
}

#[test]
fn what_a_file_says_does_not_reach_the_terminal_as_a_command() {
    let reading = lines("rules:\n- { name: \"\\e[31mred\", \"\\e[2J\": 1, action: \"\\a\" }");
    let text = reading.render(false);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
}
