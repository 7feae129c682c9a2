//! Whatever fails while a policy is being applied, the one in force stays, whole, with its counters (A12). The kernel is
//! made to fail: a map that is frozen (`BPF_MAP_FREEZE`) refuses to be written to, while programs go on with it.

use std::{
    fmt::Write as _,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use aya::maps::{MapInfo, MapType};
use aya_obj::generated::bpf_cmd::BPF_MAP_FREEZE;
use lab02_xdp_firewall::syscall::{bpf, no_attributes};
use nix::sys::signal::Signal;
use testbed::{
    Running,
    harness::{falls_back, unsupported},
    traffic::{self, Connection, Server},
};

use crate::lab::{AT_INTERFACE, AT_XDP, Lab, PATIENCE, wait_until};

testbed::listed_tests![
    a_policy_that_no_table_has_room_for_changes_nothing,
    a_policy_that_cannot_be_written_changes_nothing,
    a_policy_whose_slot_cannot_be_waited_for_changes_nothing,
    a_policy_whose_rules_find_no_fresh_counters_changes_nothing,
    a_policy_whose_rules_find_no_full_buckets_changes_nothing,
    an_entry_of_a_set_that_cannot_be_written_changes_nothing,
    an_enforcer_that_is_killed_while_it_applies_leaves_no_half_of_a_policy,
];

/// Datagrams to port 7 pass, and no others.
const ONLY_7: &str = "
version: 1
name: only-7
mode: block
defaults: { ingress: deny }
rules:
  - { name: echo, direction: ingress, protocol: udp, destination_ports: 7, action: allow }
";

/// Datagrams to port 9 pass, and no others: whatever meets this policy is decided otherwise.
const ONLY_9: &str = "
version: 1
name: only-9
mode: block
defaults: { ingress: deny }
rules:
  - { name: discard, direction: ingress, protocol: udp, destination_ports: 9, action: allow }
";

fn a_policy_that_no_table_has_room_for_changes_nothing() {
    let lab = Lab::new();
    let large = written(&lab, "large.yaml", &many_rules("large", 9000));
    let _enforcer = lab.enforce(&lab.file("policy.yaml", ONLY_7), &AT_XDP);
    let said = nothing_changes(&lab, &["policy", "apply", &large]);
    assert!(
        said.contains("the rules of the policy take 9001 places in a table that has 8192"),
        "{said}"
    );
}

fn a_policy_that_cannot_be_written_changes_nothing() {
    let lab = Lab::new();
    let other = written(&lab, "other.yaml", ONLY_9);
    let enforcer = lab.enforce(&lab.file("policy.yaml", ONLY_7), &AT_XDP);
    freeze(&enforcer, |map| map.name_as_str() == Some("CONFIGS"));
    let said = nothing_changes(&lab, &["policy", "apply", &other]);
    assert!(
        said.contains("policy only-9 could not be put into force: a table cannot be written: bpf_map_update_elem: "),
        "{said}"
    );
    assert!(
        said.contains("rollback_ok: policy only-7 is in force as before"),
        "{said}"
    );
    // Not only once.
    nothing_changes(&lab, &["policy", "apply", &other]);
}

fn a_policy_whose_slot_cannot_be_waited_for_changes_nothing() {
    let lab = Lab::new();
    let other = written(&lab, "other.yaml", ONLY_9);
    let enforcer = lab.enforce(&lab.file("policy.yaml", ONLY_7), &AT_XDP);
    freeze(&enforcer, |map| {
        map.map_type().is_ok_and(|kind| kind == MapType::ArrayOfMaps)
    });
    let said = nothing_changes(&lab, &["policy", "apply", &other]);
    assert!(
        said.contains("it cannot be waited until no packet is decided by an older policy any more: ")
            && said.contains("rollback_ok: "),
        "{said}"
    );
}

fn a_policy_whose_rules_find_no_fresh_counters_changes_nothing() {
    an_id_cannot_be_used_again(
        "PACKETS_BY_RULE",
        "the counters cannot be read or set: bpf_map_update_elem: ",
    );
}

fn a_policy_whose_rules_find_no_full_buckets_changes_nothing() {
    an_id_cannot_be_used_again("BUCKETS", "a table cannot be written: bpf_map_update_elem: ");
}

/// What is kept by the ids of rules cannot be written, when a policy needs ids that were other rules'.
#[track_caller]
fn an_id_cannot_be_used_again(frozen: &str, cause: &str) {
    let lab = Lab::new();
    // The first two take all ids but a few.
    let [first, second, third] =
        ["first", "second", "third"].map(|name| written(&lab, &format!("{name}.yaml"), &many_rules(name, 8100)));
    let enforcer = lab.enforce(&lab.file("policy.yaml", ONLY_7), &AT_XDP);
    lab.done(&["policy", "apply", &first]);
    lab.done(&["policy", "apply", &second]);
    freeze(&enforcer, |map| map.name_as_str() == Some(frozen));
    let said = nothing_changes(&lab, &["policy", "apply", &third]);
    assert!(
        said.contains(cause) && said.contains("rollback_ok: policy second is in force as before"),
        "{said}"
    );
}

fn an_entry_of_a_set_that_cannot_be_written_changes_nothing() {
    let lab = Lab::new();
    let policy = ONLY_7.replace(
        "rules:",
        "
sets: { abuse: { prefixes: [198.51.100.0/24] } }
rules:
  - { name: abuse, direction: ingress, source: \"@abuse\", action: block }",
    );
    let enforcer = lab.enforce(&lab.file("policy.yaml", &policy), &AT_XDP);
    let kept = || [&["set", "list", "abuse", "--json"][..], &["policy", "show", "--json"]].map(|args| lab.json(args));
    let before = kept();
    freeze(&enforcer, |map| map.name_as_str() == Some("CONFIGS"));
    // What is sent comes from the one, and the other is in the set.
    let client = lab.client.ipv4.to_string();
    for change in [["add", "abuse", &client], ["remove", "abuse", "198.51.100.0/24"]] {
        let said = nothing_changes(&lab, &[&["set"], &change[..]].concat());
        assert!(
            said.contains("a table cannot be written: bpf_map_update_elem: ") && said.contains("rollback_ok: "),
            "{said}"
        );
        assert_eq!(kept(), before);
    }
    assert_eq!(lab.counted("abuse"), [0; 3]);
}

/// The path of a file in the folder.
fn written(lab: &Lab, name: &str, text: &str) -> String {
    lab.file(name, text).to_str().unwrap().to_owned()
}

/// Rules on as many ports of TCP, and one that lets datagrams to port 7 pass.
fn many_rules(name: &str, rules: u16) -> String {
    let mut text = ONLY_7.replace("name: only-7", &format!("name: {name}"));
    for port in 1..=rules {
        let _ = writeln!(
            text,
            "  - {{ name: {name}-{port}, direction: ingress, protocol: tcp, destination_ports: {port}, action: block }}"
        );
    }
    text
}

/// Runs a command that fails, while an enforcer lets datagrams to port 7 pass and blocks those to 9, under traffic, and sees
/// that it goes on doing so; what the command said.
#[track_caller]
fn nothing_changes(lab: &Lab, command: &[&str]) -> String {
    let echo = Server::udp(&lab.server.host, 7).unwrap();
    let discard = Server::udp(&lab.server.host, 9).unwrap();
    let before = (of_status(lab), lab.counted("echo")[0]);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let said = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let to = |port| (lab.server.ipv4, port).into();
                let exchange = traffic::udp_exchange(&lab.client.host, to(7), 10, PATIENCE).unwrap();
                assert!(exchange.is_complete(), "{exchange:?}");
                traffic::udp_send(&lab.client.host, to(9), 10, b"no").unwrap();
                sent.fetch_add(10, Ordering::Relaxed);
            }
        });
        let under_way = || sent.load(Ordering::Relaxed);
        wait_until("there is traffic", || under_way() > 0);
        let said = lab.refused(command, 1);
        let then = under_way();
        wait_until("traffic goes on", || under_way() > then + 20);
        stop.store(true, Ordering::Relaxed);
        said
    });
    let sent = sent.into_inner();
    assert_eq!(echo.packets(), sent, "{said}");
    assert_eq!(discard.packets(), 0, "{said}");
    assert_eq!(of_status(lab), before.0);
    assert_eq!(
        lab.counted("echo")[0],
        before.1 + sent,
        "the counters go on from where they were"
    );
    // The daemon is alive, and does what it still can.
    assert_eq!(lab.json(&["mode", "observe", "--json"])["mode"], "observe");
    assert_eq!(lab.json(&["mode", "block", "--json"])["mode"], "block");
    said
}

