//! What the command prints (M3, P3, P9): JSON, plain lines, a table on a terminal, and that the numbers add up.

use serde_json::Value;
use testbed::{End, Result, Running, Terminal};

use crate::lab::{BINARY, Firewall, PATIENCE, cable, finish, on};

testbed::listed_tests![
    json_has_all_fields_and_they_add_up,
    plain_lines_name_every_number,
    reports_come_every_two_seconds_unless_told_otherwise,
    the_table_is_drawn_in_place_and_cut_to_the_terminal,
    dropped_frames_are_logged_now_and_then,
    a_closed_pipe_ends_it_without_a_word,
    help_explains_every_option,
];

/// Options under which the frames below meet many reasons.
const OPTIONS: [&str; 10] = [
    "--block-ip",
    "10.0.0.1",
    "--block-port",
    "udp/53",
    "--allow-port",
    "tcp/22",
    "--malformed",
    "drop",
    "--block-mac",
    "02:00:00:00:00:77",
];

/// Verdict, reason, and how many frames of how many bytes each meet them.
const EXPECTED: [(&str, &str, u64, u64); 7] = [
    ("pass", "not-ip", 1, 42),
    ("pass", "allowed", 2, 14 + 20 + 20),
    ("pass", "default", 3, 14 + 40 + 8),
    ("drop", "malformed", 5, 14),
    ("drop", "mac", 1, 42),
    ("drop", "address", 4, 14 + 20 + 8 + 100),
    ("drop", "port", 2, 14 + 20 + 8),
];
const FRAMES: u64 = 18;

