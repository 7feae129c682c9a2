//! A daemon that is killed, and clients that are slow, many, endless or talk nonsense: it goes on serving and enforcing,
//! in bounded memory (F14, Z8).

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
};

use nix::sys::signal::Signal;
use testbed::{
    Running,
    harness::falls_back,
    patience,
    traffic::{self, Connection, Server},
};

use crate::{
    lab::{Lab, PATIENCE, wait_until},
    sender::order,
};

testbed::listed_tests![
    a_killed_enforcer_leaves_what_the_kernel_holds_and_the_next_one_starts_at_once,
    what_a_killed_enforcer_has_left_goes_where_the_next_one_leaves_tc_out,
    clients_that_misbehave_hinder_neither_others_nor_the_enforcing,
];

const POLICY: &str = "
version: 1
name: no-telnet
mode: block
rules:
  - { name: telnet, direction: ingress, protocol: tcp, destination_ports: 23, action: block }
  - { name: syslog, direction: egress, protocol: udp, destination_ports: 514, action: block }
";

/// As short as TCP's first second, so that a knock is one packet.
const KNOCK: std::time::Duration = std::time::Duration::from_millis(700);

fn knock(lab: &Lab) -> Connection {
    traffic::try_connect(&lab.client.host, (lab.server.ipv4, 23).into(), KNOCK).unwrap()
}

fn send(lab: &Lab) -> String {
    let [outcome] = order(&lab.server.host, &lab.cgroup, [format!("udp {}:514", lab.client.ipv4)]);
    outcome
}

fn a_killed_enforcer_leaves_what_the_kernel_holds_and_the_next_one_starts_at_once() {
    let lab = Lab::new();
    let _telnet = Server::tcp(&lab.server.host, 23).unwrap();
    let policy = lab.file("policy.yaml", POLICY);
    let enforcer = lab.enforce(&policy, &[]);
    let status = lab.json(&["status", "--json"]);
    let is_held_by_link = status["hooks"][0]["attached_by"] == "tcx";
    assert_eq!((knock(&lab), send(&lab).as_str()), (Connection::TimedOut, "denied"));

    enforcer.signal(Signal::SIGKILL).unwrap();
    assert!(!enforcer.wait(PATIENCE).unwrap().status.success());
    // Links go with the process that holds them, a moment after it; a filter of clsact stays.
    wait_until("the cgroup's link has gone", || send(&lab) == "sent");
    if is_held_by_link {
        wait_until("the interface's link has gone", || knock(&lab) == Connection::Connected);
    } else {
        falls_back("clsact: the filter of a killed enforcer stays before Linux 6.6");
        assert_eq!(knock(&lab), Connection::TimedOut);
    }
    assert!(lab.socket().exists());
    let error = lab.refused(&["status"], 1);
    assert!(error.starts_with("error: no enforcer is listening on "), "{error}");

    // The socket that was left is no hindrance, and a filter that was left decides no more.
    let other = lab.file("other.yaml", &POLICY.replace("23", "24"));
    let enforcer = lab.enforce(&other, &[]);
    assert_eq!((knock(&lab), send(&lab).as_str()), (Connection::Connected, "denied"));
    assert_eq!(
        enforcer.stderr().contains("removed from eth0"),
        !is_held_by_link,
        "{}",
        enforcer.stderr()
    );
    enforcer.interrupt(PATIENCE).unwrap();
    assert_eq!((knock(&lab), send(&lab).as_str()), (Connection::Connected, "sent"));
}

fn what_a_killed_enforcer_has_left_goes_where_the_next_one_leaves_tc_out() {
    let lab = Lab::new();
    let _telnet = Server::tcp(&lab.server.host, 23).unwrap();
    let policy = lab.file("policy.yaml", POLICY);
    let enforcer = lab.enforce(&policy, &[]);
    assert_eq!(knock(&lab), Connection::TimedOut);
    enforcer.signal(Signal::SIGKILL).unwrap();
    enforcer.wait(PATIENCE).unwrap();
    let other = lab.file("other.yaml", &POLICY.replace("23", "24"));
    let _enforcer = lab.enforce(&other, &["--no-tc"]);
    wait_until("nothing blocks any more", || knock(&lab) == Connection::Connected);
}

