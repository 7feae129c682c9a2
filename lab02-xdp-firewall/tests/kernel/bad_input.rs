//! What can be wrong with the command line (F14, Z8): one line with cause and mend, nothing attached, nothing on
//! standard output.

use std::fs;

use testbed::{
    End, Finished, Host, LinkOptions, Result,
    bpf::{PassProgram, XdpMode},
};

use crate::lab::{PATIENCE, cable, cable_with, finish, in_host, on};

testbed::listed_tests![
    values_that_cannot_be_are_refused_with_what_can,
    options_that_are_missing_or_unknown_are_named,
    a_list_that_cannot_be_used_is_named_with_its_line,
    an_interface_that_is_not_there_is_named_with_those_that_are,
    another_program_is_left_alone,
    modes_that_cannot_be_are_a_notice_or_an_error,
    host_bits_are_a_notice,
    a_port_that_is_both_blocked_and_allowed_and_empty_rules_are_fine,
    an_interface_that_vanishes_ends_it_with_a_last_report,
];

#[track_caller]
fn refused(end: &End, args: &[&str], status: i32) -> Finished {
    let finished = finish(on(end, args));
    assert_eq!(finished.status.code(), Some(status), "{args:?}: {finished:#?}");
    assert_eq!(finished.stdout, "", "{args:?}");
    assert!(!end.has_xdp().unwrap(), "{args:?}");
    finished
}

fn values_that_cannot_be_are_refused_with_what_can() -> Result {
    const PREFIX: &str = "write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32";
    const PORT: &str = "write 80, tcp/80, udp/53 or 8000-8999";
    const RATE: &str = "write 1000 (packets a second), 500kbit, 10mbit or 1gbit";
    let (_client, server) = cable()?;
    let cases = [
        (
            "--block-ip <PREFIX>",
            "banana",
            format!("\"banana\" is no IP address; {PREFIX}"),
        ),
        (
            "--block-ip <PREFIX>",
            "192.0.2.256",
            format!("\"192.0.2.256\" is no IP address; {PREFIX}"),
        ),
        (
            "--block-ip <PREFIX>",
            "192.0.2",
            format!("\"192.0.2\" is no IP address; {PREFIX}"),
        ),
        ("--block-ip <PREFIX>", "", String::new()),
        (
            "--block-ip <PREFIX>",
            "192.0.2.0/33",
            "/33 is no prefix length of 192.0.2.0; it is a number from 0 to 32".into(),
        ),
        (
            "--allow-ip <PREFIX>",
            "2001:db8::/129",
            "/129 is no prefix length of 2001:db8::; it is a number from 0 to 128".into(),
        ),
        (
            "--allow-ip <PREFIX>",
            "example.org",
            format!("\"example.org\" is no IP address; {PREFIX}"),
        ),
        (
            "--block-port <[PROTO/]PORT[-PORT]>",
            "0",
            "port 0 is reserved and never on the wire; ports are 1 to 65535".into(),
        ),
        (
            "--block-port <[PROTO/]PORT[-PORT]>",
            "70000",
            "70000 is no port; ports are 1 to 65535".into(),
        ),
        (
            "--block-port <[PROTO/]PORT[-PORT]>",
            "90-80",
            "the range 90-80 is empty; write the lower port first".into(),
        ),
        (
            "--block-port <[PROTO/]PORT[-PORT]>",
            "80,443",
            format!("\"80,443\" is no port; {PORT}"),
        ),
        (
            "--block-port <[PROTO/]PORT[-PORT]>",
            "icmp/8",
            "\"icmp\" is no protocol with ports here; write tcp/80, udp/53 or 8000-8999".into(),
        ),
        (
            "--block-port <[PROTO/]PORT[-PORT]>",
            "80/tcp",
            "\"80\" is no protocol with ports here; write tcp/80, udp/53 or 8000-8999".into(),
        ),
        (
            "--allow-port <[PROTO/]PORT[-PORT]>",
            "ssh",
            format!("\"ssh\" is no port; {PORT}"),
        ),
        (
            "--block-source-port <[PROTO/]PORT[-PORT]>",
            "tcp/",
            format!("\"\" is no port; {PORT}"),
        ),
        (
            "--block-mac <MAC>",
            "02:00:00:00:01",
            "\"02:00:00:00:01\" is no MAC address; write it like 02:00:00:00:00:01".into(),
        ),
        ("--rate-limit <RATE>", "fast", format!("\"fast\" is no rate; {RATE}")),
        ("--rate-limit <RATE>", "10mb", format!("\"10mb\" is no rate; {RATE}")),
        (
            "--rate-limit <RATE>",
            "0",
            "a rate of 0 lets nothing pass; use --default drop to drop all".into(),
        ),
        ("--rate-limit <RATE>", "-1", format!("\"-1\" is no rate; {RATE}")),
        (
            "--rate-limit <RATE>",
            "2000gbit",
            "2000gbit is beyond what can be counted; at most 100gbit".into(),
        ),
        ("--max-entries <N>", "0", "0 is not in 1..=4194304".into()),
        ("--max-entries <N>", "5000000", "5000000 is not in 1..=4194304".into()),
        ("--stats-interval <TIME>", "0s", "it must be more than nothing".into()),
        (
            "--stats-interval <TIME>",
            "10ms",
            "the shortest interval is 100ms".into(),
        ),
        (
            "--duration <TIME>",
            "soon",
            "expected number at 0; write it like 500ms, 2s or 1m".into(),
        ),
        ("--default <VERDICT>", "deny", String::new()),
        ("--malformed <VERDICT>", "maybe", String::new()),
        ("--fragments <HOW>", "forget", String::new()),
        ("--xdp-mode <MODE>", "fast", String::new()),
    ];
    for (option, value, cause) in cases {
        let (name, _) = option.split_once(' ').unwrap();
        let finished = refused(&server, &[&format!("{name}={value}")], 2);
        let first = finished.stderr.lines().next().unwrap();
        let start = format!("'{value}' for '{option}'");
        // clap says of an empty value that one is required.
        assert!(
            first.starts_with("error: ") && (value.is_empty() || first.contains(&start)),
            "{first}\n{start}"
        );
        assert!(first.ends_with(&cause), "{first}\n{cause}");
    }
    let burst = refused(&server, &["--rate-limit", "10", "--burst", "0"], 2);
    assert!(
        burst.stderr.contains("0 is not in 1..=1000000000000"),
        "{}",
        burst.stderr
    );
    Ok(())
}

