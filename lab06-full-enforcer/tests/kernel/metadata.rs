//! What is known of a packet beside its headers: interface, MAC address, cgroup, user, group (Z3, A3, A10, F9).

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use lab06_full_enforcer::{compile::Capacities, groups, object};
use nix::sys::socket::{SockaddrIn, bind};
use testbed::{
    Cgroup, Host, Running,
    harness::unsupported,
    traffic::{self, Connection, Server},
};

use crate::{
    lab::{AT_CALLS, AT_CGROUP, AT_INTERFACE, Lab, PATIENCE, wait_until},
    sender::order,
};

testbed::listed_tests![
    what_a_cgroup_and_those_below_it_send_is_decided_by_its_path,
    a_cgroup_that_is_made_again_is_found_again,
    what_a_user_sends_is_decided_by_its_number,
    what_a_group_sends_is_decided_by_its_number,
    a_socket_that_is_older_than_the_policy_gets_its_group_by_a_call,
    what_comes_in_for_a_group_is_blocked_at_the_socket,
    what_comes_in_for_a_cgroup_and_those_below_it_is_blocked_at_the_socket,
    what_comes_in_for_a_user_is_blocked_at_the_socket,
    what_goes_by_an_interface_is_decided_by_its_name,
    an_interface_that_has_gone_is_told,
    what_cannot_be_looked_up_is_not_taken_for_gone,
    what_a_mac_address_sends_is_decided_by_it,
];

/// A policy of one rule that blocks.
fn no(condition: &str) -> String {
    format!("{{ version: 1, name: metadata, mode: block, rules: [{{ name: no, {condition}, action: block }}] }}")
}

/// A cgroup's path as policies have it.
pub fn path(cgroup: &Cgroup) -> String {
    let name = cgroup.name().unwrap();
    name.to_str().unwrap().trim_start_matches('/').to_owned()
}

fn what_a_cgroup_and_those_below_it_send_is_decided_by_its_path() {
    let lab = Lab::new();
    let [builds, others] = ["builds", "builds-2"].map(|name| lab.cgroup.child(name).unwrap());
    let (below, trusted) = (builds.child("job").unwrap(), builds.child("trusted").unwrap());
    let text = format!(
        "
version: 1
name: cgroups
mode: block
rules:
  - {{ name: trusted, direction: egress, cgroup: {}, action: allow }}
  - {{ name: builds, direction: egress, cgroup: {}, action: block }}
",
        path(&trusted),
        path(&builds)
    );
    let _enforcer = lab.enforce(&lab.file("policy.yaml", &text), &AT_CGROUP);
    let target = || {
        [
            format!("udp {}:514", lab.client.ipv4),
            format!("udp [{}]:514", lab.client.ipv6),
        ]
    };
    for (cgroup, outcome) in [
        (&builds, "denied"),
        (&below, "denied"),
        (&trusted, "sent"),
        (&others, "sent"),
        (&lab.cgroup, "sent"),
    ] {
        let told = order(&lab.server.host, cgroup, target());
        assert_eq!(told, [outcome; 2], "{}", path(cgroup));
    }
    assert_eq!((lab.counted("builds"), lab.counted("trusted")), ([0, 0, 4], [2, 0, 0]));
}

fn a_cgroup_that_is_made_again_is_found_again() {
    let lab = Lab::new();
    let builds = lab.cgroup.child("builds").unwrap();
    let name = path(&builds);
    let policy = lab.file("policy.yaml", &no(&format!("direction: egress, cgroup: {name}")));
    let _enforcer = lab.enforce(&policy, &AT_CGROUP);
    let target = || [format!("udp {}:514", lab.client.ipv4)];
    assert_eq!(order(&lab.server.host, &builds, target()), ["denied"]);
    let missing = || lab.json(&["status", "--json"])["missing"].clone();
    assert_eq!(missing(), serde_json::json!([]));

    drop(builds);
    wait_until("it is missed", || {
        missing() == serde_json::json!([format!("cgroup {name}")])
    });
    let told = lab.done(&["status"]);
    assert!(told.contains(&format!("missing   cgroup {name}: ")), "{told}");

    let builds = lab.cgroup.child("builds").unwrap();
    wait_until("it is found", || missing() == serde_json::json!([]));
    assert_eq!(order(&lab.server.host, &builds, target()), ["denied"]);
    // The counters are the same rule's, and it is the same policy that holds.
    assert_eq!(lab.counted("no"), [0, 0, 2]);
    assert_eq!(lab.json(&["status", "--json"])["applied"], 1);
}

