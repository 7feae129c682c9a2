//! What processes do, what is decided about what they do, and what they send (A4, A5, A8, Z15).

use std::{fs, net::TcpListener, os::unix::fs::symlink};

use lab05_ringbuf_events_common::process::Deed;
use serde_json::{Value, json};
use testbed::{Cgroup, End, Result, Running, traffic::Server};

use crate::{
    actor,
    lab::{Lab, PATIENCE, assert_balanced, cable, end_if_left_out, left_out},
};

testbed::listed_tests![
    a_process_that_starts_connects_is_denied_and_exits_is_told_line_by_line,
    flows_are_counted_to_the_byte_and_belong_to_their_process,
    both_ends_of_a_connection_on_one_host_are_flows_of_their_own,
    what_the_kernel_answers_in_nobodys_name_is_no_flow,
    ipv6_addresses_and_ipv4_ones_written_as_such_are_blocked_like_others,
    datagrams_of_unconnected_sockets_are_blocked_too,
    in_observe_mode_nothing_is_blocked_and_all_of_it_told,
    by_default_block_only_what_is_allowed_passes,
    frames_are_blocked_and_told_with_their_addresses,
    arguments_longer_than_the_record_are_marked_as_cut,
    a_path_that_was_given_as_a_relative_one_is_told_whole,
    threads_are_told_on_demand_and_counted,
    processes_that_are_older_than_the_command_are_known,
    a_process_that_is_killed_is_told_so,
];

fn names(decisions: &[Value]) -> Vec<(&str, &str)> {
    let name = |value: &Value, key: &str| -> &'static str { value[key].as_str().unwrap().to_owned().leak() };
    decisions
        .iter()
        .map(|line| (name(line, "hook"), name(line, "verdict")))
        .collect()
}

fn a_process_that_starts_connects_is_denied_and_exits_is_told_line_by_line() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("story")?;
    let (open, closed) = (Server::tcp(&server.host, 0)?, Server::tcp(&server.host, 0)?);
    let lab = Lab::on(
        &client,
        &cgroup,
        &["--json", "--block-port", &format!("tcp/{}", closed.port())],
    );
    let script = format!(
        "tcp:{0}:{1} tcp:{0}:{2} exit:3",
        server.ipv4,
        open.port(),
        closed.port()
    );
    let (pid, finished) = actor::run(&client, &cgroup, &script, &["two words", ""]);
    assert!(
        finished.stdout.contains(": connected") && finished.stdout.contains(": PermissionDenied"),
        "{finished:?}"
    );
    lab.wait_for_exit(pid);
    let told = lab.stop();
    assert_balanced(&told);

    let exec = told.one("exec", pid);
    let this = std::env::current_exe().unwrap();
    assert_eq!(exec["exe"], this.to_str().unwrap());
    assert_eq!(exec["args"], json!(["two words", ""]));
    assert_eq!((&exec["args_cut"], &exec["uid"]), (&json!(false), &json!(0)));
    assert_eq!(exec["ppid"], std::process::id());
    assert!(exec["cgroup"].as_str().unwrap().contains("story"), "{exec}");

    let decisions = told.decisions(pid);
    assert_eq!(
        names(&decisions),
        [("connect4", "allow"), ("connect4", "block")],
        "{decisions:#?}"
    );
    let (allowed, blocked) = (&decisions[0], &decisions[1]);
    assert_eq!((&allowed["rule"], &allowed["map"]), (&json!("default"), &Value::Null));
    assert_eq!(
        (&blocked["rule"], &blocked["map"]),
        (&json!("block-port"), &json!("PORTS"))
    );
    assert_eq!(
        (&blocked["program"], &blocked["mode"]),
        (&json!("connect4"), &json!("block"))
    );
    assert_eq!(blocked["reason"], "port");
    assert_eq!(
        blocked["five_tuple"],
        json!({
            "src_ip": null,
            "dst_ip": server.ipv4.to_string(),
            "src_port": null,
            "dst_port": closed.port(),
            "protocol": "tcp",
        })
    );
    let process = &blocked["process"];
    assert_eq!((&process["uid"], &process["cgroup"]), (&json!(0), &exec["cgroup"]));
    assert_eq!(process["comm"], exec["comm"]);

    let exit = told.one("exit", pid);
    assert_eq!((&exit["end"], &exit["exit_code"]), (&json!("status 3"), &json!(0x300)));
    // The story is told in its order.
    let of_process: Vec<u64> = told
        .lines()
        .iter()
        .filter(|line| line["pid"] == pid || line["process"]["pid"] == pid)
        .map(|line| line["time_ns"].as_u64().unwrap())
        .collect();
    assert_eq!(of_process.len(), 4, "exec, two decisions, exit: {}", told.0);
    assert!(of_process.is_sorted());
    assert_eq!(closed.connections(), 0);
    Ok(())
}

