//! What can be wrong: every error is one line with cause and mend, and leaves nothing behind.

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    process::Command,
    time::Duration,
};

use aya::programs::Xdp;
use lab01_count_packets::{OBJECT, load};
use object::{Object as _, ObjectSection as _};
use testbed::{
    End, Finished, Host, LinkOptions, Result, Running,
    bpf::{PassProgram, ProgramType, XdpMode, empty_program},
    copy_program,
    harness::unsupported,
};

use crate::lab::{BINARY, PATIENCE, finish, in_host, on};

testbed::listed_tests![
    an_unknown_interface_is_named_with_those_that_there_are,
    impossible_options_are_refused_with_what_is_possible,
    without_privileges_the_missing_capabilities_are_named,
    three_capabilities_are_enough_for_an_ordinary_user,
    an_ordinary_user_learns_of_another_program_too,
    root_of_a_user_namespace_is_told_that_it_is_not_enough,
    another_program_is_left_alone_and_the_mend_removes_it,
    a_program_attached_without_a_link_is_removed_by_its_mend_too,
    an_interface_that_vanishes_ends_it_with_a_last_report,
    an_interface_that_is_down_is_said_to_be,
    an_mtu_too_large_for_native_xdp_is_a_notice_or_an_error,
    a_driver_without_native_xdp_is_a_notice_or_an_error,
    offload_is_refused_where_no_card_can,
    a_program_that_the_verifier_rejects_is_explained,
    an_object_that_is_none_is_said_to_be_none,
];

fn cable() -> Result<(End, End)> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    Ok((link.left, link.right))
}

/// It failed, with this one line on standard error and nothing on standard output.
#[track_caller]
fn assert_refused(finished: &Finished, line: &str) {
    assert_eq!(finished.stderr, format!("{line}\n"));
    assert_eq!(finished.stdout, "");
    assert_eq!(finished.status.code(), Some(1));
}

fn an_unknown_interface_is_named_with_those_that_there_are() -> Result {
    let (_client, server) = cable()?;
    for (name, advice) in [
        ("eth1", "did you mean eth0? (there are: lo, eth0)"),
        ("wlan0", "there are: lo, eth0"),
        ("", "there are: lo, eth0"),
        ("an-interface-name-that-is-too-long", "there are: lo, eth0"),
    ] {
        let finished = finish(in_host(&server.host, &["--iface", name]));
        assert_refused(
            &finished,
            &format!("error: there is no network interface {name:?} here; {advice}"),
        );
    }
    Ok(())
}

fn impossible_options_are_refused_with_what_is_possible() -> Result {
    let (_client, server) = cable()?;
    for (option, value, cause) in [
        ("--interval <TIME>", "0s", "it must be more than nothing"),
        ("--interval <TIME>", "10ms", "the shortest interval is 100ms"),
        ("--interval <TIME>", "2days", "the longest interval is 1day"),
        (
            "--interval <TIME>",
            "soon",
            "expected number at 0; write it like 500ms, 2s or 1m",
        ),
        (
            "--interval <TIME>",
            "5",
            "time unit needed, for example 5sec or 5ms; write it like 500ms, 2s or 1m",
        ),
        ("--duration <TIME>", "0s", "it must be more than nothing"),
        ("--max-sources <N>", "0", "0 is not in 1..=4194304"),
        ("--max-sources <N>", "5000000", "5000000 is not in 1..=4194304"),
        ("--top <N>", "x", "invalid digit found in string"),
        ("--top <N>", "-1", ""),
        ("--xdp-mode <MODE>", "fast", ""),
    ] {
        let (name, _) = option.split_once(' ').unwrap();
        let finished = finish(on(&server, &[&format!("{name}={value}")]));
        assert_eq!(finished.status.code(), Some(2), "{finished:#?}");
        assert_eq!(finished.stdout, "");
        let first = finished.stderr.lines().next().unwrap();
        let line = format!("error: invalid value '{value}' for '{option}'");
        assert!(
            first.starts_with(&line) && first.ends_with(cause),
            "{first}\n{line}: {cause}"
        );
        assert!(!server.has_xdp()?);
    }
    let finished = finish(on(&server, &["--xdp-mode", "nativ"]));
    assert!(
        finished
            .stderr
            .contains("[possible values: auto, native, generic, offload]"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("a similar value exists: 'native'"),
        "{}",
        finished.stderr
    );
    let finished = finish(in_host(&server.host, &[]));
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.stderr.contains("--iface <IF>"), "{}", finished.stderr);
    Ok(())
}