fn what_a_user_sends_is_decided_by_its_number() {
    assert_senders_are_decided_by_number("uid", "user");
}

/// Senders order themselves to be somebody, whom the rule names by this key.
fn assert_senders_are_decided_by_number(key: &str, somebody: &str) {
    let lab = Lab::new();
    let policy = lab.file(
        "policy.yaml",
        &no(&format!("direction: egress, {key}: [1000-1999, 65534]")),
    );
    let _enforcer = lab.enforce(&policy, &AT_CGROUP);
    let target = format!("udp {}:514", lab.client.ipv4);
    for (number, outcome) in [
        (0, "sent"),
        (999, "sent"),
        (1000, "denied"),
        (1999, "denied"),
        (2000, "sent"),
        (65_534, "denied"),
    ] {
        let orders = [format!("{somebody} {number}"), target.clone()];
        let told = order(&lab.server.host, &lab.cgroup, orders);
        assert_eq!(told, [somebody, outcome], "{number}");
    }
    assert_eq!(lab.counted("no"), [0, 0, 3]);
}

/// Where no groups are kept, a policy that names one is refused.
fn need_groups() {
    let mut ebpf = object::load(&Capacities::LEAST, true).unwrap();
    if groups::are_kept(&mut ebpf) {
        return;
    }
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", &no("direction: egress, gid: 0"));
    let folder = lab.cgroup.path().to_str().unwrap();
    let args = ["run", "--policy", policy.to_str().unwrap(), "--cgroup", folder];
    let told = lab.refused(&[&args[..], &AT_CGROUP].concat(), 1);
    assert!(told.contains("rule no: gid cannot be enforced here"), "{told}");
    unsupported("sockets have no storage: from Linux 7 on, a processor has to have cmpxchg16b for it");
}

fn what_a_group_sends_is_decided_by_its_number() {
    need_groups();
    assert_senders_are_decided_by_number("gid", "group");
}

/// A socket that is older than a policy with groups has none, until it connects or sends to somebody by name.
fn a_socket_that_is_older_than_the_policy_gets_its_group_by_a_call() {
    need_groups();
    let lab = Lab::new();
    let all = lab.file("all.yaml", "{ version: 1, name: all, mode: block }");
    let _enforcer = lab.enforce(&all, &AT_CALLS);
    let socket = socket_in(&lab, &lab.cgroup);
    let target = (lab.client.ipv4, 514);
    socket.connect(target).unwrap();
    let policy = lab.file("policy.yaml", &no("direction: egress, gid: 0"));
    lab.done(&["policy", "apply", policy.to_str().unwrap()]);
    socket.send(b"hello").unwrap();
    assert_eq!(lab.counted("no"), [0; 3]);
    wait_until("nobody is said to be there", || socket.take_error().unwrap().is_some());
    socket.connect(target).unwrap();
    let error = socket.send(b"hello").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_eq!(lab.counted("no"), [0, 0, 1]);
}

fn what_comes_in_for_a_group_is_blocked_at_the_socket() {
    need_groups();
    let lab = Lab::new();
    for (groups, passes) in [("1-4294967294", true), ("0", false)] {
        let policy = lab.file("policy.yaml", &no(&format!("gid: {groups}")));
        let enforcer = lab.enforce(&policy, &[]);
        let socket = socket_in(&lab, &lab.cgroup);
        assert_eq!(gets_through(&lab, &socket), passes, "{groups}");
        assert_eq!(lab.counted("no"), [0, 0, u64::from(!passes)]);
        enforcer.interrupt(PATIENCE).unwrap();
    }
}

