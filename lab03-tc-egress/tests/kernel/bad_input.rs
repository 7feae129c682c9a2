//! What can be wrong: every error is one line with cause and mend, and leaves nothing behind (Z8).

use lab01_count_packets::interface::Interface;
use lab03_tc_egress::attach::{programs_on, qdiscs};
use testbed::{End, Host, Result, Running};

use crate::lab::{PATIENCE, finish, in_host, on};

testbed::listed_tests![
    impossible_options_are_refused_with_what_is_possible,
    options_that_do_not_go_together_are_refused_with_the_mend,
    an_interface_that_goes_ends_it_with_one_line,
    flows_of_an_interface_without_the_program_are_refused_with_the_mend,
];

fn cable() -> Result<(End, End)> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    Ok((link.left, link.right))
}

fn impossible_options_are_refused_with_what_is_possible() -> Result {
    const RATE: &str = "is no rate; write 500kbit, 10mbit or 1gbit, at most 100gbit";
    const RULE: &str = "a rule is PREFIX, PORTS or PREFIX,PORTS: 203.0.113.0/24,tcp/25";
    let (_client, server) = cable()?;
    for (option, value, cause) in [
        ("--shape", "10", RATE),
        ("--shape", "10mbps", RATE),
        ("--shape", "1000gbit", RATE),
        ("--shape", "-5mbit", RATE),
        ("--shape", "203.0.113.0/24=", RATE),
        ("--shape", "203.0.113.0/24:1mbit", RATE),
        ("--shape", "1kbit", "1kbit is below the lowest rate, 8kbit"),
        (
            "--shape",
            "203.0.113.0/33=1mbit",
            "/33 is no prefix length of 203.0.113.0; it is a number from 0 to 32",
        ),
        (
            "--burst",
            "10",
            "a burst of 10 bytes is less than one packet of segmentation offload; at least 65536",
        ),
        (
            "--burst",
            "huge",
            "is no burst; write 100mbit, or bytes: 131072; at most 100gbit",
        ),
        ("--deny", "203.0.113", RULE),
        ("--deny", "203.0.113.0/24,", RULE),
        ("--deny", "tcp/70000", RULE),
        ("--deny", "tpc/25", RULE),
        ("--deny", "tcp/30-20", RULE),
        ("--allow-port", "https", "write 80, tcp/80, udp/53 or 8000-8999"),
        ("--max-flows", "0", "it is a number from 1 to 1000000"),
        ("--max-flows", "1k", "it is a number from 1 to 1000000"),
        ("--tcp-idle", "5", "write it like 500ms, 2s or 1m"),
        ("--udp-idle", "0s", "it must be more than nothing"),
        ("--pick-up", "soon", "write it like 500ms, 2s or 1m"),
        ("--stats-interval", "0s", "it must be more than nothing"),
    ] {
        let finished = finish(on(&server, &[&format!("{option}={value}")]));
        assert_eq!(finished.status.code(), Some(2), "{finished:#?}");
        assert_eq!(finished.stdout, "");
        let first = finished.stderr.lines().next().unwrap();
        let line = format!("error: invalid value '{value}' for '{option} ");
        assert!(
            first.starts_with(&line) && first.ends_with(cause),
            "{first}\n{line}: {cause}"
        );
    }
    let finished = finish(on(&server, &["--attach", "xdp"]));
    let ways = "[possible values: auto, tcx, clsact]";
    assert!(finished.stderr.contains(ways), "{}", finished.stderr);
    Ok(())
}

fn options_that_do_not_go_together_are_refused_with_the_mend() -> Result {
    let (_client, server) = cable()?;
    for (options, line) in [
        (
            &["--shape", "1mbit", "--shape", "2mbit"][..],
            "there are two rates for all; leave one of them away",
        ),
        (
            &["--shape", "1mbit", "--burst", "10.0.0.0/8=10mbit"],
            "there is a burst for 10.0.0.0/8, and no rate; add --shape 10.0.0.0/8=10mbit",
        ),
        (
            &["--shape", "1mbit", "--pacing", "wait"],
            "packets cannot wait on eth0, which has no fq queueing discipline; add it: `tc qdisc replace dev eth0 root fq`, \
             or use --pacing drop",
        ),
        (
            &["--stateful", "--hooks", "egress"],
            "--stateful needs both hooks: who is let in depends on what went out; leave --hooks away",
        ),
    ] {
        let finished = finish(on(&server, options));
        assert_eq!(finished.stderr, format!("error: {line}\n"));
        assert_eq!(finished.stdout, "");
        assert_eq!(finished.status.code(), Some(1));
    }
    let interface = server.host.run(|| Interface::find(&server.interface)).unwrap();
    server.host.run(|| {
        assert_eq!(programs_on(&interface).unwrap(), []);
        assert!(!qdiscs(&interface).unwrap().contains(&"clsact".into()));
    });
    Ok(())
}

fn an_interface_that_goes_ends_it_with_one_line() -> Result {
    let (_client, server) = cable()?;
    let running = Running::start(on(&server, &[]))?;
    running.wait_for("half_open=", PATIENCE)?;
    server.delete()?;
    let finished = running.wait(PATIENCE)?;
    assert_eq!(
        finished.stderr,
        "error: eth0 has gone: it was removed, renamed or moved, and nothing is followed any more; start again with an \
         interface that is there\n"
    );
    assert_eq!(finished.status.code(), Some(1));
    Ok(())
}

fn flows_of_an_interface_without_the_program_are_refused_with_the_mend() -> Result {
    let (_client, server) = cable()?;
    for (interface, line) in [
        (
            "eth0",
            "no program of this lab is attached to eth0; start it, `lab03-tc-egress --iface eth0`, and ask again while it runs",
        ),
        (
            "eth1",
            "there is no network interface \"eth1\" here; did you mean eth0? (there are: lo, eth0)",
        ),
    ] {
        let finished = finish(in_host(&server.host, &["flows", "--iface", interface]));
        assert_eq!(finished.stderr, format!("error: {line}\n"));
        assert_eq!(finished.status.code(), Some(1));
    }
    Ok(())
}
