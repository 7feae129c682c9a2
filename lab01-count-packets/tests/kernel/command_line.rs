//! The command's output into a pipe, its options, and how it ends.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{End, Host, Result, Running, traffic::Flood};

use crate::lab::{BINARY, Counting, PATIENCE, finish, on};

testbed::listed_tests![
    json_is_a_complete_object_a_line,
    plain_lines_name_every_number,
    top_limits_the_sources_shown_and_says_how_many_there_are,
    reports_come_at_the_interval,
    duration_ends_with_a_last_report,
    ctrl_c_and_sigterm_detach_and_end_with_a_last_report,
    kill_9_leaves_no_program_attached,
    a_closed_pipe_ends_it_without_a_word,
    log_lines_obey_rust_log,
    help_explains_every_option,
];

/// The far end of a cable, and the near one.
fn cable() -> Result<(End, End)> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    Ok((link.left, link.right))
}

fn send(from: &End, to: &End, sources: u16, count: u64) -> Result {
    Flood::new(from, to).sources(sources).count(count).send()?;
    Ok(())
}

fn json_is_a_complete_object_a_line() -> Result {
    let (client, server) = cable()?;
    let running = Running::start(on(&server, &["--json", "--interval", "100ms", "--duration", "1s"]))?;
    running.wait_for("elapsed_ms", PATIENCE)?;
    send(&client, &server, 3, 30)?;
    let finished = running.wait(PATIENCE)?;

    assert!(finished.status.success(), "{finished:#?}");
    assert_eq!(finished.stderr, "");
    assert!(finished.stdout.ends_with("}\n"));
    let reports: Vec<Value> = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(reports.len() >= 3, "{}", reports.len());
    for report in &reports {
        let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "bytes",
            "elapsed_ms",
            "interface",
            "malformed",
            "packets",
            "packets_per_second",
            "protocols",
            "share",
            "sources",
            "sources_counted",
            "untracked",
            "xdp_mode",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
    let last = reports.last().unwrap();
    assert_eq!(last["interface"], "eth0");
    assert_eq!(last["xdp_mode"], "native");
    assert_eq!((&last["packets"], &last["bytes"]), (&30.into(), &1800.into()));
    assert_eq!(last["sources"].as_array().unwrap().len(), 3);
    assert_eq!(last["sources"][0]["address"], "10.99.0.1");
    assert_eq!(last["sources"][0]["packets"], 10);
    assert_eq!(last["protocols"][0]["protocol"], "IPv4 UDP");
    assert_eq!(last["protocols"][0]["share"], 1.0);
    Ok(())
}

fn plain_lines_name_every_number() -> Result {
    let (client, server) = cable()?;
    let running = Running::start(on(&server, &["--interval", "100ms"]))?;
    running.wait_for("total", PATIENCE)?;
    send(&client, &server, 1, 10)?;
    client
        .host
        .inject("eth0", &client.frame_to(&server).ether_type(0x0800).build())?;
    running.wait_for("packets=11", PATIENCE)?;
    let finished = running.interrupt(PATIENCE)?;

    assert!(!finished.stdout.contains('\x1b'), "colours in a pipe");
    let lines: Vec<_> = finished.stdout.lines().collect();
    let last = &lines[lines.len() - 4..];
    for (line, start, numbers) in [
        (last[0], "total      eth0 ", "packets=11 bytes=614 "),
        (last[1], "source     10.99.0.1 ", "packets=10 bytes=600 "),
        (last[2], "protocol   IPv4 UDP ", "packets=10 bytes=600 "),
        (last[3], "malformed  ipv4-truncated ", "packets=1 bytes=14 "),
    ] {
        assert!(line.contains(start) && line.contains(numbers), "{line}");
        assert!(line.contains(" packets_per_second="), "{line}");
    }
    Ok(())
}

fn top_limits_the_sources_shown_and_says_how_many_there_are() -> Result {
    let (client, server) = cable()?;
    for (top, shown) in [("2", 2), ("0", 7), ("100", 7)] {
        let counting = Counting::on(&server, &["--top", top]);
        send(&client, &server, 7, 70)?;
        let report = counting.stop_after(70);
        assert_eq!(report.json["sources"].as_array().unwrap().len(), shown, "--top {top}");
        assert_eq!(report.json["sources_counted"], 7);
        assert_eq!(report.total().packets, 70);
    }
    Ok(())
}

fn reports_come_at_the_interval() -> Result {
    let (_client, server) = cable()?;
    let slow = Running::start(on(&server, &["--json", "--interval", "1h", "--duration", "500ms"]))?.wait(PATIENCE)?;
    assert_eq!(slow.stdout.lines().count(), 1, "the last report only: {}", slow.stdout);
    let fast = Running::start(on(&server, &["--json", "--interval", "100ms", "--duration", "1s"]))?.wait(PATIENCE)?;
    // At least: a busy machine may be late.
    assert!((3..=11).contains(&fast.stdout.lines().count()), "{}", fast.stdout);
    Ok(())
}

fn duration_ends_with_a_last_report() -> Result {
    let (_client, server) = cable()?;
    let finished = finish(on(&server, &["--json", "--duration", "300ms"]));
    assert!(finished.status.success(), "{finished:#?}");
    let report: Value = serde_json::from_str(finished.stdout.trim()).unwrap();
    assert!(report["elapsed_ms"].as_u64().unwrap() >= 300);
    assert!(!server.has_xdp()?);

    // As long as a duration can be: not an overflow.
    let running = Running::start(on(
        &server,
        &["--json", "--interval", "100ms", "--duration", "400000000000years"],
    ))?;
    running.wait_for("elapsed_ms", PATIENCE)?;
    assert!(running.interrupt(PATIENCE)?.status.success());
    Ok(())
}

fn ctrl_c_and_sigterm_detach_and_end_with_a_last_report() -> Result {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        for mode in ["native", "generic"] {
            let (client, server) = cable()?;
            let running = Running::start(on(&server, &["--json", "--interval", "1h", "--xdp-mode", mode]))?;
            wait_until("it is attached", || server.has_xdp().unwrap());
            let mut capture = server.host.capture("eth0")?;
            send(&client, &server, 1, 20)?;
            for _ in 0..20 {
                // A capture sees a packet after XDP.
                assert!(capture.next(PATIENCE)?.is_some());
            }
            running.wait_until_it_catches(signal)?;
            running.signal(signal)?;
            let finished = running.wait(PATIENCE)?;
            assert_eq!(finished.status.code(), Some(0), "{signal}: {finished:#?}");
            let report: Value = serde_json::from_str(finished.stdout.trim()).unwrap();
            assert_eq!(report["packets"], 20, "{signal}, {mode}");
            assert!(!server.has_xdp()?, "{signal}, {mode}");
        }
    }
    Ok(())
}