/// A socket of the server's, made by a process in the cgroup.
fn socket_in(lab: &Lab, cgroup: &Cgroup) -> UdpSocket {
    let socket = cgroup.udp_socket(&lab.server.host).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 0)).unwrap();
    socket
}

/// Whether a datagram of the client's gets to a socket of the server's.
fn gets_through(lab: &Lab, socket: &UdpSocket) -> bool {
    let client = lab.client.host.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let port = socket.local_addr().unwrap().port();
    let before = lab.counted_at("tc-ingress", "default")[0];
    client.send_to(b"hello", (lab.server.ipv4, port)).unwrap();
    // At the socket it is decided in the same go.
    wait_until("it has come in", || lab.counted_at("tc-ingress", "default")[0] > before);
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.recv(&mut [0; 10]).is_ok()
}

fn what_comes_in_for_a_cgroup_and_those_below_it_is_blocked_at_the_socket() {
    let lab = Lab::new();
    let builds = lab.cgroup.child("builds").unwrap();
    let below = builds.child("job").unwrap();
    let others = lab.cgroup.child("builds-2").unwrap();
    let [in_builds, in_below, in_others] = [&builds, &below, &others].map(|cgroup| socket_in(&lab, cgroup));
    let policy = no(&format!("direction: ingress, cgroup: {}", path(&builds)));
    let _enforcer = lab.enforce(&lab.file("policy.yaml", &policy), &[]);
    assert!(gets_through(&lab, &in_others));
    for blocked in [&in_builds, &in_below] {
        assert!(!gets_through(&lab, blocked));
    }
    assert_eq!(lab.counted("no"), [0, 0, 2]);
    assert_eq!(lab.counted_at("cgroup-ingress", "rule"), [0, 0, 2]);
    lab.done(&["mode", "observe"]);
    assert!(gets_through(&lab, &in_below));
    assert_eq!(lab.counted("no"), [0, 1, 2]);
}

fn what_comes_in_for_a_user_is_blocked_at_the_socket() {
    let lab = Lab::new();
    let socket = socket_in(&lab, &lab.cgroup);
    for (users, passes) in [("1-4294967294", true), ("0", false)] {
        let policy = lab.file("policy.yaml", &no(&format!("uid: {users}")));
        let enforcer = lab.enforce(&policy, &[]);
        assert_eq!(gets_through(&lab, &socket), passes, "{users}");
        assert_eq!(lab.counted("no"), [0, 0, u64::from(!passes)]);
        enforcer.interrupt(PATIENCE).unwrap();
    }
}

fn what_goes_by_an_interface_is_decided_by_its_name() {
    let lab = Lab::new();
    let other = Host::new("other").unwrap().join(&lab.server.host).unwrap();
    assert_ne!(other.right.interface, lab.server.interface);
    let policy = lab.file("policy.yaml", &no(&format!("interface: {}", other.right.interface)));
    let _enforcer = lab.enforce(&policy, &["--iface", &other.right.interface]);
    let orders = [
        format!("udp {}:514", other.left.ipv4),
        format!("udp {}:514", lab.client.ipv4),
        "udp 127.0.0.1:514".to_owned(),
    ];
    let told = order(&lab.server.host, &lab.cgroup, orders);
    assert_eq!(told, ["denied", "sent", "sent"]);
    // And what comes in.
    let _echo = Server::tcp(&lab.server.host, 7).unwrap();
    assert_eq!(connect(&lab.client.host, lab.server.ipv4), Connection::Connected);
    assert_eq!(connect(&other.left.host, other.right.ipv4), Connection::TimedOut);
}

fn connect(from: &Host, to: Ipv4Addr) -> Connection {
    // Shorter than TCP's first second, so that one knock is one packet.
    traffic::try_connect(from, (to, 7).into(), Duration::from_millis(700)).unwrap()
}

