//! Channels (F6), messages of DNS and DHCP (F5), stacks (F7).

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use serde_json::Value;
use testbed::{Cgroup, End, Host, Result, Running, TRACEFS, harness::unsupported, packets, see_tracefs, traffic};

use crate::{
    actor,
    lab::{PATIENCE, cable, finish, in_host, wait_until},
};

testbed::listed_tests![
    both_channels_tell_of_the_same_packets,
    messages_of_dns_and_dhcp_are_counted_by_type,
    stacks_of_connect_have_names_where_there_are_kprobes,
    where_there_are_no_kprobes_one_line_says_so,
    mistakes_beside_the_story_are_answered_too,
    an_interface_that_goes_ends_counting_messages_too,
];

/// Has a command see tracefs, which is mounted for it alone where it is not there.
fn with_tracefs(command: &mut Command) {
    // SAFETY: between fork and exec system calls are made, with what is there already.
    unsafe { command.pre_exec(|| Ok(see_tracefs()?)) };
}

fn last(running: &Running) -> Value {
    let printed = running.stdout();
    printed
        .lines()
        .last()
        .map_or(Value::Null, |line| serde_json::from_str(line).unwrap())
}

fn both_channels_tell_of_the_same_packets() -> Result {
    if !Path::new(TRACEFS).is_dir() {
        unsupported("the kernel has no tracefs");
    }
    let (client, server) = cable()?;
    let mut command = in_host(&server.host, &["channels", "--json", "--interval", "100ms"]);
    with_tracefs(&mut command);
    let running = Running::start(command)?;
    running.wait_for("\"elapsed_ms\"", PATIENCE)?;
    let pings = traffic::ping(&client.host, server.ipv4, 50, PATIENCE)?;
    assert!(pings.is_complete(), "{pings:?}");
    // The tracepoint is the machine's, so that others' packets count as well: the two channels agree all the same.
    let number = |report: &Value, channel: usize, name: &str| report["channels"][channel][name].as_u64().unwrap();
    wait_until("both channels have delivered what there was", || {
        let report = last(&running);
        (0..2).all(|channel| {
            let records = number(&report, channel, "records");
            records >= 100 && number(&report, channel, "delivered") + number(&report, channel, "lost") >= 100
        })
    });
    let finished = running.interrupt(PATIENCE)?;
    assert!(finished.status.success(), "{finished:?}");
    let report: Value = serde_json::from_str(finished.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(report["channels"][0]["channel"], "perf-array");
    assert_eq!(report["channels"][1]["channel"], "ring-buffer");
    for channel in 0..2 {
        assert!(
            number(&report, channel, "wake_ups") > 0 && number(&report, channel, "send_ns") > 0,
            "{report}"
        );
        assert!(
            report["channels"][channel]["latency_p50_us"].as_f64() > Some(0.0),
            "{report}"
        );
    }
    Ok(())
}

/// The command that counts messages at `end`, once it does.
fn counting_messages(end: &End) -> Result<Running> {
    let args = ["messages", "--iface", &end.interface, "--json", "--interval", "100ms"];
    let running = Running::start(in_host(&end.host, &args))?;
    running.wait_for("\"elapsed_ms\"", PATIENCE)?;
    Ok(running)
}

fn messages_of_dns_and_dhcp_are_counted_by_type() -> Result {
    let (client, server) = cable()?;
    let running = counting_messages(&server)?;
    let v4 = |from: u16, to: u16, payload: Vec<u8>| {
        client
            .frame_to(&server)
            .ipv4(client.ipv4, server.ipv4)
            .udp(from, to)
            .payload(payload)
            .build()
    };
    let v6 = |from: u16, to: u16, payload: Vec<u8>| {
        client
            .frame_to(&server)
            .ipv6(client.ipv6, server.ipv6)
            .udp(from, to)
            .payload(payload)
            .build()
    };
    let dns = |flags: [u8; 2]| [vec![0, 1], flags.to_vec(), vec![0; 8]].concat();
    let dhcp = |options: &[u8]| [vec![1; 236], vec![99, 130, 83, 99], options.to_vec()].concat();
    let frames = [
        (v4(4000, 53, dns([0x01, 0])), "dns-query"),
        (v6(4000, 53, dns([0x01, 0])), "dns-query"),
        (v4(53, 4000, dns([0x81, 0x80])), "dns-answer"),
        (v4(53, 4000, dns([0x81, 0x83])), "dns-no-such-name"),
        (v4(53, 4000, dns([0x81, 0x82])), "dns-server-failure"),
        (v4(53, 4000, dns([0x81, 0x85])), "dns-other-error"),
        (v4(4000, 53, dns([0x28, 0])), "dns-other"),
        (v4(4000, 53, vec![0; 5]), "dns-malformed"),
        (v4(68, 67, dhcp(&[53, 1, 1, 255])), "dhcp-discover"),
        (v4(67, 68, dhcp(&[0, 0, 12, 3, 1, 2, 3, 53, 1, 5, 255])), "dhcp-ack"),
        (v4(68, 67, dhcp(&[255])), "dhcp-other"),
        (v4(68, 67, dhcp(&[12, 200, 1])), "dhcp-malformed"),
        (v4(68, 67, vec![1; 100]), "dhcp-malformed"),
        (v6(546, 547, vec![1, 0, 0, 1]), "dhcpv6-solicit"),
        (v6(547, 546, vec![7, 0, 0, 1]), "dhcpv6-reply"),
        (v6(547, 546, vec![99, 0, 0, 1]), "dhcpv6-other"),
        (v6(546, 547, vec![]), "dhcpv6-malformed"),
    ];
    let injector = client.host.injector(&client.interface)?;
    injector.send_all(frames.iter().map(|(frame, _)| frame))?;
    // What is neither counts for nothing: another port, another protocol, a later fragment.
    injector.send(&v4(4000, 5353, dns([0x01, 0])))?;
    let datagram = v4(53, 4000, vec![0; 3000]);
    injector.send_all(packets::split(&datagram, 1500, 1))?;
    let counted = |report: &Value, name: &str| {
        let lines = report["messages"].as_array().unwrap();
        lines
            .iter()
            .find(|line| line["message"] == name)
            .map_or(0, |line| line["packets"].as_u64().unwrap())
    };
    let total = |report: &Value| {
        report["messages"].as_array().map_or(0, |lines| {
            lines.iter().map(|line| line["packets"].as_u64().unwrap()).sum()
        })
    };
    wait_until("all messages are counted", || {
        total(&last(&running)) >= frames.len() as u64
    });
    let finished = running.interrupt(PATIENCE)?;
    let report: Value = serde_json::from_str(finished.stdout.lines().last().unwrap()).unwrap();
    for (_, name) in &frames {
        let expected = frames.iter().filter(|(_, other)| other == name).count();
        assert_eq!(counted(&report, name), expected as u64, "{name}: {report}");
    }
    assert_eq!(total(&report), frames.len() as u64, "{report}");
    for line in report["messages"].as_array().unwrap() {
        let by_cpu: u64 = line["by_cpu"]
            .as_array()
            .unwrap()
            .iter()
            .map(|number| number.as_u64().unwrap())
            .sum();
        assert_eq!(by_cpu, line["packets"].as_u64().unwrap(), "{line}");
    }
    Ok(())
}

fn has_kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
}

