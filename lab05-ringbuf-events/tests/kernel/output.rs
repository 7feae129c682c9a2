//! What is shown, and how: filters, lines for people, frames (A6).

use serde_json::json;
use testbed::{Cgroup, Result, traffic::Server};

use crate::{
    actor,
    lab::{Lab, assert_balanced, cable},
};

testbed::listed_tests![
    filters_leave_out_what_is_not_wanted_and_the_books_go_on,
    lines_for_people_are_aligned_and_have_no_colours_in_a_pipe,
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
    lab.wait_for(&["status 1", &format!("[{pid}]")]);
    let told = lab.stop();
    assert!(!told.0.contains('\x1b'), "{}", told.0);
    let who = format!("[{pid}]");
    let lines: Vec<&str> = told
        .0
        .lines()
        .filter(|line| line.contains(&who) && !line.contains("  flow  "))
        .collect();
    let whats: Vec<&str> = lines.iter().map(|line| line[12..22].trim()).collect();
    assert_eq!(whats, ["exec", "allow", "block", "exit"], "{}", told.0);
    // Each is attributable: the process stands in the same place of every line.
    assert!(
        lines
            .iter()
            .all(|line| line[24..].split("  ").next().unwrap().ends_with(&who)),
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
