//! The command on a cgroup with real traffic (Z1, Z2, Z12, A3).

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{Cgroup, Host, Result};

use crate::{
    bpffs::Bpffs,
    client::{PATIENCE, order, order_from_outside, order_outside},
    lab::{Enforcing, Network, PolicyFile, command, finish, rule},
};

testbed::listed_tests![
    inside_loses_what_is_denied_and_outside_nothing_in_observe_and_in_block,
    a_strict_policy_lets_pass_what_it_names_and_nothing_else,
    no_way_to_connect_or_send_gets_around_it,
    a_rule_on_the_source_port_decides_at_the_packet,
    ingress_is_decided_as_well,
    what_the_hooks_do_not_see_passes,
    a_new_version_of_the_file_takes_effect_and_a_wrong_one_does_not,
    a_command_runs_inside_and_its_status_is_passed_on,
    pinned_it_goes_on_until_the_pins_are_removed,
    killed_it_leaves_nothing_attached_and_the_next_one_starts,
    one_hook_alone_does_its_own_part,
    the_mode_is_told_set_and_toggled_by_a_second_process,
    a_request_that_comes_in_two_halves_outlives_the_reports_in_between,
];

const TCP_DENIED: &str = "{ version: 1, name: no-tcp, match: specific, rules: [
    { name: no-echo-over-tcp, direction: egress, protocol: tcp, destination_ports: 7, action: block } ] }";

const STRICT: &str = "{ version: 1, name: strict, mode: block, match: specific, defaults: { egress: deny }, rules: [
    { name: udp-echo, direction: egress, protocol: udp, destination_ports: 7, action: allow } ] }";

const NOTHING: &str = "{ version: 1, name: nothing, mode: block, defaults: { egress: deny } }";

fn mode(host: &Host, cgroup: &Cgroup, args: &[&str]) -> String {
    let mut command = command(host, &["mode", "--cgroup", cgroup.path().to_str().unwrap()]);
    command.args(args);
    let finished = finish(command);
    assert!(finished.status.success(), "{finished:#?}");
    finished.stdout.trim().to_owned()
}

fn inside_loses_what_is_denied_and_outside_nothing_in_observe_and_in_block() -> Result {
    let network = Network::new()?;
    let (inside, sibling) = (Cgroup::new("inside")?, Cgroup::new("sibling")?);
    let below = inside.child("below")?;
    let host = network.client();
    let traffic = [
        format!("tcp {}", network.v4()),
        format!("tcp {}", network.v6()),
        format!("udp {}", network.v4()),
        format!("udp {}", network.v6()),
    ];
    let traffic = traffic.each_ref().map(String::as_str);
    let policy = PolicyFile::new(TCP_DENIED);
    let enforcing = Enforcing::on(host, &inside, &policy.path(), &[]);
    assert_eq!(enforcing.report()["mode"], "observe", "observing is the default");
    assert_eq!(order(host, &inside, traffic), ["answered"; 4]);
    let report = enforcing.wait_until("it has reported", |report| rule(report, "no-echo-over-tcp").1 >= 6);
    assert_eq!(report["dropped"]["packets"], 0);
    let line = &report["blocked"][0];
    assert_eq!(
        (&line["rule"], &line["protocol"], &line["port"]),
        (&"no-echo-over-tcp".into(), &"tcp".into(), &7.into())
    );

    assert_eq!(mode(host, &inside, &["block"]), "block");
    for cgroup in [&inside, &below] {
        assert_eq!(
            order(host, cgroup, traffic),
            ["denied", "denied", "answered", "answered"]
        );
    }
    assert_eq!(order(host, &sibling, traffic), ["answered"; 4]);
    assert_eq!(order_outside(host, traffic), ["answered"; 4]);
    // Refused at the system call, and no packet was sent.
    let dropped_at = |report: &Value, hook: &str| {
        let lines = report["hooks"].as_array().unwrap();
        let line = lines.iter().find(|line| line["hook"] == hook)?;
        let count = |what: &str| line["dropped"][what].as_u64().unwrap();
        Some((count("packets"), count("bytes")))
    };
    let report = enforcing.wait_until("it has reported both hooks", |report| {
        rule(report, "no-echo-over-tcp").0 >= 4
            && ["connect4", "connect6"].map(|hook| dropped_at(report, hook)) == [Some((2, 0)); 2]
    });
    assert_eq!(report["mode"], "block");

    assert_eq!(mode(host, &inside, &["observe"]), "observe");
    assert_eq!(order(host, &inside, traffic), ["answered"; 4]);
    enforcing.stop();
    Ok(())
}

