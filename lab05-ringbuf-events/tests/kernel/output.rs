//! What is shown, and how: filters, lines for people, frames (A6).

use std::os::unix::fs::symlink;

use lab05_ringbuf_events_common::process::Deed;
use serde_json::json;
use testbed::{Cgroup, Result, Running, Terminal, traffic::Server};

use crate::{
    actor,
    lab::{Lab, PATIENCE, assert_balanced, cable, end_if_left_out, in_host, left_out},
};

testbed::listed_tests![
    filters_leave_out_what_is_not_wanted_and_the_books_go_on,
    only_processes_of_the_cgroup_and_of_those_below_it_are_told,
    only_a_process_and_those_that_come_from_it_are_told,
    lines_for_people_are_aligned_and_have_no_colours_in_a_pipe,
    on_a_terminal_of_100_columns_every_event_is_one_coloured_line_with_all_its_words,
    frames_have_the_fields_that_visibility_needs,
];

/// Options, the decisions that are shown with them, and whether processes are.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], bool);

fn filters_leave_out_what_is_not_wanted_and_the_books_go_on() -> Result {
    let (client, server) = cable()?;
    let echo = Server::tcp(&server.host, 0)?;
    let closed = format!("tcp/{}", echo.port() ^ 1);
    let v6 = server.ipv6.to_string();
    // The options, and which hooks' decisions are shown, with their verdict.
    let cases: [Case<'_>; 5] = [
        (
            &[],
            &[("connect4", "allow"), ("connect4", "block"), ("connect6", "allow")],
            true,
        ),
        (&["--verdict", "block"], &[("connect4", "block")], false),
        (&["--address", &v6], &[("connect6", "allow")], false),
        (&["--verdict", "block", "--address", &v6], &[], false),
        (&["--comm", "nobody"], &[], false),
    ];
    for (args, expected, with_processes) in cases {
        let cgroup = Cgroup::new("filters")?;
        let mut all = vec!["--json", "--block-port", &closed];
        all.extend(args);
        let lab = Lab::on(&client, &cgroup, &all);
        let script = format!(
            "tcp:{0}:{1} tcp:{0}:{2} tcp:[{3}]:{1}",
            server.ipv4,
            echo.port(),
            echo.port() ^ 1,
            v6
        );
        let (pid, _) = actor::run(&client, &cgroup, &script, &[]);
        let told = lab.stop();
        let shown: Vec<(String, String)> = told
            .decisions(pid)
            .iter()
            .map(|line| {
                (
                    line["hook"].as_str().unwrap().to_owned(),
                    line["verdict"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        let shown: Vec<(&str, &str)> = shown.iter().map(|(hook, verdict)| (&**hook, &**verdict)).collect();
        assert_eq!(shown, expected, "{args:?}");
        let execs = told.of_type("exec");
        assert_eq!(execs.iter().any(|line| line["pid"] == pid), with_processes, "{args:?}");
        // What is not shown was told all the same.
        assert!(
            assert_balanced(&told)["decisions"]["emitted"].as_u64() >= Some(3),
            "{args:?}"
        );
    }
    Ok(())
}

fn only_processes_of_the_cgroup_and_of_those_below_it_are_told() -> Result {
    let (client, _server) = cable()?;
    let cgroup = Cgroup::new("told")?;
    let (below, beside) = (cgroup.child("below")?, Cgroup::new("told-not")?);
    let lab = Lab::on(&client, &cgroup, &["--json"]);
    let (of_other, _) = actor::run(&client, &beside, "exit:0", &[]);
    let (of_this, _) = actor::run(&client, &cgroup, "exit:0", &[]);
    let (of_below, _) = actor::run(&client, &below, "exit:0", &[]);
    lab.wait_for_exit(of_below);
    let told = lab.stop();
    for kind in ["exec", "exit"] {
        let pids: Vec<u64> = told
            .of_type(kind)
            .iter()
            .map(|line| line["pid"].as_u64().unwrap())
            .collect();
        assert_eq!(
            pids,
            [u64::from(of_this), u64::from(of_below)],
            "{kind}, not {of_other}: {}",
            told.0
        );
    }
    let frame = told.frame();
    let of_frame: Vec<_> = frame["procs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| &process["pid"])
        .collect();
    assert_eq!(of_frame, [&json!(of_this), &json!(of_below)], "{frame:#}");
    // They were left out of what is shown only: all of them were told, by the books.
    assert!(
        assert_balanced(&told)["processes"]["emitted"].as_u64() >= Some(6),
        "{}",
        told.0
    );
    Ok(())
}

fn only_a_process_and_those_that_come_from_it_are_told() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("pid")?;
    let echo = Server::tcp(&server.host, 0)?;
    let script = format!("tcp:{}:{} child:exit:0 exit:0", server.ipv4, echo.port());
    let this = std::process::id().to_string();
    let lab = Lab::on(&client, &cgroup, &["--json", "--pid", &this]);
    let (child, _) = actor::run(&client, &cgroup, &script, &[]);
    lab.wait_for_exit(child);
    let told = lab.stop();
    assert_eq!(told.decisions(child).len(), 1, "{}", told.0);
    assert_eq!(told.one("exec", child)["ppid"], std::process::id());
    // The child's own child, from being made to its end.
    let of_child = |kind: &str| {
        let all = told.of_type(kind).into_iter();
        all.filter(|line| line["ppid"] == child)
            .map(|line| line["pid"].clone())
            .collect::<Vec<_>>()
    };
    let made = of_child("fork");
    assert_eq!(
        (made.len(), of_child("exec"), of_child("exit")),
        (1, made.clone(), made.clone()),
        "{}",
        told.0
    );
    // In a frame they stand, too, though they have ended.
    let frame = told.frame();
    let of_frame = |list: &str| {
        let all = frame[list].as_array().unwrap().iter();
        all.map(|one| one["pid"].clone()).collect::<Vec<_>>()
    };
    assert!(
        of_frame("procs").contains(&made[0]) && of_frame("procs").contains(&json!(child)),
        "{frame:#}"
    );
    assert_eq!(of_frame("flows"), [json!(child)], "{frame:#}");

    // Nobody comes from a process that has gone.
    let lab = Lab::on(&client, &cgroup, &["--json", "--pid", &child.to_string()]);
    let (other, _) = actor::run(&client, &cgroup, &script, &[]);
    let told = lab.stop();
    assert!(
        told.decisions(other).is_empty() && told.of_type("exec").is_empty(),
        "{}",
        told.0
    );
    assert!(
        assert_balanced(&told)["decisions"]["emitted"].as_u64() >= Some(1),
        "{}",
        told.0
    );
    Ok(())
}

fn lines_for_people_are_aligned_and_have_no_colours_in_a_pipe() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("pretty")?;
    let echo = Server::tcp(&server.host, 0)?;
    let closed = format!("tcp/{}", echo.port() ^ 1);
    let lab = Lab::on(&client, &cgroup, &["--pretty", "--block-port", &closed]);
    let script = format!(
        "tcp:{0}:{1} tcp:{0}:{2} exit:1",
        server.ipv4,
        echo.port(),
        echo.port() ^ 1
    );
    let (pid, _) = actor::run(&client, &cgroup, &script, &["an argument"]);
    lab.wait_for_deed(Deed::Exit, &["status 1", &format!("[{pid}]")]);
    let told = lab.stop();
    assert!(!told.0.contains('\x1b'), "{}", told.0);
    let who = format!("[{pid}]");
    let lines: Vec<&str> = told
        .0
        .lines()
        .filter(|line| line.contains(&who) && !line.contains("  flow  "))
        .collect();
    let whats: Vec<&str> = lines.iter().map(|line| line[9..14].trim()).collect();
    assert_eq!(whats, ["exec", "allow", "block", "exit"], "{}", told.0);
    // Each is attributable: the process stands in the same place of every line.
    assert!(
        lines
            .iter()
            .all(|line| line[16..].split("  ").next().unwrap().ends_with(&who)),
        "{}",
        told.0
    );
    assert!(
        lines[0].contains("\"an argument\"") && lines[2].contains("by block-port"),
        "{}",
        told.0
    );
    assert!(
        told.0.contains("  flow  ") && told.0.lines().last().unwrap().contains("0 lost"),
        "{}",
        told.0
    );
    Ok(())
}

fn on_a_terminal_of_100_columns_every_event_is_one_coloured_line_with_all_its_words() -> Result {
    const COLUMNS: u16 = 100;
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("terminal")?;
    // As short as they usually are, so that a line has room for them.
    let (open, closed) = (443, 23);
    let _echo = Server::tcp(&server.host, open)?;
    let folder = tempfile::tempdir().unwrap();
    let visitor = folder.path().join("visitor");
    symlink(std::env::current_exe().unwrap(), &visitor).unwrap();
    let name = cgroup.name()?;
    let mut command = in_host(&client.host, &["--cgroup", name.to_str().unwrap()]);
    command
        .args(["--block-port", &format!("tcp/{closed}")])
        .env_remove("NO_COLOR");
    let mut terminal = Terminal::start(command, COLUMNS, 30)?;
    terminal.wait_for("PROCESS", PATIENCE)?;
    let mut command = cgroup.command(&client.host, &visitor)?;
    command.env(
        "LAB05_SCRIPT",
        format!("tcp:{0}:{open} tcp:{0}:{closed} exit:1", server.ipv4),
    );
    let running = Running::start(command)?;
    let pid = running.id();
    running.wait(PATIENCE)?;
    if let Err(error) = terminal.wait_for("status 1", PATIENCE) {
        end_if_left_out(1, left_out(Deed::Exit));
        return Err(error);
    }
    terminal.type_in("\x03")?;
    let (_, shown) = terminal.wait(PATIENCE)?;
    assert!(
        shown.contains("\x1b[31mblock\x1b[0m") && shown.contains("\x1b[32mallow\x1b[0m"),
        "{shown}"
    );
    let mut plain = shown.clone();
    for colour in ["\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
        plain = plain.replace(colour, "");
    }
    assert!(!plain.contains('…'), "{plain}");
    let of_visitor: Vec<&str> = plain
        .lines()
        .filter(|line| line.contains(&format!("visitor[{pid}]")))
        .collect();
    let expected = [
        ("exec", format!("{}  uid 0, by ", visitor.display())),
        ("allow", format!("tcp → {}:{open} by default at connect4", server.ipv4)),
        (
            "block",
            format!("tcp → {}:{closed} by block-port at connect4", server.ipv4),
        ),
        ("exit", "status 1, after ".to_owned()),
        ("flow", format!("→ {}:{open} ", server.ipv4)),
    ];
    assert_eq!(of_visitor.len(), expected.len(), "{plain}");
    for (line, (what, details)) in of_visitor.iter().zip(&expected) {
        assert!(line.chars().count() <= usize::from(COLUMNS), "{line}");
        assert!(line[9..14].trim() == *what && line.contains(details), "{line}");
    }
    Ok(())
}

fn frames_have_the_fields_that_visibility_needs() -> Result {
    let (client, server) = cable()?;
    let cgroup = Cgroup::new("frames")?;
    let echo = Server::udp(&server.host, 0)?;
    let lab = Lab::on(&client, &cgroup, &["--json", "--frames", "100ms"]);
    let (pid, _) = actor::run(
        &client,
        &cgroup,
        &format!("udp:{}:{}", server.ipv4, echo.port()),
        &["-D"],
    );
    lab.wait_for(&["\"type\":\"frame\"", &format!("\"pid\":{pid}")]);
    let told = lab.stop();
    let frames = told.of_type("frame");
    assert!(frames.len() >= 2, "{}", told.0);
    let process = frames
        .iter()
        .flat_map(|frame| frame["procs"].as_array().unwrap())
        .find(|process| process["pid"] == pid && process["args"] == json!(["-D"]))
        .unwrap_or_else(|| panic!("{}", told.0));
    for field in ["pid", "ppid", "exe", "uid", "args", "start", "state", "threads"] {
        assert!(!process[field].is_null(), "{field}: {process}");
    }
    let flow = frames
        .iter()
        .flat_map(|frame| frame["flows"].as_array().unwrap())
        .find(|flow| flow["pid"] == pid)
        .unwrap_or_else(|| panic!("{}", told.0));
    for field in ["pid", "laddr", "raddr", "proto", "dir", "pkts", "bytes", "state"] {
        assert!(!flow[field].is_null(), "{field}: {flow}");
    }
    Ok(())
}