fn flows_are_counted_to_the_byte_and_belong_to_their_process() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("flows")?;
    let echo = Server::udp(&server.host, 0)?;
    let lab = Lab::on(&client, &cgroup, &["--json", "--packets"]);
    let script = format!("udp:{}:{1} udp:[{2}]:{1}", server.ipv4, echo.port(), server.ipv6);
    let (pid, finished) = actor::run(&client, &cgroup, &script, &[]);
    assert_eq!(finished.stdout.matches("answered").count(), 2, "{finished:?}");
    let told = lab.stop();
    let frame = told.frame();
    assert!(frame["host_id"].as_str().unwrap().starts_with("h-") && frame["ts"].is_string());
    let mut flows: Vec<&Value> = frame["flows"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|flow| flow["pid"] == pid)
        .collect();
    flows.sort_by_key(|flow| flow["bytes"].as_u64());
    // Three datagrams of 100 bytes each way, behind 8 of UDP and 20 of IPv4 or 40 of IPv6.
    for (flow, (address, header)) in flows
        .iter()
        .zip([(server.ipv4.to_string(), 28), (format!("[{}]", server.ipv6), 48)])
    {
        let numbers =
            ["pkts", "bytes", "pkts_in", "bytes_in", "pkts_out", "bytes_out"].map(|name| flow[name].as_u64().unwrap());
        let bytes = 3 * (100 + header);
        assert_eq!(numbers, [6, 2 * bytes, 3, bytes, 3, bytes], "{flow}");
        assert_eq!(flow["raddr"], format!("{address}:{}", echo.port()));
        assert_eq!((&flow["proto"], &flow["dir"]), (&json!("udp"), &json!("egress")));
        assert_eq!(flow["state"], "closed", "its process has ended");
    }
    assert_eq!(flows.len(), 2, "{frame:#}");
    // Every packet that was sent was told, with the process that made the socket.
    let packets = told.decisions(pid).into_iter().filter(|line| line["hook"] == "egress");
    let bytes: u64 = packets.map(|line| line["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, 3 * 128 + 3 * 148);
    Ok(())
}

fn both_ends_of_a_connection_on_one_host_are_flows_of_their_own() -> Result {
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("both")?;
    // The server's sockets are this process's, which is in the root: both are seen from there.
    let echo = Server::tcp(&client.host, 0)?;
    let mut command = crate::lab::in_host(&client.host, &["--json", "--cgroup", "/"]);
    command.args(["--address", "127.0.0.1"]);
    let lab = Lab::start(command);
    let script = format!("hold:127.0.0.1:{} wait:60000", echo.port());
    let running = Running::start(actor::command(&client, &cgroup, &script, &[]))?;
    running.wait_for("connected", PATIENCE)?;
    let pid = running.id();
    crate::lab::wait_until("the server has accepted", || echo.connections() == 1);
    let frame = lab.stop().frame();
    let flows = frame["flows"].as_array().unwrap();
    let target = json!(format!("127.0.0.1:{}", echo.port()));
    let outgoing: Vec<&Value> = flows.iter().filter(|flow| flow["raddr"] == target).collect();
    assert_eq!(outgoing.len(), 1, "{flows:#?}");
    let said = ["dir", "pid", "state"].map(|name| &outgoing[0][name]);
    assert_eq!(
        said,
        [&json!("egress"), &json!(pid), &json!("established")],
        "{flows:#?}"
    );
    // The handshake is the listening socket's; what comes behind it, if anything has, that of the accepted one.
    let incoming: Vec<&Value> = flows.iter().filter(|flow| flow["laddr"] == target).collect();
    assert!(incoming.iter().any(|flow| flow["state"] == "listen"), "{flows:#?}");
    for flow in incoming {
        let said = ["dir", "pid", "raddr"].map(|name| &flow[name]);
        let expected = [&json!("ingress"), &json!(std::process::id()), &outgoing[0]["laddr"]];
        assert_eq!(said, expected, "{flows:#?}");
        assert_ne!(flow["cookie"], outgoing[0]["cookie"]);
    }
    Ok(())
}

fn what_the_kernel_answers_in_nobodys_name_is_no_flow() -> Result {
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("nobody")?;
    let listener = client.host.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let target = listener.local_addr().unwrap();
    let closed = format!("127.0.0.1:{}", target.port() ^ 1);
    let lab = Lab::start(crate::lab::in_host(&client.host, &["--json", "--cgroup", "/"]));
    let script = format!("tcp:{target} tcp:{closed}");
    let running = Running::start(actor::command(&client, &cgroup, &script, &[]))?;
    let (accepted, peer) = listener.accept().unwrap();
    let pid = running.id();
    let finished = running.wait(PATIENCE)?;
    assert!(finished.stdout.contains("ConnectionRefused"), "{finished:?}");
    // The client's side is closed, and its socket has gone but for what is kept to answer the far end's FIN: that answer the
    // kernel sends by a socket of its own, as it does the reset of the port where nobody listens.
    crate::lab::wait_until("the client's side waits for a FIN", || {
        states_of(&client, peer.port(), target.port()) == ["05"]
    });
    drop(accepted);
    crate::lab::wait_until("the far end's FIN has been answered", || {
        states_of(&client, target.port(), peer.port()).is_empty()
    });
    let frame = lab.stop().frame();
    let flows = frame["flows"].as_array().unwrap();
    for target in [target.to_string(), closed] {
        let outgoing: Vec<_> = flows.iter().filter(|flow| flow["raddr"] == target).collect();
        assert_eq!(outgoing.len(), 1, "{target}: {flows:#?}");
        assert_eq!(
            (&outgoing[0]["dir"], &outgoing[0]["pid"]),
            (&json!("egress"), &json!(pid)),
            "{flows:#?}"
        );
    }
    let resets = flows
        .iter()
        .filter(|flow| flow["laddr"] == format!("127.0.0.1:{}", target.port() ^ 1));
    assert_eq!(resets.count(), 0, "{flows:#?}");
    Ok(())
}

/// The states of the TCP sockets with these ports, as `/proc/net/tcp` has them: `05` is FIN-WAIT-2.
fn states_of(end: &End, local: u16, remote: u16) -> Vec<String> {
    let sockets = end
        .host
        .run(|| fs::read_to_string("/proc/thread-self/net/tcp"))
        .unwrap();
    let (local, remote) = (format!(":{local:04X}"), format!(":{remote:04X}"));
    let lines = sockets
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let of_ports = lines.filter(|fields| fields[1].ends_with(&local) && fields[2].ends_with(&remote));
    of_ports.map(|fields| fields[3].to_owned()).collect()
}

fn ipv6_addresses_and_ipv4_ones_written_as_such_are_blocked_like_others() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("ipv6")?;
    let echo = Server::tcp(&server.host, 0)?;
    let (v4, v6, port) = (server.ipv4.to_string(), server.ipv6.to_string(), echo.port());
    let lab = Lab::on(&client, &cgroup, &["--json", "--block-ip", &v4, "--block-ip", &v6]);
    let script = format!("tcp:{v4}:{port} tcp:[{v6}]:{port} tcp:[::ffff:{v4}]:{port}");
    let (pid, finished) = actor::run(&client, &cgroup, &script, &[]);
    assert_eq!(finished.stdout.matches("PermissionDenied").count(), 3, "{finished:?}");
    lab.wait_for_exit(pid);
    let told = lab.stop();
    let decisions = told.decisions(pid);
    assert_eq!(
        names(&decisions),
        [("connect4", "block"), ("connect6", "block"), ("connect6", "block")]
    );
    let addresses: Vec<&str> = decisions
        .iter()
        .map(|line| line["five_tuple"]["dst_ip"].as_str().unwrap())
        .collect();
    assert_eq!(addresses, [&*v4, &*v6, &*v4]);
    assert_eq!(echo.connections(), 0);
    Ok(())
}