/// The command in a host as an ordinary user, who has these capabilities and no others.
fn as_ordinary_user(host: &Host, capabilities: &str, args: &[&str]) -> (Command, tempfile::TempDir) {
    if Command::new("setpriv").arg("--version").output().is_err() {
        unsupported("setpriv is missing (Debian: util-linux)");
    }
    // A copy, since the build folder may be closed to others.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("lab01-count-packets");
    copy_program(BINARY, &program).unwrap();
    let mut command = host.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
        .arg(format!("--inh-caps=-all{capabilities}"))
        .arg(format!("--ambient-caps=-all{capabilities}"))
        .arg(program)
        .args(args)
        .env_remove("RUST_LOG");
    (command, folder)
}

fn without_privileges_the_missing_capabilities_are_named() -> Result {
    let (_client, server) = cable()?;
    for (capabilities, missing) in [
        ("", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON are missing"),
        (",+bpf,+perfmon", "CAP_NET_ADMIN is missing"),
        (",+bpf,+net_admin", "CAP_PERFMON is missing"),
        (",+sys_admin", "CAP_NET_ADMIN is missing"),
    ] {
        let (command, _copy) = as_ordinary_user(&server.host, capabilities, &["--iface", "eth0"]);
        let line = format!(
            "error: not allowed to load eBPF programs: {missing}; run it with sudo, or as a service with these capabilities"
        );
        assert_refused(&finish(command), &line);
    }
    Ok(())
}

const ENOUGH: &str = ",+bpf,+net_admin,+perfmon";

fn three_capabilities_are_enough_for_an_ordinary_user() -> Result {
    let (client, server) = cable()?;
    for mode in ["native", "generic"] {
        let args = ["--iface", "eth0", "--xdp-mode", mode, "--json", "--interval", "100ms"];
        let (command, _copy) = as_ordinary_user(&server.host, ENOUGH, &args);
        let running = Running::start(command)?;
        running.wait_for("elapsed_ms", PATIENCE)?;
        client.host.inject(
            "eth0",
            &client
                .frame_to(&server)
                .ipv4("192.0.2.7", server.ipv4)
                .udp(1, 2)
                .build(),
        )?;
        running.wait_for("\"address\":\"192.0.2.7\",\"packets\":1,", PATIENCE)?;
        let finished = running.interrupt(PATIENCE)?;
        assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:#?}");
        assert!(!server.has_xdp()?);
    }
    Ok(())
}

fn an_ordinary_user_learns_of_another_program_too() -> Result {
    let (_client, server) = cable()?;
    let _other = PassProgram::load()?.attach(&server, XdpMode::Native)?;
    let (command, _copy) = as_ordinary_user(&server.host, ENOUGH, &["--iface", "eth0"]);
    let finished = finish(command);
    assert_eq!(finished.status.code(), Some(1));
    let line = &finished.stderr;
    assert!(
        line.starts_with("error: eth0 already carries another XDP program (id "),
        "{line}"
    );
    assert!(
        line.contains(", native), which is left alone; stop what attached it, or remove it: `"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
    Ok(())
}

fn root_of_a_user_namespace_is_told_that_it_is_not_enough() -> Result {
    let (_client, server) = cable()?;
    let mut command = server.host.command("unshare");
    command.args(["--user", "--map-root-user", BINARY, "--iface", "eth0"]);
    let finished = finish(command);
    if finished.stderr.starts_with("unshare:") {
        unsupported(format!("no user namespaces: {}", finished.stderr.trim()));
    }
    assert_refused(
        &finished,
        "error: not allowed to load eBPF programs: the process is root in a user namespace only (a rootless container?); \
         run it outside of that",
    );
    Ok(())
}

fn another_program_is_left_alone_and_the_mend_removes_it() -> Result {
    for (mode, name) in [(XdpMode::Native, "native"), (XdpMode::Generic, "generic")] {
        for wanted in ["auto", "native", "generic"] {
            let (_client, server) = cable()?;
            let _other = PassProgram::load()?.attach(&server, mode)?;
            let finished = finish(on(&server, &["--xdp-mode", wanted]));
            assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
            let line = &finished.stderr;
            assert!(line.starts_with("error: eth0 already carries "), "{line}");
            assert!(
                line.contains(&format!(
                    ", {name}), which is left alone; stop what attached it, or remove"
                )),
                "{line}"
            );
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(server.has_xdp()?, "the other program was not left alone");
            remove_as_told(&server, line);
        }
    }
    Ok(())
}

fn a_program_attached_without_a_link_is_removed_by_its_mend_too() -> Result {
    for (keyword, name) in [("xdpdrv", "native"), ("xdpgeneric", "generic")] {
        let (_client, server) = cable()?;
        attach_by_netlink(&server, keyword)?;
        let finished = finish(on(&server, &[]));
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        let line = &finished.stderr;
        assert!(line.contains(&format!(", {name}), which is left alone")), "{line}");
        assert!(
            line.ends_with(&format!("`ip link set dev eth0 {keyword} off`\n")),
            "{line}"
        );
        remove_as_told(&server, line);
    }
    Ok(())
}

/// As `ip link` and older loaders attach: no descriptor holds the program there.
fn attach_by_netlink(end: &End, keyword: &str) -> Result {
    let program = empty_program(ProgramType::Xdp)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("prog_id:"))
        .unwrap()
        .trim();
    let mut bpftool = end.host.command("bpftool");
    bpftool.args(["net", "attach", keyword, "id", id, "dev", &end.interface]);
    match bpftool.output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => unsupported(format!("bpftool cannot be run: {error}")),
    }
    Ok(())
}

/// Runs the command that an error ends with, which has to remove the program.
fn remove_as_told(end: &End, line: &str) {
    let mend = line.split('`').nth(1).unwrap();
    let mut words = mend.split(' ');
    let mut command = end.host.command(words.next().unwrap());
    match command.args(words).output() {
        Ok(output) => assert!(output.status.success(), "{mend}: {output:?}"),
        Err(error) => unsupported(format!("{mend} cannot be tried: {error}")),
    }
    assert!(!end.has_xdp().unwrap(), "{mend} has not removed it");
}

fn an_interface_that_vanishes_ends_it_with_a_last_report() -> Result {
    for mode in ["native", "generic"] {
        let (client, server) = cable()?;
        let running = Running::start(on(&server, &["--json", "--interval", "100ms", "--xdp-mode", mode]))?;
        running.wait_for("elapsed_ms", PATIENCE)?;
        client.host.inject(
            "eth0",
            &client
                .frame_to(&server)
                .ipv4("192.0.2.7", server.ipv4)
                .udp(1, 2)
                .build(),
        )?;
        running.wait_for("\"address\":\"192.0.2.7\"", PATIENCE)?;
        server.delete()?;
        let finished = running.wait(PATIENCE)?;
        assert_eq!(finished.status.code(), Some(1));
        assert_eq!(
            finished.stderr,
            "error: eth0 has gone: it was removed, renamed or moved, and nothing is counted any more; start again with an \
             interface that is there\n"
        );
        assert!(finished.stdout.lines().last().unwrap().contains("192.0.2.7"));
    }
    Ok(())
}

fn an_interface_that_is_down_is_said_to_be() -> Result {
    let (client, server) = cable()?;
    server.down()?;
    let running = Running::start(on(&server, &["--json", "--interval", "100ms"]))?;
    running.wait_for("elapsed_ms", PATIENCE)?;
    server.up()?;
    std::thread::sleep(Duration::from_millis(100));
    client.host.inject(
        "eth0",
        &client
            .frame_to(&server)
            .ipv4("192.0.2.7", server.ipv4)
            .udp(1, 2)
            .build(),
    )?;
    running.wait_for("\"address\":\"192.0.2.7\"", PATIENCE)?;
    let finished = running.interrupt(PATIENCE)?;
    assert!(finished.status.success());
    assert_eq!(
        finished.stderr,
        "warn: eth0 is down: no packet arrives before it is set up: `ip link set dev eth0 up`\n"
    );
    Ok(())
}

fn an_mtu_too_large_for_native_xdp_is_a_notice_or_an_error() -> Result {
    let options = LinkOptions {
        mtu: 9000,
        ..LinkOptions::default()
    };
    let link = Host::new("client")?.join_with(&Host::new("server")?, options)?;
    let cause = "the MTU, here or at the other end of a veth, is too large for a packet in one page";
    assert_falls_back(&link.right, cause);
    assert_refused(
        &finish(on(&link.right, &["--xdp-mode", "native"])),
        &format!(
            "error: eth0 cannot run XDP programs in native mode: {cause}; lower the MTU, or use --xdp-mode generic"
        ),
    );
    assert!(!link.right.has_xdp()?);
    Ok(())
}

fn a_driver_without_native_xdp_is_a_notice_or_an_error() -> Result {
    let host = Host::new("hermit")?;
    let cause = "its driver does not support it";
    let finished = finish(in_host(&host, &["--iface", "lo", "--json", "--duration", "200ms"]));
    assert!(finished.status.success(), "{finished:#?}");
    assert_eq!(
        finished.stderr,
        format!("warn: lo has no native XDP ({cause}); using generic, which is slower\n")
    );
    assert!(
        finished.stdout.contains("\"xdp_mode\":\"generic\""),
        "{}",
        finished.stdout
    );
    assert_refused(
        &finish(in_host(&host, &["--iface", "lo", "--xdp-mode", "native"])),
        &format!("error: lo cannot run XDP programs in native mode: {cause}; try --xdp-mode generic"),
    );
    Ok(())
}

fn assert_falls_back(end: &End, cause: &str) {
    let finished = finish(on(end, &["--json", "--duration", "200ms"]));
    assert!(finished.status.success(), "{finished:#?}");
    assert_eq!(
        finished.stderr,
        format!("warn: eth0 has no native XDP ({cause}); using generic, which is slower\n")
    );
    assert!(
        finished.stdout.contains("\"xdp_mode\":\"generic\""),
        "{}",
        finished.stdout
    );
}

fn offload_is_refused_where_no_card_can() -> Result {
    let (_client, server) = cable()?;
    for (host, interface) in [(server.host.clone(), "eth0"), (Host::new("hermit")?, "lo")] {
        assert_refused(
            &finish(in_host(&host, &["--iface", interface, "--xdp-mode", "offload"])),
            &format!(
                "error: {interface} cannot run XDP programs in offload mode: it has no card that runs programs; \
                 try --xdp-mode generic"
            ),
        );
    }
    Ok(())
}

fn a_program_that_the_verifier_rejects_is_explained() {
    // lab01's object with another first instruction: a read far outside of the context.
    let mut object = OBJECT.to_vec();
    let file = object::File::parse(OBJECT).unwrap();
    let (start, _) = file.section_by_name("xdp").unwrap().file_range().unwrap();
    // r0 = *(u32 *)(r1 + 4096), RFC 9669.
    let read_outside = [0x61, 0x10, 0x00, 0x10, 0, 0, 0, 0];
    object[start as usize..][..read_outside.len()].copy_from_slice(&read_outside);

    let mut ebpf = load::load_object(&object, &[]).unwrap();
    let program: &mut Xdp = load::program(&mut ebpf, "count_packets", "XDP").unwrap();
    let error = load::explain_program("count_packets", program.load().unwrap_err()).to_string();
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(
        lines[0],
        "the kernel's verifier refused the program count_packets: invalid bpf_context access off=4096 size=4"
    );
    assert!(
        lines[1].starts_with("the last ") && lines[1].ends_with(" lines of its log:"),
        "{error}"
    );
    assert!(
        lines[2..].iter().any(|line| line.contains("r0 = *(u32 *)(r1 +4096)")),
        "{error}"
    );
}

fn an_object_that_is_none_is_said_to_be_none() {
    for bytes in [&b""[..], b"#!/bin/sh", &OBJECT[..1000]] {
        let error = load::load_object(bytes, &[]).err().unwrap().to_string();
        assert!(error.starts_with("the eBPF object cannot be read: "), "{error}");
        assert!(
            error.ends_with("; build it again") && error.lines().count() == 1,
            "{error}"
        );
    }
}