/// What of the status says which policy is in force.
fn of_status(lab: &Lab) -> [serde_json::Value; 3] {
    let status = lab.json(&["status", "--json"]);
    ["policy", "rules", "applied"].map(|key| status[key].clone())
}

/// The kernel's own, which programs should not get to see, and do: include/linux/errno.h.
const ENOTSUPP: i32 = 524;

/// Has the kernel refuse from now on that those of the enforcer's maps are written to from outside.
#[track_caller]
fn freeze(enforcer: &Running, is_it: impl Fn(&MapInfo) -> bool) {
    let maps = maps_of(enforcer.id()).unwrap();
    let mut frozen = 0;
    for map in maps.iter().filter(|map| is_it(map)) {
        let fd = map.fd().unwrap();
        let mut attributes = no_attributes();
        // SAFETY: for this command the kernel reads this member of the union.
        unsafe { &mut attributes.__bindgen_anon_2 }.map_fd = fd.as_fd().as_raw_fd().cast_unsigned();
        // SAFETY: there is no pointer among them.
        match unsafe { bpf(BPF_MAP_FREEZE, &mut attributes) } {
            Err(error) if error.raw_os_error() == Some(ENOTSUPP) => {
                unsupported("a map with locks in it cannot be frozen since Linux 6.2");
            }
            frozen => frozen.unwrap(),
        };
        frozen += 1;
    }
    assert_eq!(frozen, 1, "of {} maps", maps.len());
}