fn options_that_are_missing_or_unknown_are_named() -> Result {
    let (_client, server) = cable()?;
    let burst = refused(&server, &["--burst", "10"], 2);
    assert!(burst.stderr.contains("--rate-limit <RATE>"), "{}", burst.stderr);
    for (args, parts) in [
        (
            &["--block-address", "192.0.2.1"][..],
            &["unexpected argument '--block-address'", "--block-"][..],
        ),
        (&["--iface", "eth0"], &["'--iface <IF>' cannot be used multiple times"]),
        (
            &["--default", "drop", "--default", "pass"],
            &["'--default <VERDICT>' cannot be used multiple times"],
        ),
        (
            &["--rate-limit", "1", "--rate-limit", "2"],
            &["'--rate-limit <RATE>' cannot be used multiple times"],
        ),
        (&["--block-ip"], &["a value is required for '--block-ip <PREFIX>'"]),
        (&["eth1"], &["unexpected argument 'eth1'"]),
        (&["--default", "dorp"], &["[possible values: pass, drop]", "'drop'"]),
    ] {
        let finished = refused(&server, args, 2);
        for part in parts {
            assert!(finished.stderr.contains(part), "{part} in {}", finished.stderr);
        }
    }
    let finished = finish(in_host(&server.host, &[]));
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.stderr.contains("--iface <IF>"), "{}", finished.stderr);
    Ok(())
}

fn a_list_that_cannot_be_used_is_named_with_its_line() -> Result {
    let (_client, server) = cable()?;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("bad"), "192.0.2.1\n\n192.0.2.1 192.0.2.2\n").unwrap();
    fs::write(path("hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(path("binary"), [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0xff, 0xfe]).unwrap();
    let file = |name| path(name);
    for (name, cause) in [
        (
            "missing",
            format!(
                "the list {} cannot be read: No such file or directory (os error 2)",
                file("missing")
            ),
        ),
        (
            "folder",
            format!(
                "the list {} cannot be read: Is a directory (os error 21)",
                file("folder")
            ),
        ),
        (
            "bad",
            format!(
                "{}:3: \"192.0.2.1 192.0.2.2\" is no IP address; write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32",
                file("bad")
            ),
        ),
        (
            "hosts",
            format!(
                "{}:1: \"127.0.0.1 localhost\" is no IP address; write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32",
                file("hosts")
            ),
        ),
        ("binary", format!("{}:1: this line is not text (UTF-8)", file("binary"))),
        (
            "no/such/folder",
            format!(
                "the folder {} of the list {} cannot be watched: No such file or directory (os error 2)",
                path("no/such"),
                file("no/such/folder")
            ),
        ),
    ] {
        let finished = refused(&server, &["--block-file", &file(name)], 1);
        assert_eq!(finished.stderr, format!("error: {cause}\n"), "{name}");
    }
    Ok(())
}

fn an_interface_that_is_not_there_is_named_with_those_that_are() -> Result {
    let (_client, server) = cable()?;
    for (name, advice) in [
        ("eth1", "did you mean eth0? (there are: lo, eth0)"),
        ("", "there are: lo, eth0"),
    ] {
        let finished = finish(in_host(&server.host, &["--iface", name]));
        assert_eq!(
            finished.stderr,
            format!("error: there is no network interface {name:?} here; {advice}\n")
        );
        assert_eq!(finished.status.code(), Some(1));
    }
    Ok(())
}

fn another_program_is_left_alone() -> Result {
    let (_client, server) = cable()?;
    let _other = PassProgram::load()?.attach(&server, XdpMode::Native)?;
    let finished = finish(on(&server, &[]));
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished.stderr.starts_with("error: eth0 already carries "),
        "{}",
        finished.stderr
    );
    assert_eq!(finished.stderr.lines().count(), 1);
    assert!(server.has_xdp()?);
    // Nor is this one left aside for another start.
    let (_client, server) = cable()?;
    let _first = crate::lab::Firewall::on(&server, &[]);
    let second = finish(on(&server, &["--xdp-mode", "generic"]));
    assert!(
        second
            .stderr
            .starts_with("error: eth0 already carries the XDP program firewall (id "),
        "{}",
        second.stderr
    );
    Ok(())
}