fn datagrams_of_unconnected_sockets_are_blocked_too() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("datagrams")?;
    let echo = Server::udp(&server.host, 0)?;
    let port = format!("udp/{}", echo.port());
    let lab = Lab::on(&client, &cgroup, &["--json", "--block-port", &port]);
    let script = format!("udp:{}:{1} udp:[{2}]:{1}", server.ipv4, echo.port(), server.ipv6);
    let (pid, finished) = actor::run(&client, &cgroup, &script, &[]);
    assert_eq!(finished.stdout.matches("PermissionDenied").count(), 2, "{finished:?}");
    lab.wait_for_exit(pid);
    let told = lab.stop();
    assert_eq!(
        names(&told.decisions(pid)),
        [("sendmsg4", "block"), ("sendmsg6", "block")]
    );
    assert_eq!(echo.packets(), 0);
    Ok(())
}

fn in_observe_mode_nothing_is_blocked_and_all_of_it_told() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("observe")?;
    let echo = Server::tcp(&server.host, 0)?;
    let port = format!("tcp/{}", echo.port());
    let lab = Lab::on(&client, &cgroup, &["--json", "--observe", "--block-port", &port]);
    let (pid, finished) = actor::run(&client, &cgroup, &format!("tcp:{}:{}", server.ipv4, echo.port()), &[]);
    assert!(finished.stdout.contains("connected"), "{finished:?}");
    lab.wait_for_exit(pid);
    let decisions = lab.stop().decisions(pid);
    assert_eq!(
        names(&decisions[..2]),
        [("connect4", "observe_drop"), ("egress", "observe_drop")]
    );
    assert!(
        decisions
            .iter()
            .all(|line| line["verdict"] == "observe_drop" && line["mode"] == "observe")
    );
    Ok(())
}

