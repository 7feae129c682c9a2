//! Real traffic under a running enforcer (A3, A11, A13, A9, F13, N5, P7, Z2, Z4).

use std::{
    io::Write as _,
    net::UdpSocket,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use testbed::{
    harness::falls_back,
    patience,
    traffic::{self, Connection, Server},
};

use crate::{
    lab::{AT_INTERFACE, Lab, PATIENCE, wait_until},
    sender::order,
};

testbed::listed_tests![
    what_comes_in_is_observed_then_blocked_then_allowed_by_another_policy,
    what_goes_out_of_the_cgroup_is_decided_and_nothing_else,
    a_strict_policy_lets_only_what_it_names_pass,
    counters_survive_a_new_policy_by_the_names_of_rules,
    policies_are_exchanged_under_traffic_without_a_packet_lost,
    what_stops_the_enforcer_detaches_it,
];

/// How long a connection that is blocked is waited for: shorter than TCP's first second, so that one knock is one packet.
const KNOCK: Duration = Duration::from_millis(700);

const NO_TELNET: &str = "
version: 1
name: no-telnet
rules:
  - { name: telnet, direction: ingress, protocol: tcp, destination_ports: 23, action: block }
";

fn knock(lab: &Lab, port: u16) -> Connection {
    let target = (lab.server.ipv4, port).into();
    traffic::try_connect(&lab.client.host, target, KNOCK).unwrap()
}

fn what_comes_in_is_observed_then_blocked_then_allowed_by_another_policy() {
    let lab = Lab::new();
    let _telnet = Server::tcp(&lab.server.host, 23).unwrap();
    let _echo = Server::tcp(&lab.server.host, 7).unwrap();
    let policy = lab.file("policy.yaml", NO_TELNET);
    let _enforcer = lab.enforce(&policy, &AT_INTERFACE);

    // Observe is the default.
    assert_eq!(knock(&lab, 23), Connection::Connected);
    let [passed, observed, dropped] = lab.counted("telnet");
    assert!(
        (passed, dropped) == (0, 0) && observed > 0,
        "{:?}",
        (passed, observed, dropped)
    );

    assert_eq!(lab.json(&["mode", "toggle", "--json"])["mode"], "block");
    assert_eq!(knock(&lab, 23), Connection::TimedOut);
    assert_eq!(knock(&lab, 7), Connection::Connected);
    assert!(lab.counted("telnet")[2] > 0);

    lab.done(&["mode", "observe"]);
    assert_eq!(knock(&lab, 23), Connection::Connected);

    // The next policy has a mode of its own.
    let other = NO_TELNET
        .replace("23", "7")
        .replace("name: no-telnet", "name: no-echo\nmode: block");
    let other = lab.file("other.yaml", &other);
    lab.done(&["policy", "apply", other.to_str().unwrap()]);
    assert_eq!(knock(&lab, 23), Connection::Connected);
    assert_eq!(knock(&lab, 7), Connection::TimedOut);
    let mode = lab.json(&["mode", "--json"]);
    assert_eq!((&mode["mode"], &mode["set_by"]), (&"block".into(), &"policy".into()));
    if lab.json(&["status", "--json"])["hooks"][0]["attached_by"] == "clsact" {
        falls_back("clsact: no TCX before Linux 6.6");
    }
}

fn what_goes_out_of_the_cgroup_is_decided_and_nothing_else() {
    let lab = Lab::new();
    let policy = lab.file(
        "policy.yaml",
        "
version: 1
name: no-syslog
mode: block
rules:
  - { name: syslog, direction: egress, protocol: udp, destination_ports: 514, action: block }
",
    );
    let _enforcer = lab.enforce(&policy, &[]);
    let (v4, v6) = (lab.client.ipv4, lab.client.ipv6);
    let orders = || {
        [
            format!("udp {v4}:514"),
            format!("udp [{v6}]:514"),
            format!("udp {v4}:515"),
        ]
    };
    assert_eq!(
        order(&lab.server.host, &lab.cgroup, orders()),
        ["denied", "denied", "sent"]
    );
    assert_eq!(lab.counted("syslog"), [0, 0, 2]);
    let below = lab.cgroup.child("below").unwrap();
    assert_eq!(order(&lab.server.host, &below, orders()), ["denied", "denied", "sent"]);
    let other = testbed::Cgroup::new("other").unwrap();
    assert_eq!(order(&lab.server.host, &other, orders()), ["sent", "sent", "sent"]);
    assert_eq!(lab.counted("syslog"), [0, 0, 4]);

    lab.done(&["mode", "observe"]);
    assert_eq!(order(&lab.server.host, &lab.cgroup, orders()), ["sent", "sent", "sent"]);
    assert_eq!(lab.counted("syslog"), [0, 2, 4]);

    // What a host says to itself is essential.
    let to_itself = || [format!("udp {}:514", lab.server.ipv4), "udp 127.0.0.1:514".into()];
    lab.done(&["mode", "block"]);
    assert_eq!(order(&lab.server.host, &lab.cgroup, to_itself()), ["sent", "sent"]);
}

fn a_strict_policy_lets_only_what_it_names_pass() {
    let lab = Lab::new();
    let _web = Server::tcp(&lab.server.host, 80).unwrap();
    let _echo = Server::tcp(&lab.server.host, 7).unwrap();
    let policy = lab.file(
        "policy.yaml",
        "
version: 1
name: strict
mode: block
defaults: { ingress: deny }
rules:
  - { name: web, direction: ingress, protocol: tcp, destination_ports: [80, 443], action: allow }
",
    );
    let _enforcer = lab.enforce(&policy, &AT_INTERFACE);
    assert_eq!(knock(&lab, 80), Connection::Connected);
    assert_eq!(knock(&lab, 7), Connection::TimedOut);
    // IPv6 needs neighbour discovery, which is essential; so is ARP, without which the above would not have worked.
    let by_ipv6 = |port| {
        let target = (lab.server.ipv6, port).into();
        traffic::try_connect(&lab.client.host, target, PATIENCE.min(KNOCK)).unwrap()
    };
    assert_eq!(by_ipv6(80), Connection::Connected);
    assert_eq!(by_ipv6(7), Connection::TimedOut);
    let stats = lab.json(&["stats", "--json"]);
    let reasons = stats["reasons"].as_array().unwrap();
    let of = |reason: &str| {
        let is_it = |line: &&serde_json::Value| line["reason"] == reason && line["hook"] == "tc-ingress";
        reasons.iter().find(is_it).unwrap()
    };
    assert!(of("default")["dropped"]["packets"].as_u64().unwrap() >= 2, "{stats:#}");
}

fn counters_survive_a_new_policy_by_the_names_of_rules() {
    let lab = Lab::new();
    let _telnet = Server::tcp(&lab.server.host, 23).unwrap();
    let policy = lab.file("policy.yaml", NO_TELNET);
    let _enforcer = lab.enforce(&policy, &AT_INTERFACE);
    assert_eq!(knock(&lab, 23), Connection::Connected);
    // What belongs to the connection goes on for a moment.
    wait_until("the connection is over", || {
        let before = lab.counted("telnet");
        thread::sleep(Duration::from_millis(100));
        before == lab.counted("telnet")
    });
    let before = lab.counted("telnet");
    assert!(before[1] > 0);

    // In another place, beside others, with another condition.
    let other = lab.file(
        "other.yaml",
        "
version: 1
name: other
rules:
  - { name: before, source: 198.51.100.0/24, action: block }
  - { name: telnet, source: 198.51.100.1, action: allow }
",
    );
    lab.done(&["policy", "apply", other.to_str().unwrap()]);
    assert_eq!(lab.counted("telnet"), before);
    assert_eq!(lab.counted("before"), [0, 0, 0]);

    // Gone for a while, and back.
    let none = lab.file("none.yaml", "version: 1\nname: none\n");
    lab.done(&["policy", "apply", none.to_str().unwrap()]);
    assert_eq!(lab.counted("telnet"), before);
    lab.done(&["policy", "apply", policy.to_str().unwrap()]);
    assert_eq!(lab.counted("telnet"), before);
    assert_eq!(lab.json(&["status", "--json"])["applied"], 4);
}

fn policies_are_exchanged_under_traffic_without_a_packet_lost() {
    let lab = Lab::new();
    let echo = Server::udp(&lab.server.host, 7).unwrap();
    let silent = lab.server.host.run(|| UdpSocket::bind((lab.server.ipv4, 9))).unwrap();
    silent.set_nonblocking(true).unwrap();
    // Either allows port 7, in other words; about port 9 they do not agree.
    let policies = [
        lab.file(
            "a.yaml",
            "
version: 1
name: a
mode: block
defaults: { ingress: deny }
rules:
  - { name: echo-a, direction: ingress, protocol: udp, destination_ports: [7, 100], action: allow }
  - { name: discard-a, direction: ingress, protocol: udp, destination_ports: 9, action: block }
",
        ),
        lab.file(
            "b.json",
            r#"{"version": 1, "name": "b", "mode": "block", "defaults": {"ingress": "deny"}, "rules": [
            {"name": "other", "direction": "ingress", "protocol": "tcp", "action": "allow"},
            {"name": "discard-b", "direction": "ingress", "protocol": "udp", "destination_ports": 9, "action": "allow"},
            {"name": "echo-b", "direction": "ingress", "destination": "0.0.0.0/0", "protocol": "udp", "action": "allow"}
        ]}"#,
        ),
    ];
    let _enforcer = lab.enforce(&policies[0], &AT_INTERFACE);
    let stop = AtomicBool::new(false);
    let to = |port: u16| (lab.server.ipv4, port).into();
    let arrived = AtomicU64::new(0);
    let receive = || arrived.fetch_add(waiting(&silent), Ordering::Relaxed);
    let (sent, received, to_9) = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let (mut sent, mut received, mut to_9) = (0, 0, 0);
            while !stop.load(Ordering::Relaxed) {
                let exchange = traffic::udp_exchange(&lab.client.host, to(7), 20, PATIENCE).unwrap();
                sent += exchange.sent;
                received += exchange.received;
                to_9 += traffic::udp_send(&lab.client.host, to(9), 20, b"for either").unwrap();
                receive();
            }
            (sent, received, to_9)
        });
        for policy in policies.iter().cycle().take(exchanges()) {
            lab.done(&["policy", "apply", policy.to_str().unwrap()]);
        }
        stop.store(true, Ordering::Relaxed);
        sending.join().unwrap()
    });
    assert_eq!(sent, received, "every policy allows it");
    assert_eq!(echo.packets(), sent);
    assert!(sent >= 20);
    let decided = || [lab.counted("discard-a"), lab.counted("discard-b")];
    let is_decided = || decided().concat().iter().sum::<u64>() >= to_9;
    wait_until("all that was sent is decided about", is_decided);
    let [[_, _, dropped], [passed, _, _]] = decided();
    assert!(dropped > 0 && passed > 0, "{dropped} and {passed} tell little");
    assert_eq!(decided(), [[0, 0, dropped], [passed, 0, 0]]);
    assert_eq!(passed + dropped, to_9, "each by one of the two rules");
    wait_until("what passed arrives", || {
        receive();
        arrived.load(Ordering::Relaxed) >= passed
    });
    assert_eq!(arrived.into_inner(), passed);
}