fn a_strict_policy_lets_pass_what_it_names_and_nothing_else() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("strict")?;
    let host = network.client();
    let traffic = [
        format!("udp {}", network.v4()),
        format!("udp {}", network.v6()),
        format!("tcp {}", network.v4()),
        format!("tcp {}", network.v6()),
        // Nobody listens there, and nobody is asked.
        format!("tcp {}", std::net::SocketAddr::from((network.server().ipv4, 9))),
        // This host is essential.
        "tcp 127.0.0.1:9".to_owned(),
        "tcp [::1]:9".to_owned(),
    ];
    let policy = PolicyFile::new(STRICT);
    let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &[]);
    assert_eq!(enforcing.report()["mode"], "block", "the policy's own mode");
    assert_eq!(
        order(host, &cgroup, traffic.each_ref().map(String::as_str)),
        [
            "answered", "answered", "denied", "denied", "denied", "refused", "refused"
        ]
    );
    enforcing.wait_until("it has reported all of it", |report| {
        let at_least = |name, packets| rule(report, name).0 >= packets;
        at_least("default", 3) && at_least("essential", 4) && at_least("udp-echo", 2)
    });
    assert_eq!(network.tcp.connections(), 0);
    enforcing.stop();
    Ok(())
}

fn no_way_to_connect_or_send_gets_around_it() -> Result {
    let network = Network::new()?;
    let (cgroup, outside) = (Cgroup::new("ways")?, Cgroup::new("outside")?);
    let host = network.client();
    let (v4, v6, mapped) = (network.v4(), network.v6(), network.mapped());
    let policy = PolicyFile::new(NOTHING);
    let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &[]);
    for way in ["tcp", "udp", "udp-connected", "fast-open", "mptcp"] {
        for address in [v4, v6, mapped] {
            let traffic = format!("{way} {address}");
            let [without] = order(host, &outside, [&traffic]);
            if without == "not in this kernel" {
                continue;
            }
            assert_eq!(without, "answered", "{traffic}, outside");
            assert_eq!(order(host, &cgroup, [&traffic]), ["denied"], "{traffic}");
        }
    }
    // No hook on a system call sees a raw socket; its packets are seen.
    assert_eq!(order(host, &outside, [&format!("raw {v4}")]), ["sent"]);
    assert_eq!(order(host, &cgroup, [&format!("raw {v4}")]), ["denied"]);
    enforcing.stop();
    Ok(())
}

fn a_rule_on_the_source_port_decides_at_the_packet() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("source")?;
    let host = network.client();
    let policy = PolicyFile::new(
        "{ version: 1, name: source, mode: block, match: specific, defaults: { egress: deny }, rules: [
           { name: from-here, direction: egress, protocol: udp, source_ports: 4567, action: allow } ] }",
    );
    let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &[]);
    let v4 = network.v4();
    let traffic = [
        format!("udp-from-4567 {v4}"),
        format!("udp-from-4568 {v4}"),
        format!("udp {v4}"),
    ];
    let answers = order(host, &cgroup, traffic.each_ref().map(String::as_str));
    assert_eq!(answers, ["answered", "denied", "denied"]);
    let report = enforcing.wait_until("it has reported", |report| report["dropped"]["packets"] == 2);
    let hooks: Vec<&str> = report["hooks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hook| hook["hook"].as_str().unwrap())
        .collect();
    assert_eq!(hooks, ["egress", "ingress"], "no system call was refused");
    enforcing.stop();
    Ok(())
}

fn ingress_is_decided_as_well() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("ingress")?;
    let host = network.client();
    let policy = PolicyFile::new(&format!(
        "{{ version: 1, name: in, mode: block, rules: [
           {{ name: no-answers, direction: ingress, source: {}, protocol: udp, action: block }} ] }}",
        network.server().ipv4
    ));
    let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &[]);
    let traffic = [
        format!("udp {}", network.v4()),
        format!("tcp {}", network.v4()),
        format!("udp {}", network.v6()),
    ];
    let answers = order(host, &cgroup, traffic.each_ref().map(String::as_str));
    assert_eq!(answers, ["no answer", "answered", "answered"]);
    let report = enforcing.wait_until("it has reported", |report| rule(report, "no-answers").0 == 1);
    assert_eq!(report["blocked"][0]["direction"], "ingress");
    enforcing.stop();
    Ok(())
}

