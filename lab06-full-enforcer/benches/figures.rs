//! What the enforcer costs a packet, a send, and whoever applies a policy: `cargo xtask bench lab06`.
//!
//! With `--markdown`, a drawing is written beside the tables, `lab06-rules.svg`.

#[path = "../../lab02-xdp-firewall/common/tests/random/mod.rs"]
#[expect(dead_code, reason = "it is shared with tests")]
mod random;
#[path = "../tests/shapes/mod.rs"]
mod shapes;

mod aims;
mod applying;
mod loaded;
mod packet;
mod plot;
mod road;
mod send;
mod served;

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use lab01_count_packets::outcome;
use testbed::figures::{self, Shown};

use aims::Aims;

/// Measures what the enforcer costs a packet, by the number of rules and the size of sets, from host to host beside nftables,
/// and a send; and how long it takes to apply a policy.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    shown: figures::Options,

    /// Measure test runs only, which say something on a busy machine, too.
    #[arg(long)]
    test_runs: bool,
}

fn main() -> ExitCode {
    outcome::exit_code(run(&Arguments::parse()))
}

fn run(options: &Arguments) -> Result<()> {
    let rounds = options.shown.rounds;
    let (rules, ways, curves) = packet::by_rules(rounds)?;
    let sets = packet::by_sets(rounds)?;
    if let Some(markdown) = &options.shown.markdown {
        let file = markdown.with_file_name("lab06-rules.svg");
        fs::write(&file, plot::drawing(&curves)).with_context(|| format!("{} cannot be written", file.display()))?;
    }
    let mut aims = Aims::default();
    for shape in ["acl", "ipc"] {
        aims.above_floor(&rules, &format!("{shape}, 1,000 rules: fixed"), 60);
        aims.above_floor(&rules, &format!("{shape}, 1,000 rules: spread"), 120);
        aims.above_floor(&rules, &format!("{shape}, 100,000 rules: fixed"), 120);
        aims.above_floor(&rules, &format!("{shape}, 100,000 rules: spread"), 400);
    }
    aims.above_floor(&sets, "100,000 prefixes: spread", 150);
    aims.above_floor(&sets, "1,000,000 prefixes: spread", 300);
    let mut tables: Vec<(&str, &dyn Shown)> = vec![
        ("Rules: a packet by how many there are.", &rules),
        ("Ways to match rules: another packet each time.", &ways),
        ("Sets: a packet from one of the prefixes, which are blocked.", &sets),
    ];
    let on_an_idle_machine = if options.test_runs {
        None
    } else {
        Some((
            applying::measure(&[1_000, 10_000, 100_000])?,
            road::measure(rounds)?,
            send::measure(rounds)?,
            served::measure(rounds)?,
        ))
    };
    if let Some((applying, [dropped, accepted, sent], sends, served)) = &on_an_idle_machine {
        for size in ["1,000", "100,000"] {
            aims.times_floor(dropped, &format!("the enforcer, a set of {size} prefixes"), 1.6);
        }
        aims.above_floor(accepted, "the enforcer, a set of 1,000 prefixes", 100);
        aims.above_floor(sends, "the enforcer, acl, 1,000 rules", 120);
        for policy in ["web-server.yaml", "acl, 10,000 rules"] {
            aims.percent_above_floor(served, policy, 5.0);
        }
        applying.aims(&mut aims);
        tables.extend([
            (
                "Applying: from a file to the policy in force, medians of 3.",
                applying as &dyn Shown,
            ),
            ("Frames that are dropped, beside a program that drops all:", dropped),
            ("Frames that are accepted, beside no program:", accepted),
            ("Sockets send from host to host, beside no program:", sent),
            ("A send on a socket, beside no program in its cgroup:", sends),
            ("A web server: CPU time of a request, beside no program:", served),
        ]);
    }
    tables.push(("Aims: what was aimed at, and what has come of it.", &aims));
    options.shown.show(&tables)?;
    Ok(())
}