fn modes_that_cannot_be_are_a_notice_or_an_error() -> Result {
    let hermit = Host::new("hermit")?;
    let finished = finish(in_host(&hermit, &["--iface", "lo", "--json", "--duration", "100ms"]));
    assert_eq!(
        finished.stderr,
        "warn: lo has no native XDP (its driver does not support it); using generic, which is slower\n"
    );
    assert!(
        finished.stdout.contains("\"xdp_mode\":\"generic\""),
        "{}",
        finished.stdout
    );
    for mode in ["native", "offload"] {
        let finished = finish(in_host(&hermit, &["--iface", "lo", "--xdp-mode", mode]));
        let start = format!("error: lo cannot run XDP programs in {mode} mode: ");
        assert!(finished.stderr.starts_with(&start), "{}", finished.stderr);
        assert!(
            finished.stderr.ends_with("; try --xdp-mode generic\n"),
            "{}",
            finished.stderr
        );
        assert_eq!(finished.status.code(), Some(1));
    }
    let (_client, server) = cable_with(LinkOptions {
        mtu: 9000,
        ..LinkOptions::default()
    })?;
    let finished = refused(&server, &["--xdp-mode", "native"], 1);
    assert!(
        finished.stderr.ends_with("lower the MTU, or use --xdp-mode generic\n"),
        "{}",
        finished.stderr
    );
    Ok(())
}

fn host_bits_are_a_notice() -> Result {
    let (_client, server) = cable()?;
    let finished = finish(on(
        &server,
        &[
            "--duration",
            "100ms",
            "--block-ip",
            "192.0.2.7/24",
            "--allow-ip",
            "2001:db8::1/32",
            "--block-ip",
            "192.0.2.0/24",
        ],
    ));
    assert!(finished.status.success());
    assert_eq!(
        finished.stderr,
        "warn: 192.0.2.7/24 is taken as 192.0.2.0/24\nwarn: 2001:db8::1/32 is taken as 2001:db8::/32\n"
    );
    Ok(())
}

fn a_port_that_is_both_blocked_and_allowed_and_empty_rules_are_fine() -> Result {
    let (_client, server) = cable()?;
    let folder = tempfile::tempdir().unwrap();
    let empty_list = folder.path().join("empty.txt");
    fs::write(&empty_list, "").unwrap();
    let empty_list = empty_list.to_str().unwrap();
    let args = [
        "--duration",
        "100ms",
        "--block-port",
        "80",
        "--allow-port",
        "80",
        "--block-port",
        "80",
        "--block-ip",
        "0.0.0.0/0",
        "--allow-ip",
        "::/0",
        "--block-ip",
        "192.0.2.1",
        "--block-ip",
        "192.0.2.1",
        "--block-file",
        empty_list,
    ];
    let finished = finish(on(&server, &args));
    assert!(finished.status.success() && finished.stderr.is_empty(), "{finished:#?}");
    Ok(())
}

fn an_interface_that_vanishes_ends_it_with_a_last_report() -> Result {
    let (_client, server) = cable()?;
    let running = testbed::Running::start(on(&server, &["--json", "--stats-interval", "100ms"]))?;
    running.wait_for("elapsed_ms", PATIENCE)?;
    server.delete()?;
    let finished = running.wait(PATIENCE)?;
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(
        finished.stderr,
        "error: eth0 has gone: it was removed, renamed or moved, and nothing is filtered any more; start again with an \
         interface that is there\n"
    );
    Ok(())
}