/// The two ways around these hooks that the guide names.
fn what_the_hooks_do_not_see_passes() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("blind")?;
    let host = network.client();
    let policy = PolicyFile::new(NOTHING);
    let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &[]);
    let (udp, moved) = (format!("udp {}", network.v4()), format!("moved {}", network.v4()));
    // A socket belongs to the cgroup that it was born in, wherever its process goes.
    assert_eq!(
        order_from_outside(host, &cgroup, [&moved, &udp]),
        ["answered", "denied"]
    );
    // What a packet socket sends passes by the socket layer.
    let before = network.udp.packets();
    assert_eq!(order(host, &cgroup, [&format!("packet {}", network.v4())]), ["sent"]);
    let start = Instant::now();
    while network.udp.packets() == before {
        assert!(start.elapsed() < PATIENCE, "the packet has not arrived");
        thread::sleep(Duration::from_millis(5));
    }
    enforcing.stop();
    Ok(())
}

fn a_new_version_of_the_file_takes_effect_and_a_wrong_one_does_not() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("file")?;
    let host = network.client();
    let tcp = format!("tcp {}", network.v4());
    let policy = PolicyFile::new(TCP_DENIED);
    let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &["--block"]);
    assert_eq!(order(host, &cgroup, [&tcp]), ["denied"]);
    policy.write("{ version: 1, name: open }");
    enforcing
        .running
        .wait_for("the policy changed: open, 0 rules, is in force", PATIENCE)?;
    assert_eq!(order(host, &cgroup, [&tcp]), ["answered"]);
    policy.write("{ version: 1, name: wrong, rulez: [] }");
    enforcing.running.wait_for("and the old one stays in force", PATIENCE)?;
    assert_eq!(order(host, &cgroup, [&tcp]), ["answered"]);
    policy.write(TCP_DENIED);
    enforcing
        .running
        .wait_for("the policy changed: no-tcp, 1 rules, is in force", PATIENCE)?;
    assert_eq!(
        order(host, &cgroup, [&tcp]),
        ["denied"],
        "the mode is still that of --block"
    );
    enforcing.stop();
    Ok(())
}

fn a_command_runs_inside_and_its_status_is_passed_on() -> Result {
    let above = Cgroup::new("command")?;
    let new = above.path().join("new");
    let policy = PolicyFile::new(NOTHING);
    let host = Host::new("host")?;
    let args = [
        "--cgroup",
        new.to_str().unwrap(),
        "--policy",
        policy.path().to_str().unwrap(),
        "--",
    ]
    .map(str::to_owned);
    let mut run = command(&host, &args.each_ref().map(String::as_str));
    run.args(["sh", "-c", "cat /proc/self/cgroup; exit 7"]);
    let finished = finish(run);
    assert_eq!(finished.status.code(), Some(7), "{finished:#?}");
    let name = above.name()?.join("new");
    assert!(
        finished.stdout.contains(&format!("0::/{}\n", name.display())),
        "{finished:#?}"
    );
    assert!(finished.stdout.contains("total    nothing "), "{finished:#?}");
    assert!(!new.exists(), "a cgroup that was made goes again");

    let mut run = command(&host, &args.each_ref().map(String::as_str));
    run.arg("/no/such/command");
    let finished = finish(run);
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished
            .stderr
            .starts_with("error: the command /no/such/command cannot be started: "),
        "{finished:#?}"
    );
    assert!(!new.exists());
    Ok(())
}

fn pinned_it_goes_on_until_the_pins_are_removed() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("pinned")?;
    let host = network.client();
    let bpffs = Bpffs::mount();
    let pins = bpffs.path().join("lab04");
    let policy = PolicyFile::new(NOTHING);
    let udp = format!("udp {}", network.v4());
    let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &["--pin", pins.to_str().unwrap()]);
    enforcing.stop();
    assert_eq!(order(host, &cgroup, [&udp]), ["denied"]);
    for name in ["RULES_V4", "MODE", "egress", "connect4", "egress_link", "sendmsg6_link"] {
        assert!(pins.join(name).exists(), "{name}");
    }
    fs::remove_dir_all(&pins).unwrap();
    answered_soon(host, &cgroup, &udp);
    Ok(())
}

