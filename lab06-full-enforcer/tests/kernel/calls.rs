//! `connect` and `sendmsg` are refused where their packets would be blocked whatever they look like (A2).

use lab06_full_enforcer::{
    compile::Capacities,
    local::{LocalPrefixes, Prefixes, namespace_cookie},
    object,
};
use testbed::{Host, harness::falls_back, traffic::Server};

use crate::{
    lab::{AT_CALLS, AT_CGROUP, Lab, wait_until},
    sender::order,
};

testbed::listed_tests![
    a_call_whose_packets_would_be_blocked_is_refused_at_once,
    what_depends_on_more_than_the_destination_is_decided_by_its_packets,
    datagrams_that_may_be_answers_are_decided_by_their_packets,
    the_host_itself_is_never_refused,
    what_a_socket_sends_to_many_by_the_loopback_interface_is_never_refused,
    all_of_many_addresses_can_be_exchanged_for_others,
    calls_of_other_network_namespaces_are_left_to_packets,
    in_observe_mode_and_without_the_hooks_no_call_is_refused,
];

/// Nothing goes out but to port 7, and nothing comes in but answers.
const STRICT: &str = "
version: 1
name: strict
mode: block
defaults: { ingress: deny, egress: deny }
rules:
  - { name: echo, direction: egress, protocol: tcp, destination_ports: 7, action: allow }
  - { name: telnet, direction: egress, protocol: tcp, destination_ports: 23, action: block }
";

/// As [`AT_CALLS`], with datagrams that belong to no flow.
const WITHOUT_FLOWS: [&str; 4] = ["--no-xdp", "--no-tc", "--max-flows", "0"];

/// What a connection comes to that is let through to where nobody listens.
const NOBODY: &str = "Connection refused (os error 111)";

/// Whether this kernel tells network namespaces apart; without, no calls are refused.
fn refuses_calls() -> bool {
    let refuses = namespace_cookie().is_ok();
    if !refuses {
        falls_back("calls are left to the hooks on packets: no SO_NETNS_COOKIE before Linux 5.14");
    }
    refuses
}

/// Whether the enforcer says of a connection from here that it is refused as a call.
fn is_explained_as_refused(lab: &Lab, destination: &str, port: &str) -> bool {
    let source = if destination.contains(':') {
        "2001:db8::1"
    } else {
        "192.0.2.1"
    };
    let packet = ["--src", source, "--dst", destination, "--proto", "tcp", "--dport", port];
    let explain = ["policy", "explain", "--direction", "egress", "--json"];
    let told = lab.json(&[&explain[..], &packet].concat());
    told["connect_is_refused"].as_bool().unwrap()
}

/// What a connection that is blocked comes to.
fn blocked() -> &'static str {
    if refuses_calls() { "denied" } else { "no answer" }
}

fn a_call_whose_packets_would_be_blocked_is_refused_at_once() {
    let lab = Lab::new();
    let _enforcer = lab.enforce(&lab.file("policy.yaml", STRICT), &WITHOUT_FLOWS);
    let _echo = Server::tcp(&lab.client.host, 7).unwrap();
    let (v4, v6) = (lab.client.ipv4, lab.client.ipv6);
    let told = order(
        &lab.server.host,
        &lab.cgroup,
        [
            format!("tcp {v4}:7"),
            format!("tcp [{v6}]:7"),
            format!("tcp {v4}:80"),
            format!("tcp [{v6}]:80"),
            format!("tcp [::ffff:{v4}]:80"),
            format!("tcp {v4}:23"),
            format!("udp {v4}:514"),
            format!("udp [{v6}]:514"),
            format!("udp [::ffff:{v4}]:514"),
        ],
    );
    let no = blocked();
    assert_eq!(
        told,
        ["connected", "connected", no, no, no, no, "denied", "denied", "denied"]
    );
    // `explain` has said so.
    for (destination, port, is_refused) in [
        (v4.to_string(), "7", false),
        (v4.to_string(), "80", true),
        (v6.to_string(), "80", true),
        (v4.to_string(), "23", true),
    ] {
        let is_refused = is_refused && refuses_calls();
        assert_eq!(is_explained_as_refused(&lab, &destination, port), is_refused, "{port}");
    }
    if !refuses_calls() {
        return;
    }
    // Each was refused once, as a call, and no packet was made of it.
    for (hook, reason, calls) in [
        ("connect4", "default", 1),
        ("connect4", "rule", 1),
        ("connect6", "default", 2),
        // A mapped address is sent to by the functions of IPv4.
        ("sendmsg4", "default", 2),
        ("sendmsg6", "default", 1),
    ] {
        assert_eq!(lab.counted_at(hook, reason), [0, 0, calls], "{hook} {reason}");
    }
    assert_eq!(lab.counted("telnet"), [0, 0, 1]);
    assert_eq!(lab.counted_at("cgroup-egress", "default")[2], 0);
}