/// The maps of which a process has descriptors.
fn maps_of(process: u32) -> io::Result<Vec<MapInfo>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        // A descriptor may have been closed meanwhile.
        let Ok(info) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let id = info.lines().find_map(|line| line.strip_prefix("map_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    ids.sort_unstable();
    ids.dedup();
    let maps = ids.into_iter().map(|id| MapInfo::from_id(id).map_err(io::Error::other));
    maps.collect()
}

fn an_enforcer_that_is_killed_while_it_applies_leaves_no_half_of_a_policy() {
    let lab = Lab::new();
    let _servers = [7, 9].map(|port| Server::tcp(&lab.server.host, port).unwrap());
    let tcp = |text: &str| text.replace("udp", "tcp");
    let policy = lab.file("policy.yaml", &tcp(ONLY_7));
    // Large, so that it takes a while.
    let mut other = tcp(ONLY_9);
    for number in 0..3000u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let _ = writeln!(
            other,
            "  - {{ name: r-{number}, direction: ingress, source: 198.18.{high}.{low}, protocol: udp, action: block }}"
        );
    }
    let other = lab.file("other.yaml", &other);
    let other = other.to_str().unwrap();
    let connects = |port| {
        let target = (lab.server.ipv4, port).into();
        traffic::try_connect(&lab.client.host, target, KNOCK).unwrap() == Connection::Connected
    };
    let mut enforcer = lab.enforce(&policy, &AT_INTERFACE);
    let is_held_by_link = lab.json(&["status", "--json"])["hooks"][0]["attached_by"] == "tcx";
    for milliseconds in [0, 20, 50, 100, 200, 400] {
        assert_eq!([7, 9].map(connects), [true, false]);
        let applying = Running::start(lab.command(&["policy", "apply", other])).unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        enforcer.signal(Signal::SIGKILL).unwrap();
        assert!(!enforcer.wait(PATIENCE).unwrap().status.success());
        let applied = applying.wait(PATIENCE).unwrap();
        if is_held_by_link {
            // Nothing is enforced without the process.
            wait_until("the interface's link has gone", || [7, 9].map(connects) == [true, true]);
        } else {
            falls_back("clsact: the filter of a killed enforcer stays before Linux 6.6");
            // The filter goes on by one of the two policies: by the new one for certain if it was said to be in force.
            let [by_old, by_new] = [7, 9].map(connects);
            assert!(by_old != by_new, "half of each: {by_old} {by_new}");
            assert!(by_new || !applied.status.success(), "{applied:#?}");
        }
        // The next one starts as if nothing had been.
        enforcer = lab.enforce(&policy, &AT_INTERFACE);
    }
    assert_eq!([7, 9].map(connects), [true, false]);
    enforcer.interrupt(PATIENCE).unwrap();
}

/// As short as TCP's first second, so that a knock is one packet.
const KNOCK: Duration = Duration::from_millis(700);