fn an_interface_that_has_gone_is_told() {
    let lab = Lab::new();
    let other = Host::new("other").unwrap().join(&lab.server.host).unwrap();
    let policy = lab.file("policy.yaml", &no("interface: [eth1, lo]"));
    assert_eq!(other.right.interface, "eth1");
    let enforcer = lab.enforce(&policy, &AT_CGROUP);
    assert!(!lab.done(&["status"]).contains("missing"));
    // Named, what is essential on lo is asked about.
    let told = order(&lab.server.host, &lab.cgroup, ["udp 127.0.0.1:514".to_owned()]);
    assert_eq!(told, ["denied"]);
    drop(other);
    wait_until("it is missed", || {
        lab.done(&["status"]).contains("missing   interface eth1: ")
    });
    let told = lab.done(&["policy", "apply", policy.to_str().unwrap()]);
    assert!(
        told.contains("\nmissing   interface eth1: what the policy says"),
        "{told}"
    );
    drop(enforcer);
}

fn what_cannot_be_looked_up_is_not_taken_for_gone() {
    let lab = Lab::new();
    let builds = lab.cgroup.child("builds").unwrap();
    let _echo = Server::udp(&lab.server.host, 7).unwrap();
    let text = format!(
        "
version: 1
name: names
mode: block
rules:
  - {{ name: by-interface, direction: ingress, interface: {}, protocol: udp, action: block }}
  - {{ name: by-cgroup, direction: egress, cgroup: {}, action: block }}
",
        lab.server.interface,
        path(&builds)
    );
    let enforcer = lab.enforce(&lab.file("policy.yaml", &text), &[]);
    let outcomes = || {
        let answer = Duration::from_millis(300);
        let exchange = traffic::udp_exchange(&lab.client.host, (lab.server.ipv4, 7).into(), 1, answer);
        let told = order(&lab.server.host, &builds, [format!("udp {}:514", lab.client.ipv4)]);
        (exchange.unwrap().is_complete(), told)
    };
    let blocked = (false, ["denied".to_owned()]);
    assert_eq!(outcomes(), blocked);
    allow_files(&enforcer, 3);
    let said = format!(
        "the policy holds for what was there before: interface {} cannot be looked up: ",
        lab.server.interface
    );
    enforcer.wait_for(&said, PATIENCE).unwrap();
    assert_eq!(outcomes(), blocked);
    allow_files(&enforcer, 1024);
    assert_eq!(lab.json(&["status", "--json"])["missing"], serde_json::json!([]));
    assert_eq!(outcomes(), blocked);
}

/// How many files a process may have open; those that it has stay open.
fn allow_files(process: &Running, most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: 1024,
    };
    // SAFETY: the structure lives until the call returns, and none is to be written to.
    let done = unsafe {
        libc::prlimit(
            process.id().cast_signed(),
            libc::RLIMIT_NOFILE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn what_a_mac_address_sends_is_decided_by_it() {
    let lab = Lab::new();
    let _echo = Server::tcp(&lab.server.host, 7).unwrap();
    let mac = |octets: [u8; 6]| octets.map(|octet| format!("{octet:02x}")).join(":");
    let connects = || connect(&lab.client.host, lab.server.ipv4);
    let mut other = lab.client.mac;
    other[5] ^= 1;
    let policy = |octets| {
        let text = no(&format!("direction: ingress, mac: \"{}\"", mac(octets)));
        lab.file("policy.yaml", &text)
    };
    let file = policy(other);
    let _enforcer = lab.enforce(&file, &AT_INTERFACE);
    assert_eq!(connects(), Connection::Connected);
    let file = policy(lab.client.mac);
    lab.done(&["policy", "apply", file.to_str().unwrap()]);
    assert_eq!(connects(), Connection::TimedOut);
    assert!(lab.counted("no")[2] > 0);
}