/// Waits until what was denied is answered: the kernel lets go of a link a moment after its last user has.
fn answered_soon(host: &Host, cgroup: &Cgroup, what: &str) {
    let start = Instant::now();
    while order(host, cgroup, [what]) != ["answered"] {
        assert!(start.elapsed() < PATIENCE, "still attached");
    }
}

fn killed_it_leaves_nothing_attached_and_the_next_one_starts() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("killed")?;
    let host = network.client();
    let udp = format!("udp {}", network.v4());
    let policy = PolicyFile::new(NOTHING);
    let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &[]);
    assert_eq!(order(host, &cgroup, [&udp]), ["denied"]);
    enforcing.running.signal(Signal::SIGKILL)?;
    assert!(!enforcing.running.wait(PATIENCE)?.status.success());
    answered_soon(host, &cgroup, &udp);
    let next = Enforcing::on(host, &cgroup, &policy.path(), &[]);
    assert_eq!(order(host, &cgroup, [&udp]), ["denied"]);
    next.stop();
    Ok(())
}

fn one_hook_alone_does_its_own_part() -> Result {
    let network = Network::new()?;
    let host = network.client();
    let (tcp, udp) = (format!("tcp {}", network.v4()), format!("udp {}", network.v4()));
    let policy = PolicyFile::new(NOTHING);
    for (hook, expected) in [
        ("egress", ["no answer", "denied"]),
        ("connect4", ["denied", "answered"]),
        ("sendmsg4", ["answered", "denied"]),
        ("sendmsg6", ["answered", "answered"]),
    ] {
        let cgroup = Cgroup::new("hook")?;
        let enforcing = Enforcing::on(host, &cgroup, &policy.path(), &["--hook", hook]);
        let answers = order(host, &cgroup, [&tcp, &udp]);
        // A SYN that is dropped: some kernels tell the caller, others try again.
        let [by_tcp, by_udp] = answers.each_ref().map(String::as_str);
        let tcp_as_expected = by_tcp == expected[0] || hook == "egress" && by_tcp == "denied";
        assert!(tcp_as_expected && by_udp == expected[1], "{hook}: {answers:?}");
        enforcing.stop();
    }
    Ok(())
}

fn the_mode_is_told_set_and_toggled_by_a_second_process() -> Result {
    let cgroup = Cgroup::new("mode")?;
    let host = Host::new("host")?;
    let policy = PolicyFile::new(NOTHING);
    let enforcing = Enforcing::on(&host, &cgroup, &policy.path(), &["--observe"]);
    let steps = [
        ("", "observe"),
        ("toggle", "block"),
        ("toggle", "observe"),
        ("block", "block"),
        ("", "block"),
    ];
    for (step, expected) in steps {
        let args: Vec<&str> = [step].into_iter().filter(|step| !step.is_empty()).collect();
        assert_eq!(mode(&host, &cgroup, &args), expected, "{step}");
    }
    // Nobody else may enforce there at the same time.
    let second = finish(command(
        &host,
        &[
            "--cgroup",
            cgroup.path().to_str().unwrap(),
            "--policy",
            policy.path().to_str().unwrap(),
        ],
    ));
    assert_eq!(second.status.code(), Some(1));
    assert!(
        second.stderr.starts_with("error: another lab04-cgroup-policy enforces"),
        "{second:#?}"
    );
    enforcing.stop();

    let nobody = finish(command(
        &host,
        &["mode", "--cgroup", cgroup.path().to_str().unwrap(), "block"],
    ));
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        nobody
            .stderr
            .starts_with("error: no lab04-cgroup-policy runs on the cgroup /"),
        "{nobody:#?}"
    );
    Ok(())
}

fn a_request_that_comes_in_two_halves_outlives_the_reports_in_between() -> Result {
    let cgroup = Cgroup::new("halves")?;
    let host = Host::new("host")?;
    let policy = PolicyFile::new(NOTHING);
    let enforcing = Enforcing::on(&host, &cgroup, &policy.path(), &["--observe"]);
    let id = fs::metadata(cgroup.path()).unwrap().ino();
    let mut stream = UnixStream::connect(format!("/run/lab04-cgroup-policy/{id}.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"bl").unwrap();
    let elapsed = |report: &Value| report["elapsed_ms"].as_u64().unwrap();
    let before = elapsed(&enforcing.report());
    // Two reports later it has surely seen the first half.
    enforcing.wait_until("it has reported twice", |report| elapsed(report) >= before + 200);
    stream.write_all(b"ock\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "block\n");
    assert_eq!(enforcing.stop()["mode"], "block");
    Ok(())
}