fn what_depends_on_more_than_the_destination_is_decided_by_its_packets() {
    let lab = Lab::new();
    let policy = |rule: &str| {
        STRICT.replace(
            "rules:",
            &format!("rules:\n  - {{ name: first, direction: egress, {rule} }}"),
        )
    };
    // With each of these before the others, a packet to port 80 may pass, or is counted.
    let rules = [
        "source_ports: 1, action: allow",
        "source: 198.51.100.1, action: allow",
        "uid: 4711, action: allow",
        "interface: eth7, action: allow",
        "destination_ports: 80, action: log",
        "destination_ports: 80, mode: observe, action: block",
    ];
    let file = |rule: &str| lab.file("policy.yaml", &policy(rule));
    let _enforcer = lab.enforce(&file(rules[0]), &AT_CALLS);
    for rule in rules {
        lab.done(&["policy", "apply", file(rule).to_str().unwrap()]);
        let before = lab.counted_at("connect4", "default");
        let told = order(&lab.server.host, &lab.cgroup, [format!("tcp {}:80", lab.client.ipv4)]);
        let outcome = if rule.contains("observe") { NOBODY } else { "no answer" };
        assert_eq!(told, [outcome], "{rule}");
        assert_eq!(lab.counted_at("connect4", "default"), before, "{rule}");
        assert!(
            !is_explained_as_refused(&lab, &lab.client.ipv4.to_string(), "80"),
            "{rule}"
        );
    }
    assert!(lab.counted_at("cgroup-egress", "default")[2] > 0);
    // What blocks by more than the destination comes after, and is not asked.
    for rule in ["source_ports: 1, action: block", "uid: 4711, action: block"] {
        lab.done(&["policy", "apply", file(rule).to_str().unwrap()]);
        let told = order(&lab.server.host, &lab.cgroup, [format!("tcp {}:80", lab.client.ipv4)]);
        assert_eq!(told, [blocked()], "{rule}");
    }
}

fn datagrams_that_may_be_answers_are_decided_by_their_packets() {
    let lab = Lab::new();
    let _enforcer = lab.enforce(&lab.file("policy.yaml", STRICT), &AT_CALLS);
    let told = order(&lab.server.host, &lab.cgroup, [format!("udp {}:514", lab.client.ipv4)]);
    assert_eq!(told, ["denied"]);
    assert_eq!(lab.counted_at("sendmsg4", "default"), [0; 3]);
    assert_eq!(lab.counted_at("cgroup-egress", "default"), [0, 0, 1]);
}