fn stacks_of_connect_have_names_where_there_are_kprobes() -> Result {
    if !has_kprobes() {
        unsupported("this kernel has no kprobes");
    }
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("stacks")?;
    let echo = traffic::Server::tcp(&server.host, 0)?;
    let running = Running::start(in_host(&client.host, &["stacks", "--json"]))?;
    running.wait_for("watching", PATIENCE)?;
    let script = format!("tcp:{}:{} wait:500", server.ipv4, echo.port());
    let (pid, finished) = actor::run(&client, &cgroup, &script, &[]);
    assert!(finished.stdout.contains("connected"), "{finished:?}");
    running.wait_for(&format!("\"pid\":{pid}"), PATIENCE)?;
    let stack = running
        .stdout()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|stack| stack["pid"] == pid)
        .unwrap();
    let names: Vec<&str> = stack["kernel"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert!(names[0].starts_with("tcp_v4_connect+"), "{stack}");
    assert!(names.iter().any(|name| name.contains("sys_connect")), "{stack}");
    let user = stack["user"].as_array().unwrap();
    assert!(
        user.iter().any(|name| name.as_str().unwrap().contains("connect")),
        "{stack}"
    );
    running.interrupt(PATIENCE)?;
    Ok(())
}

fn where_there_are_no_kprobes_one_line_says_so() -> Result {
    if has_kprobes() {
        unsupported("this kernel has kprobes");
    }
    let finished = finish(in_host(&Host::new("alone")?, &["stacks"]));
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(
        finished.stderr.starts_with("error: this kernel has no kprobes"),
        "{finished:?}"
    );
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    Ok(())
}

fn mistakes_beside_the_story_are_answered_too() -> Result {
    let host = Host::new("alone")?;
    let cases: [(&[&str], i32, &str); 6] = [
        (&["messages"], 2, "--iface"),
        (&["messages", "--iface", "eth7"], 1, "no network interface \"eth7\""),
        (&["channels", "--ring-size", "100"], 2, "power of two"),
        (&["channels", "--interval", "1ms"], 2, "100ms"),
        (&["stacks", "--duration", "0s"], 2, "more than nothing"),
        (&["stack"], 2, "unrecognized subcommand"),
    ];
    for (args, status, text) in cases {
        let finished = finish(in_host(&host, args));
        assert_eq!(finished.status.code(), Some(status), "{args:?}: {finished:?}");
        assert!(finished.stderr.contains(text), "{args:?}: {finished:?}");
    }
    Ok(())
}

fn an_interface_that_goes_ends_counting_messages_too() -> Result {
    let (client, server) = cable()?;
    let running = counting_messages(&server)?;
    client.delete()?;
    let finished = running.wait(PATIENCE)?;
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    let why = format!("error: {} has gone", server.interface);
    assert!(finished.stderr.contains(&why), "{finished:?}");
    Ok(())
}