/// How many datagrams wait at a socket, which are read.
fn waiting(socket: &UdpSocket) -> u64 {
    let mut waiting = 0;
    while socket.recv(&mut [0; 16]).is_ok() {
        waiting += 1;
    }
    waiting
}

/// How many policies are exchanged: fewer on a machine that is emulated.
fn exchanges() -> usize {
    if patience(PATIENCE) > PATIENCE { 10 } else { 100 }
}

fn what_stops_the_enforcer_detaches_it() {
    let lab = Lab::new();
    let _telnet = Server::tcp(&lab.server.host, 23).unwrap();
    let policy = lab.file("policy.yaml", NO_TELNET);
    for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGTERM] {
        let enforcer = lab.enforce(&policy, &["--block"]);
        assert_eq!(knock(&lab, 23), Connection::TimedOut);
        // Half a request is no hindrance.
        let mut half = UnixStream::connect(lab.socket()).unwrap();
        half.write_all(b"GET /v1/status HTTP/1.1\r\n").unwrap();
        enforcer.signal(signal).unwrap();
        let finished = enforcer.wait(PATIENCE).unwrap();
        assert!(finished.status.success(), "{finished:#?}");
        assert!(finished.stderr.contains("every hook is detached"), "{finished:#?}");
        assert_eq!(knock(&lab, 23), Connection::Connected);
        assert!(!lab.socket().exists());
    }
}