fn the_host_itself_is_never_refused() {
    let lab = Lab::new();
    let _enforcer = lab.enforce(&lab.file("policy.yaml", STRICT), &AT_CALLS);
    let own = lab.server.ipv4;
    let goals = [
        "tcp 127.0.0.1:9".to_owned(),
        "tcp 127.9.9.9:9".to_owned(),
        "tcp 0.0.0.0:9".to_owned(),
        "tcp [::1]:9".to_owned(),
        "tcp [::]:9".to_owned(),
        format!("tcp {own}:9"),
        format!("tcp [{}]:9", lab.server.ipv6),
        format!("tcp [::ffff:{own}]:9"),
    ];
    assert_eq!(order(&lab.server.host, &lab.cgroup, goals), [NOBODY; 8]);

    // Addresses come and go.
    let other = Host::new("other").unwrap();
    let link = other.join(&lab.server.host).unwrap();
    let goal = || {
        [
            format!("tcp {}:9", link.right.ipv4),
            format!("tcp [{}]:9", link.right.ipv6),
        ]
    };
    wait_until("the new addresses are known", || {
        order(&lab.server.host, &lab.cgroup, goal()) == [NOBODY; 2]
    });
}

fn what_a_socket_sends_to_many_by_the_loopback_interface_is_never_refused() {
    let lab = Lab::new();
    let _enforcer = lab.enforce(&lab.file("policy.yaml", STRICT), &WITHOUT_FLOWS);
    let goals = ["by-lo 239.1.2.3:5000", "by-lo 255.255.255.255:5000"];
    let told = order(&lab.server.host, &lab.cgroup, goals.map(str::to_owned));
    assert_eq!(told, ["heard"; 2]);
    // By another interface it is blocked, as a packet.
    let told = order(&lab.server.host, &lab.cgroup, ["udp [ff15::1]:5000".to_owned()]);
    assert_eq!(told, ["denied"]);
    assert_eq!(lab.counted_at("sendmsg4", "default"), [0; 3]);
    assert_eq!(lab.counted_at("sendmsg6", "default"), [0; 3]);
}

fn all_of_many_addresses_can_be_exchanged_for_others() {
    let mut ebpf = object::load(&Capacities::LEAST, true).unwrap();
    let mut local = LocalPrefixes::take(&mut ebpf).unwrap();
    // Together they are more than the table holds.
    let addresses = |network: u8| -> Prefixes {
        let hosts = (0..3000_u16).map(u16::to_be_bytes);
        let hosts = hosts.map(|[high, low]| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, network, high, low]);
        hosts.map(|octets| (128, octets)).collect()
    };
    for network in [1, 2, 1] {
        local.set(&addresses(network)).unwrap();
    }
}

fn calls_of_other_network_namespaces_are_left_to_packets() {
    let lab = Lab::new();
    let _enforcer = lab.enforce(&lab.file("policy.yaml", STRICT), &AT_CALLS);
    // Nothing is known of what is local there.
    let told = order(
        &lab.client.host,
        &lab.cgroup,
        [format!("tcp {}:80", lab.server.ipv4), "tcp 127.0.0.1:9".to_owned()],
    );
    assert_eq!(told, ["no answer", NOBODY]);
    assert_eq!(lab.counted_at("connect4", "default"), [0; 3]);
}

fn in_observe_mode_and_without_the_hooks_no_call_is_refused() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", STRICT);
    let goal = || [format!("tcp {}:80", lab.client.ipv4)];
    {
        let _enforcer = lab.enforce(&policy, &AT_CALLS);
        lab.done(&["mode", "observe"]);
        let told = order(&lab.server.host, &lab.cgroup, goal());
        assert_eq!(told, [NOBODY]);
        assert!(lab.counted_at("cgroup-egress", "default")[1] > 0);
        assert!(!is_explained_as_refused(&lab, &lab.client.ipv4.to_string(), "80"));
    }
    let _enforcer = lab.enforce(&policy, &AT_CGROUP);
    assert!(!is_explained_as_refused(&lab, &lab.client.ipv4.to_string(), "80"));
    assert_eq!(order(&lab.server.host, &lab.cgroup, goal()), ["no answer"]);
    let status = lab.json(&["status", "--json"]);
    let hooks = status["hooks"].as_array().unwrap();
    assert!(hooks.iter().all(|hook| hook["hook"] != "connect4"), "{status:#}");
}
