//! What `check`, `show` and `diff` print.

use enforcer_policy::{
    Format, NoFiles, Policy,
    diff::{self, Kind, diff},
    formats::write,
    read, show, testing,
};
use proptest::prelude::*;

const OLD: &str = "version: 1
name: web
defaults: { egress: deny }
sets: { partners: { prefixes: [192.0.2.0/24, 198.51.100.7] } }
rules:
  - { name: dns, direction: egress, protocol: udp, destination_ports: 53, action: allow }
  - { name: web, direction: ingress, protocol: tcp, destination_ports: [80, 443], action: allow }
  - { name: partners, source: '@partners', action: { rate_limit: { bytes: 10mbit, per: source } } }
  - { name: old, action: log }
";

const NEW: &str = "version: 1
name: web
mode: block
defaults: { egress: deny, malformed: allow }
sets: { partners: { prefixes: [198.51.100.7, '2001:db8::/32'] } }
rules:
  - { name: partners, source: '@partners', action: { rate_limit: { bytes: 10mbit, per: source } } }
  - { name: dns, description: Names, direction: egress, protocol: udp, destination_ports: 53, action: allow }
  - { name: web, direction: ingress, protocol: tcp, destination_ports: 443, action: block }
  - { name: time, direction: egress, protocol: udp, destination_ports: 123, action: allow }
";

fn policy(text: &str) -> Policy {
    let reading = read("web.yaml", text.as_bytes(), Format::Yaml, &NoFiles);
    reading
        .policy
        .clone()
        .unwrap_or_else(|| panic!("{}", reading.render(false)))
}

#[test]
fn a_difference_is_what_a_packet_notices() {
    let diff = diff(&policy(OLD), &policy(NEW));
    let expected = "\
~ defaults.malformed: drop → allow
~ mode: observe → block
~ @partners: 1 prefix more, 1 fewer
    + 2001:db8::/32
    - 192.0.2.0/24
~ partners: asked as number 1, was 3
~ web: changed
    action: allow → block
    destination_ports: [80,443] → 443
+ time: new, asked as number 4
- old: gone, was asked as number 4
";
    assert_eq!(diff::text(&diff), expected);
    let json = serde_json::to_value(&diff).unwrap();
    assert_eq!(
        json["settings"][1],
        serde_json::json!({"key": "mode", "old": "observe", "new": "block"})
    );
    assert_eq!(json["sets"][0]["added"], serde_json::json!(["2001:db8::/32"]));
    assert_eq!(
        json["rules"][0],
        serde_json::json!({"name": "partners", "kind": "moved", "place": [3, 1]})
    );
    assert_eq!(json["rules"][3]["kind"], "removed");
}

#[test]
fn comments_descriptions_and_priorities_that_change_no_order_are_no_difference() {
    let old = policy(OLD);
    let mut new = old.clone();
    new.rules[0].description = Some("something else".into());
    new.rules[0].priority = 7;
    assert!(diff(&old, &new).is_empty());
    assert_eq!(diff::text(&diff(&old, &new)), "no difference for any packet\n");
    // The same prefixes in another order, and from a file.
    let set = new.sets.get_mut("partners").unwrap();
    set.prefixes.reverse();
    set.from_file = set.prefixes.split_off(1);
    assert!(diff(&old, &new).is_empty());
}

#[test]
fn as_few_rules_as_possible_are_said_to_have_moved() {
    let old = policy(OLD);
    let mut new = old.clone();
    let last = new.rules.pop().unwrap();
    new.rules.insert(0, last);
    let diff = diff(&old, &new);
    let moved: Vec<&str> = diff.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(moved, ["old"]);
    assert_eq!(diff.rules[0].kind, Kind::Moved);
}

#[test]
fn show_has_the_rules_in_the_order_in_which_they_are_asked() {
    let mut shown = policy(OLD);
    shown.rules[2].priority = 1;
    let expected = "\
policy web, 4 rules, 1 set of 2 prefixes
mode  observe: nothing is dropped
@partners  2 prefixes

rules, by priority, then as in the file:
      essential  allow     loopback, ARP, neighbour discovery, MLD, DHCP client, ICMP errors of flows
   1  partners   limit     from @partners; 1250000 bytes/s per source, burst 125000
   2  dns        allow     egress, udp, destination_ports 53
   3  web        allow     ingress, tcp, destination_ports [80, 443]
   4  old        log       anything

default  ingress allow, egress block, malformed block
";
    assert_eq!(show::text(&shown), expected);
    let json = show::json(&shown);
    assert_eq!(json["order"], serde_json::json!(["partners", "dns", "web", "old"]));
    let again: Policy = serde_json::from_value(json["policy"].clone()).unwrap();
    assert_eq!(again, shown);
}

#[test]
fn check_sums_up_in_a_line() {
    let reading = read("web.yaml", OLD.as_bytes(), Format::Yaml, &NoFiles);
    assert_eq!(
        reading.check_text(false),
        "web.yaml: policy web, 4 rules, 1 set of 2 prefixes\n"
    );
    let json = serde_json::to_value(reading.check_json()).unwrap();
    assert_eq!((&json["valid"], &json["policy"]["prefixes"]), (&true.into(), &2.into()));
    let reading = read(
        "web.yaml",
        OLD.replace("'@partners'", "10.0.0.0/8").as_bytes(),
        Format::Yaml,
        &NoFiles,
    );
    assert!(
        reading.check_text(false).ends_with("1 set of 2 prefixes; 1 warning\n"),
        "{}",
        reading.check_text(false)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_policy_does_not_differ_from_itself(policy in testing::policy(8)) {
        let text = write(&policy, Format::Yaml);
        let again = read("again.yaml", text.as_bytes(), Format::Yaml, &NoFiles).policy.unwrap();
        prop_assert!(diff(&policy, &again).is_empty());
        show::text(&policy);
    }

    #[test]
    fn what_is_added_one_way_is_removed_the_other(old in testing::policy(5), new in testing::policy(5)) {
        let (forth, back) = (diff(&old, &new), diff(&new, &old));
        let count = |diff: &diff::Diff, kind| diff.rules.iter().filter(|rule| rule.kind == kind).count();
        prop_assert_eq!(count(&forth, Kind::Added), count(&back, Kind::Removed));
        prop_assert_eq!(count(&forth, Kind::Removed), count(&back, Kind::Added));
        prop_assert_eq!(forth.settings.len(), back.settings.len());
    }
}