fn by_default_block_only_what_is_allowed_passes() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("default")?;
    let (open, closed) = (Server::tcp(&server.host, 0)?, Server::tcp(&server.host, 0)?);
    let args = [
        "--json",
        "--default",
        "block",
        "--allow-port",
        &format!("tcp/{}", open.port()),
    ];
    let lab = Lab::on(&client, &cgroup, &args);
    let script = format!("tcp:{0}:{1} tcp:{0}:{2}", server.ipv4, open.port(), closed.port());
    let (pid, finished) = actor::run(&client, &cgroup, &script, &[]);
    assert!(
        finished.stdout.contains("connected") && finished.stdout.contains("PermissionDenied"),
        "{finished:?}"
    );
    lab.wait_for_exit(pid);
    let decisions = lab.stop().decisions(pid);
    let rules: Vec<&str> = decisions.iter().map(|line| line["rule"].as_str().unwrap()).collect();
    assert_eq!(rules, ["allow", "default"]);
    assert_eq!(closed.connections(), 0);
    Ok(())
}

fn frames_are_blocked_and_told_with_their_addresses() -> Result {
    let (client, server) = cable()?;
    let args = [
        "--iface",
        &server.interface,
        "--no-cgroup",
        "--no-processes",
        "--json",
        "--block-port",
        "udp/9",
    ];
    let lab = Lab::start(crate::lab::in_host(&server.host, &args));
    let frame = client
        .frame_to(&server)
        .ipv4(client.ipv4, server.ipv4)
        .udp(1000, 9)
        .payload([0; 18])
        .build();
    let short = &frame[..14 + 12];
    client.host.inject(&client.interface, &frame)?;
    client.host.inject(&client.interface, short)?;
    lab.wait_for(&["\"malformed\":\"ipv4-truncated\""]);
    let told = lab.stop();
    let decisions = told.of_type("enforce_decision");
    let blocked = &decisions[0];
    assert_eq!(
        (&blocked["hook"], &blocked["verdict"]),
        (&json!("xdp"), &json!("block"))
    );
    assert_eq!(
        blocked["five_tuple"],
        json!({
            "src_ip": client.ipv4.to_string(),
            "dst_ip": server.ipv4.to_string(),
            "src_port": 1000,
            "dst_port": 9,
            "protocol": "udp",
        })
    );
    assert_eq!(
        (&blocked["bytes"], &blocked["process"]),
        (&json!(frame.len()), &Value::Null)
    );
    assert_eq!(blocked["interface"], server.index);
    let malformed = &decisions[1];
    assert_eq!(
        (&malformed["reason"], &malformed["five_tuple"]),
        (&json!("malformed"), &Value::Null)
    );
    assert_eq!(assert_balanced(&told)["decisions"]["happened"], 2);
    Ok(())
}