fn clients_that_misbehave_hinder_neither_others_nor_the_enforcing() {
    let lab = Lab::new();
    let _telnet = Server::tcp(&lab.server.host, 23).unwrap();
    let policy = lab.file("policy.yaml", POLICY);
    let mut enforcer = lab.enforce(&policy, &[]);
    assert_eq!(ask(&lab, STATUS.as_bytes()).unwrap(), 200);
    let before = resident_kib(&enforcer);

    // More than it serves at a time, and all say half a sentence; others are served when their time is over.
    let slow: Vec<UnixStream> = (0..80)
        .map(|_| {
            let mut stream = UnixStream::connect(lab.socket()).unwrap();
            stream.write_all(b"GET /v1/sta").unwrap();
            stream
        })
        .collect();
    assert_eq!(knock(&lab), Connection::TimedOut);
    assert_eq!(ask(&lab, STATUS.as_bytes()).unwrap(), 200);
    drop(slow);

    // Two hundred at once.
    let served = thread::scope(|scope| {
        let all: Vec<_> = (0..200).map(|_| scope.spawn(|| ask(&lab, STATUS.as_bytes()))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(served.iter().all(|status| matches!(status, Ok(200))), "{served:?}");

    // Requests without end: in the first line, in the headers, in a body of a length that is told, and in one that is not.
    for begin in [
        "GET /",
        "GET / HTTP/1.1\r\nHost: ",
        "POST /v1/policy HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n",
        "PUT /v1/mode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n",
        "POST /v1/policy HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let is_cut_short = flood(&lab, begin, 96 << 20);
        assert!(is_cut_short, "{begin}");
        assert_eq!(ask(&lab, STATUS.as_bytes()).unwrap(), 200, "{begin}");
    }

    // Nonsense.
    for seed in 0..50 {
        let mut bytes = testbed::packets::random_bytes(seed, 2000);
        bytes.extend(b"\r\n\r\n");
        // It may be refused before all of it was sent.
        let answer = ask(&lab, &bytes);
        assert!(!matches!(answer, Ok(200)), "{answer:?}");
    }

    assert!(enforcer.is_running());
    assert_eq!((knock(&lab), send(&lab).as_str()), (Connection::TimedOut, "denied"));
    assert_eq!(lab.json(&["status", "--json"])["applied"], 1);
    // The longest policy is 64 MiB, and two are read at a time.
    let highest = highest_kib(&enforcer);
    assert!(
        highest < before + 300 * 1024,
        "{before} KiB before, {highest} KiB at most"
    );
    enforcer.interrupt(PATIENCE).unwrap();
}

const STATUS: &str = "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// Asks, and returns the status of the answer.
fn ask(lab: &Lab, request: &[u8]) -> io::Result<u16> {
    let mut stream = UnixStream::connect(lab.socket())?;
    stream.set_read_timeout(Some(patience(PATIENCE)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no answer: {answer}")))
}

/// Sends chunks until the daemon takes no more, and so many bytes at most; whether it took less.
fn flood(lab: &Lab, begin: &str, most: usize) -> bool {
    let mut stream = UnixStream::connect(lab.socket()).unwrap();
    stream.write_all(begin.as_bytes()).unwrap();
    // As a chunk of a body it is well-formed: 65,536 bytes.
    let is_chunked = begin.contains("chunked");
    let chunk = vec![b'a'; 65_536];
    let mut sent = 0;
    while sent < most {
        let framed = if is_chunked {
            [b"10000\r\n", &chunk[..], b"\r\n"].concat()
        } else {
            chunk.clone()
        };
        if stream.write_all(&framed).is_err() {
            return true;
        }
        sent += chunk.len();
    }
    false
}

fn resident_kib(enforcer: &Running) -> u64 {
    field(enforcer, "VmRSS:")
}

fn highest_kib(enforcer: &Running) -> u64 {
    field(enforcer, "VmHWM:")
}

fn field(enforcer: &Running, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", enforcer.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
