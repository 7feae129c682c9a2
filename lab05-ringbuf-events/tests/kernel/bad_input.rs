//! Mistakes of users, and what is there already: each is answered by one line that names the cause and the mend (Z8, F14).

use nix::sys::signal::Signal;
use testbed::{Cgroup, Host, Result, Running};

use crate::lab::{Lab, PATIENCE, cable, finish, in_host};

testbed::listed_tests![
    every_mistake_is_answered_with_its_cause,
    without_root_it_says_which_capabilities_are_missing,
    an_interface_that_goes_ends_it_with_a_reason_and_the_books,
    a_cgroup_that_goes_ends_it_with_a_reason_and_the_books,
    after_kill_9_nothing_is_attached_any_more,
    a_closed_pipe_is_no_failure,
];

fn every_mistake_is_answered_with_its_cause() -> Result {
    let host = Host::new("alone")?;
    // The arguments, the exit status, and what the line has to say.
    let cases: [(&[&str], i32, &[&str]); 25] = [
        (&["--iface", "eth7"], 1, &["no network interface \"eth7\"", "lo"]),
        (&["--cgroup", "no/such.slice"], 1, &["no/such.slice"]),
        (
            &["--no-cgroup", "--no-processes"],
            1,
            &["nothing is left to tell of", "--iface"],
        ),
        (&["--cgroup", "a", "--no-cgroup"], 2, &["cannot be used with"]),
        (&["--pretty", "--json"], 2, &["cannot be used with"]),
        (&["--block-ip", "192.0.2.256"], 2, &["--block-ip", "192.0.2.256"]),
        (&["--block-port", "99999"], 2, &["--block-port"]),
        (&["--address", "banana"], 2, &["--address"]),
        (&["--verdict", "maybe"], 2, &["observe_drop", "block"]),
        (&["--one-in", "0"], 2, &["--one-in"]),
        (&["--events-per-second", "0"], 2, &["--events-per-second"]),
        (&["--ring-size", "3M"], 2, &["power of two"]),
        (&["--frames", "1ms"], 2, &["100ms"]),
        (&["--max-flows", "0"], 2, &["--max-flows"]),
        (&["--pid", "one"], 2, &["--pid"]),
        (&["--pid", "0"], 2, &["--pid", "1..=4194304"]),
        (&["--pid", "1", "--no-processes"], 2, &["cannot be used with"]),
        (&["--comm", ""], 2, &["--comm", "a process has a name"]),
        (
            &["--comm", "systemd-journald"],
            2,
            &["15 bytes", "write \"systemd-journal\""],
        ),
        (&["--cgroup", "/proc"], 1, &["/proc is no cgroup of version 2"]),
        (&["--block-mac", "00:11:22"], 2, &["02:00:00:00:00:01"]),
        (&["--default", "drop"], 2, &["allow, block"]),
        (&["--duration", "0"], 2, &["more than nothing"]),
        (&["--iface", "lo", "--xdp-mode", "offload"], 1, &["offload", "generic"]),
        (&["foo"], 2, &["unrecognized subcommand"]),
    ];
    for (args, status, texts) in cases {
        let finished = finish(in_host(&host, args));
        assert_eq!(finished.status.code(), Some(status), "{args:?}: {finished:?}");
        for text in texts {
            assert!(
                finished.stderr.contains(text),
                "{args:?}: {text:?} in {}",
                finished.stderr
            );
        }
        assert!(
            finished.stdout.is_empty() && !finished.stderr.contains("panicked"),
            "{finished:?}"
        );
        if status == 1 {
            assert_eq!(finished.stderr.lines().count(), 1, "{args:?}: {}", finished.stderr);
        }
    }
    Ok(())
}

fn without_root_it_says_which_capabilities_are_missing() -> Result {
    use std::os::unix::process::CommandExt as _;
    let host = Host::new("alone")?;
    let mut command = in_host(&host, &["--json"]);
    // SAFETY: between fork and exec two system calls are made.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setgid(65_534.into())?;
            nix::unistd::setuid(65_534.into())?;
            Ok(())
        });
    }
    // The program may lie where only root may go; then there is nothing to see.
    let Ok(running) = Running::start(command) else {
        testbed::harness::unsupported("another user may not run this program where it lies");
    };
    let finished = running.wait(PATIENCE)?;
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("CAP_BPF"), "{finished:?}");
    Ok(())
}

fn an_interface_that_goes_ends_it_with_a_reason_and_the_books() -> Result {
    let (client, server) = cable()?;
    let args = ["--iface", &server.interface, "--no-cgroup", "--no-processes", "--json"];
    let running = Running::start(in_host(&server.host, &args))?;
    running.wait_for("watching", PATIENCE)?;
    client.delete()?;
    let finished = running.wait(PATIENCE)?;
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(
        finished
            .stderr
            .contains(&format!("error: {} has gone", server.interface)),
        "{finished:?}"
    );
    assert!(finished.stdout.contains("\"type\":\"balance\""), "{finished:?}");
    Ok(())
}

fn a_cgroup_that_goes_ends_it_with_a_reason_and_the_books() -> Result {
    let host = Host::new("alone")?;
    let cgroup = Cgroup::new("goes")?;
    let name = cgroup.name()?;
    let running = Running::start(in_host(&host, &["--cgroup", name.to_str().unwrap(), "--json"]))?;
    running.wait_for("watching", PATIENCE)?;
    drop(cgroup);
    let finished = running.wait(PATIENCE)?;
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    let why = format!("error: the cgroup /{} has gone", name.display());
    assert!(finished.stderr.contains(&why), "{finished:?}");
    assert!(finished.stdout.contains("\"type\":\"balance\""), "{finished:?}");
    Ok(())
}

fn after_kill_9_nothing_is_attached_any_more() -> Result {
    let (_client, server) = cable()?;
    let cgroup = Cgroup::new("kill")?;
    let name = cgroup.name()?;
    let args = [
        "--iface",
        &server.interface,
        "--cgroup",
        name.to_str().unwrap(),
        "--json",
    ];
    let running = Running::start(in_host(&server.host, &args))?;
    running.wait_for("watching", PATIENCE)?;
    assert!(server.has_xdp()?);
    running.signal(Signal::SIGKILL)?;
    running.wait(PATIENCE)?;
    crate::lab::wait_until("XDP has gone", || !server.has_xdp().unwrap());
    // And the next one starts as if nothing had been.
    let told = Lab::start(in_host(&server.host, &args)).stop();
    assert_eq!(told.balance()["decisions"]["happened"], 0, "{}", told.0);
    Ok(())
}

fn a_closed_pipe_is_no_failure() -> Result {
    use std::process::Stdio;
    let host = Host::new("alone")?;
    let mut command = in_host(&host, &["--json", "--no-cgroup"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = testbed::spawn(command)?;
    drop(child.stdout.take());
    // Somebody does something, again and again, until the command notices that nobody reads.
    let start = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < PATIENCE, "it goes on without a reader");
        let _ = std::process::Command::new(crate::lab::BINARY).arg("--version").output();
    };
    assert!(status.success(), "{status}");
    Ok(())
}