fn arguments_longer_than_the_record_are_marked_as_cut() -> Result {
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("args")?;
    let lab = Lab::on(&client, &cgroup, &["--json"]);
    // The record holds 512 bytes, the program's own name and the closing zeros among them.
    let long = "x".repeat(1000);
    let many: Vec<String> = (0..200).map(|number| format!("argument-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (of_long, _) = actor::run(&client, &cgroup, "exit:0", &[&long]);
    let (of_many, _) = actor::run(&client, &cgroup, "exit:0", &many);
    lab.wait_for_exit(of_many);
    let told = lab.stop();
    let exec = told.one("exec", of_long);
    assert_eq!(exec["args_cut"], true);
    let args = exec["args"].as_array().unwrap();
    assert!(args.len() == 1 && long.starts_with(args[0].as_str().unwrap()), "{exec}");
    let exec = told.one("exec", of_many);
    assert_eq!(exec["args_cut"], true);
    let args = exec["args"].as_array().unwrap();
    assert!(args.len() > 10 && args.len() < 200 && args[0] == "argument-0", "{exec}");
    Ok(())
}

fn a_path_that_was_given_as_a_relative_one_is_told_whole() -> Result {
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("path")?;
    let folder = tempfile::tempdir().unwrap();
    symlink(std::env::current_exe().unwrap(), folder.path().join("visitor")).unwrap();
    let lab = Lab::on(&client, &cgroup, &["--json"]);
    let mut command = cgroup.command(&client.host, "./visitor")?;
    command.current_dir(folder.path()).env("LAB05_SCRIPT", "wait:300");
    let running = Running::start(command)?;
    let pid = running.id();
    lab.wait_for_deed(Deed::Exec, &["\"exec\"", &format!("\"pid\":{pid}")]);
    running.wait(PATIENCE)?;
    let exec = lab.stop().one("exec", pid);
    assert_eq!(exec["exe"], std::env::current_exe().unwrap().to_str().unwrap());
    assert_eq!(exec["comm"], "visitor");
    Ok(())
}

fn threads_are_told_on_demand_and_counted() -> Result {
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("threads")?;
    let lab = Lab::on(&client, &cgroup, &["--json", "--threads"]);
    let (pid, _) = actor::run(&client, &cgroup, "threads:3 exit:0", &[]);
    lab.wait_for_deed(Deed::Exit, &["\"exit\"", &format!("\"tid\":{pid},")]);
    let left_out = left_out(Deed::Exit);
    let told = lab.stop();
    let of = |kind: &str| {
        told.of_type(kind)
            .into_iter()
            .filter(|line| line["pid"] == pid)
            .collect::<Vec<_>>()
    };
    // Three threads are made; the process itself was made before it was in this cgroup. All four end, some at the same time.
    end_if_left_out(4_u64.saturating_sub(of("exit").len() as u64), left_out);
    assert_eq!((of("fork").len(), of("exit").len()), (3, 4), "{}", told.0);
    let most = of("fork").iter().map(|line| line["threads"].as_u64().unwrap()).max();
    assert!(most >= Some(2), "{}", told.0);
    Ok(())
}

fn processes_that_are_older_than_the_command_are_known() -> Result {
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("older")?;
    let running = Running::start(actor::command(&client, &cgroup, "idle:2 wait:60000", &["older"]))?;
    let pid = running.id();
    // It has begun when it is itself, and not yet what it was forked from.
    crate::lab::wait_until("the actor runs", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        threads == 3 && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0older\0"))
    });
    let lab = Lab::on(&client, &cgroup, &["--json", "--pid", &pid.to_string()]);
    let told = lab.stop();
    let frame = told.frame();
    let processes = frame["procs"].as_array().unwrap();
    assert_eq!(processes.len(), 1, "{frame:#}");
    let process = &processes[0];
    assert_eq!(
        (&process["pid"], &process["ppid"]),
        (&json!(pid), &json!(std::process::id()))
    );
    assert_eq!(process["args"], json!(["older"]));
    assert_eq!(process["exe"], std::env::current_exe().unwrap().to_str().unwrap());
    assert!(matches!(process["state"].as_str(), Some("S" | "R" | "D")), "{process}");
    assert!(
        process["threads"] == 3 && process["start"].as_str().unwrap().starts_with("20"),
        "{process}"
    );
    Ok(())
}

fn a_process_that_is_killed_is_told_so() -> Result {
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("killed")?;
    let lab = Lab::on(&client, &cgroup, &["--json"]);
    let running = Running::start(actor::command(&client, &cgroup, "wait:60000", &[]))?;
    let pid = running.id();
    lab.wait_for_deed(Deed::Exec, &["\"exec\"", &format!("\"pid\":{pid}")]);
    running.signal(nix::sys::signal::Signal::SIGTERM)?;
    running.wait(PATIENCE)?;
    lab.wait_for_exit(pid);
    assert_eq!(lab.stop().one("exit", pid)["end"], "killed by SIGTERM");
    Ok(())
}