fn kill_9_leaves_no_program_attached() -> Result {
    for mode in ["native", "generic"] {
        let (_client, server) = cable()?;
        let running = Running::start(on(&server, &["--xdp-mode", mode]))?;
        wait_until("it is attached", || server.has_xdp().unwrap());
        running.signal(Signal::SIGKILL)?;
        assert!(!running.wait(PATIENCE)?.status.success());
        // The kernel closes the link's descriptor with the process, and detaches a moment later.
        wait_until("it is detached", || !server.has_xdp().unwrap());
    }
    Ok(())
}

fn a_closed_pipe_ends_it_without_a_word() -> Result {
    let (_client, server) = cable()?;
    for args in ["--json", ""] {
        let script = format!("{{ {BINARY} --iface eth0 --interval 100ms {args}; echo status=$? >&2; }} | head -n 1");
        let mut command = server.host.command("sh");
        command.args(["-c", &script]);
        let finished = finish(command);
        assert_eq!(finished.stdout.lines().count(), 1);
        assert_eq!(finished.stderr, "status=0\n");
        assert!(!server.has_xdp()?);
    }
    Ok(())
}

fn log_lines_obey_rust_log() -> Result {
    let (client, server) = cable()?;
    for (level, expected) in [("error", false), ("warn", true)] {
        let mut command = on(&server, &["--json", "--interval", "100ms"]);
        command.env("RUST_LOG", level);
        let running = Running::start(command)?;
        running.wait_for("elapsed_ms", PATIENCE)?;
        client
            .host
            .inject("eth0", &client.frame_to(&server).ether_type(0x0800).build())?;
        running.wait_for("ipv4-truncated", PATIENCE)?;
        // Counted first, logged a moment later.
        wait_until("it is logged", || !expected || !running.stderr().is_empty());
        let finished = running.interrupt(PATIENCE)?;
        let line = "warn: first malformed packet of its kind on this CPU: ipv4-truncated, 14 bytes\n";
        assert_eq!(finished.stderr == line, expected, "{level}: {:?}", finished.stderr);
    }
    Ok(())
}

fn help_explains_every_option() -> Result {
    let mut command = Host::new("server")?.command(BINARY);
    command.arg("--help");
    let finished = finish(command);
    assert!(finished.status.success());
    let options = [
        "--iface",
        "--xdp-mode",
        "--interval",
        "--duration",
        "--top",
        "--max-sources",
        "--json",
    ];
    for option in options {
        assert!(finished.stdout.contains(option), "{option} in {}", finished.stdout);
    }
    Ok(())
}

/// Asks until it is so.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < testbed::patience(PATIENCE),
            "waited in vain until {what}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}