fn send_all_kinds(from: &End, to: &End) -> Result {
    let frame = || from.frame_to(to);
    let v4 = |source: &str| frame().ipv4(source, to.ipv4);
    let kinds = [
        (1, frame().arp_request(from.ipv4, to.ipv4)),
        (2, v4("10.0.0.9").tcp(1000, 22).syn()),
        (3, frame().ipv6("2001:db8:9::1", to.ipv6).udp(1000, 80)),
        (5, frame().ether_type(0x0800)),
        (
            1,
            frame().from_mac([2, 0, 0, 0, 0, 0x77]).arp_request(from.ipv4, to.ipv4),
        ),
        (4, v4("10.0.0.1").udp(1, 2).payload([0; 100])),
        (2, v4("10.0.0.9").udp(1000, 53)),
    ];
    let injector = from.host.injector(&from.interface)?;
    for (count, packet) in kinds {
        injector.send_all(std::iter::repeat_n(packet.build(), count))?;
    }
    Ok(())
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn json_has_all_fields_and_they_add_up() -> Result {
    let (client, server) = cable()?;
    let firewall = Firewall::on(&server, &OPTIONS);
    let empty = firewall.report();
    assert_eq!(empty.0["by_reason"], Value::Array(vec![]));
    assert_eq!(empty.0["block_rate"], 0.0);
    send_all_kinds(&client, &server)?;
    let (report, _) = firewall.stop_after(FRAMES);
    let json = &report.0;
    assert_eq!(
        keys(json),
        [
            "block_rate",
            "by_reason",
            "dropped",
            "elapsed_ms",
            "interface",
            "lookups",
            "malformed",
            "parse_errors",
            "passed",
            "total",
            "xdp_mode"
        ]
    );
    assert_eq!(keys(&json["total"]), ["bytes", "packets", "packets_per_second"]);
    assert_eq!(
        (&json["interface"], &json["xdp_mode"]),
        (&"eth0".into(), &"native".into())
    );

    let lines = json["by_reason"].as_array().unwrap();
    assert_eq!(lines.len(), EXPECTED.len(), "{json}");
    for (verdict, reason, packets, bytes) in EXPECTED {
        assert_eq!(report.of(verdict, reason), packets, "{verdict} {reason}");
        assert_eq!(
            report.amount_of(verdict, reason, "bytes"),
            packets * bytes,
            "{verdict} {reason}"
        );
    }
    for unit in ["packets", "bytes"] {
        let of = |kind: &str| json[kind][unit].as_u64().unwrap();
        assert_eq!(of("passed") + of("dropped"), of("total"), "{unit}");
        let sum: u64 = lines.iter().map(|line| line[unit].as_u64().unwrap()).sum();
        assert_eq!(sum, of("total"), "{unit}");
    }
    assert_eq!((report.passed(), report.dropped(), report.total()), (6, 12, FRAMES));
    assert_eq!(json["block_rate"], 12.0 / 18.0);
    assert_eq!(json["parse_errors"], 5);
    assert_eq!(json["malformed"][0]["reason"], "ipv4-truncated");
    assert_eq!(json["malformed"][0]["packets"], 5);
    assert!(json["lookups"].as_u64().unwrap() >= FRAMES, "every sender is looked up");
    Ok(())
}

fn plain_lines_name_every_number() -> Result {
    let (client, server) = cable()?;
    let mut command = on(&server, &["--stats-interval", "100ms"]);
    command.args(OPTIONS);
    let running = Running::start(command)?;
    running.wait_for("total", PATIENCE)?;
    send_all_kinds(&client, &server)?;
    running.wait_for("passed=6 dropped=12", PATIENCE)?;
    let finished = running.interrupt(PATIENCE)?;
    assert!(!finished.stdout.contains('\x1b'), "colours in a pipe");
    let lines: Vec<_> = finished.stdout.lines().collect();
    let last = &lines[lines.len() - 2 - EXPECTED.len()..];
    let total = last[0];
    assert!(
        total.contains("total      eth0 ") && total.contains("passed=6 dropped=12 bytes="),
        "{total}"
    );
    assert!(
        total.contains(" block_rate=0.667 ") && total.ends_with(" parse_errors=5"),
        "{total}"
    );
    for (line, (verdict, reason, packets, bytes)) in last[1..].iter().zip(EXPECTED) {
        let numbers = format!("  packets={packets} bytes={} packets_per_second=", packets * bytes);
        assert!(
            line.contains(&format!("s  {verdict}       {reason} ")) && line.contains(&numbers),
            "{line}"
        );
    }
    let malformed = last.last().unwrap();
    assert!(
        malformed.contains("s  malformed  ipv4-truncated ") && malformed.contains("packets=5 "),
        "{malformed}"
    );
    Ok(())
}

fn reports_come_every_two_seconds_unless_told_otherwise() -> Result {
    let (_client, server) = cable()?;
    let reports = |args: &[&str]| finish(on(&server, args)).stdout.lines().count();
    assert_eq!(reports(&["--json", "--duration", "500ms"]), 1, "the last report only");
    // At least: a busy machine may be late.
    let often = reports(&["--json", "--duration", "1s", "--stats-interval", "100ms"]);
    assert!((3..=11).contains(&often), "{often}");
    let finished = finish(on(&server, &["--json", "--duration", "2500ms"]));
    let times: Vec<u64> = finished
        .stdout
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["elapsed_ms"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(times.len(), 2, "{times:?}");
    assert!(times[0] >= 2000 && times[1] >= 2500, "{times:?}");
    Ok(())
}

const COLUMNS: u16 = 60;
const ROWS: u16 = 14;

fn the_table_is_drawn_in_place_and_cut_to_the_terminal() -> Result {
    let (client, server) = cable()?;
    let mut command = on(&server, &["--stats-interval", "100ms"]);
    command.args(OPTIONS);
    let mut terminal = Terminal::start(command, COLUMNS, ROWS)?;
    terminal.wait_for("No packet has arrived yet.", PATIENCE)?;
    send_all_kinds(&client, &server)?;
    terminal.wait_for(": 18 packets, ", PATIENCE)?;
    terminal.type_in("\x03")?;
    let (status, shown) = terminal.wait(PATIENCE)?;
    assert!(status.success(), "{shown}");
    let drawings: Vec<&str> = shown.split("\x1b[J").collect();
    assert!(drawings.len() >= 2, "{shown:?}");
    for drawing in &drawings {
        // What is left of the next "go up" belongs to the next drawing; log lines scroll away above.
        let lines: Vec<&str> = drawing
            .lines()
            .filter(|line| !line.contains('\x1b') && !line.starts_with("info:"))
            .collect();
        assert!(lines.len() < usize::from(ROWS), "{} lines: {drawing:?}", lines.len());
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= usize::from(COLUMNS), "{widest} columns: {drawing:?}");
    }
    let last = drawings.last().unwrap();
    assert!(last.starts_with("eth0, native XDP, "), "{last:?}");
    for part in ["verdict and reason", "drop  address", "pass  allowed"] {
        assert!(last.contains(part), "{part} in {last:?}");
    }
    Ok(())
}

fn dropped_frames_are_logged_now_and_then() -> Result {
    let (client, server) = cable()?;
    let firewall = Firewall::on(&server, &OPTIONS);
    send_all_kinds(&client, &server)?;
    firewall.wait_for_word("dropped (port): 42 bytes, no. 1 on this CPU", 1);
    let (_, stderr) = firewall.stop_after(FRAMES);
    // One line for each reason (and CPU), not for each frame.
    for reason in ["malformed: ipv4-truncated", "mac", "address", "port"] {
        let lines = stderr.matches(&format!("info: dropped ({reason}): ")).count();
        assert!((1..=2).contains(&lines), "{lines} of {reason}: {stderr}");
    }
    Ok(())
}

fn a_closed_pipe_ends_it_without_a_word() -> Result {
    let (_client, server) = cable()?;
    for args in ["--json", ""] {
        let script =
            format!("{{ {BINARY} --iface eth0 --stats-interval 100ms {args}; echo status=$? >&2; }} | head -n 1");
        let mut command = server.host.command("sh");
        command.args(["-c", &script]);
        let finished = finish(command);
        assert_eq!(finished.stdout.lines().count(), 1);
        assert_eq!(finished.stderr, "status=0\n");
        assert!(!server.has_xdp()?);
    }
    Ok(())
}

fn help_explains_every_option() -> Result {
    let (_client, server) = cable()?;
    let mut command = server.host.command(BINARY);
    command.arg("--help");
    let finished = finish(command);
    assert!(finished.status.success());
    for option in [
        "--iface",
        "--block-ip",
        "--block-file",
        "--block-port",
        "--block-source-port",
        "--block-mac",
        "--allow-ip",
        "--allow-port",
        "--default",
        "--rate-limit",
        "--burst",
        "--fragments",
        "--malformed",
        "--max-entries",
        "--xdp-mode",
        "--stats-interval",
        "--duration",
        "--json",
    ] {
        assert!(finished.stdout.contains(option), "{option} in {}", finished.stdout);
    }
    Ok(())
}
