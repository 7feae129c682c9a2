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
mod timed;

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use lab01_count_packets::outcome;
use testbed::figures::{self, Figures, Shown};

use aims::Aims;

/// Measures what the enforcer costs a packet, by the number of rules and the size of sets, from host to host beside nftables,
/// and a send; and how long it takes to apply a policy.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    shown: figures::Options,

    /// Measure test runs only: neither what goes through a whole network stack, nor applying a policy.
    #[arg(long)]
    test_runs: bool,
}

fn main() -> ExitCode {
    outcome::exit_code(run(&Arguments::parse()))
}

fn run(options: &Arguments) -> Result<()> {
    let rounds = options.shown.rounds;
    let in_test_runs = InTestRuns::measure(rounds)?;
    if let Some(markdown) = &options.shown.markdown {
        let file = markdown.with_file_name("lab06-rules.svg");
        fs::write(&file, plot::drawing(&in_test_runs.curves))
            .with_context(|| format!("{} cannot be written", file.display()))?;
    }
    let beyond_test_runs = if options.test_runs {
        None
    } else {
        Some(BeyondTestRuns::measure(rounds)?)
    };
    let mut aims = Aims::default();
    in_test_runs.aims(&mut aims);
    let mut tables = in_test_runs.tables();
    if let Some(measured) = &beyond_test_runs {
        measured.aims(&mut aims);
        tables.extend(measured.tables());
    }
    tables.push(("Aims: what was aimed at, and what has come of it.", &aims));
    options.shown.show(&tables)?;
    Ok(())
}

type Table<'a> = (&'a str, &'a dyn Shown);

/// What the programs cost in test runs.
struct InTestRuns {
    rules: Figures,
    ways: Figures,
    curves: Vec<packet::Curve>,
    sets: Figures,
    flows: Figures,
    hooks: Figures,
    labs: Figures,
}

impl InTestRuns {
    fn measure(rounds: u8) -> Result<Self> {
        let (rules, ways, curves) = packet::by_rules(rounds)?;
        Ok(Self {
            rules,
            ways,
            curves,
            sets: packet::by_sets(rounds)?,
            flows: packet::by_flows(rounds)?,
            hooks: packet::by_hooks(rounds)?,
            labs: packet::by_labs(rounds)?,
        })
    }

    fn aims(&self, aims: &mut Aims) {
        let Self { rules, sets, flows, .. } = self;
        for hook in ["", ", at XDP", ", at TC egress", ", at cgroup_skb egress"] {
            let row = format!("acl, 1,000 rules: established{hook}");
            aims.above_floor(&format!("a packet of a known flow{hook}"), flows, &row, 70);
        }
        let most = [("acl", "100,000"), ("fw", "50,000"), ("ipc", "100,000")];
        for (shape, most) in most {
            for (count, fixed_ns, spread_ns) in [("1,000", 60, 120), (most, 120, 400)] {
                for (how, at_most_ns) in [("fixed", fixed_ns), ("spread", spread_ns)] {
                    let row = format!("{shape}, {count} rules: {how}");
                    aims.above_floor(&format!("of no known flow, {row}"), rules, &row, at_most_ns);
                }
            }
            let rows = ["10,000", "10"].map(|count| format!("{shape}, {count} rules: fixed"));
            let what = format!("{shape}, fixed: 10,000 rules beside 10");
            aims.times_other(&what, rules, rows.each_ref().map(String::as_str), 4.0 / 3.0);
        }
        for (count, at_most_ns) in [("100,000", 150), ("1,000,000", 300)] {
            let row = format!("{count} prefixes: spread");
            aims.above_floor(&format!("a set, {row}"), sets, &row, at_most_ns);
        }
    }

    fn tables(&self) -> Vec<Table<'_>> {
        vec![
            (
                "Flows: a packet whose flow is known, and one that begins a flow.",
                &self.flows,
            ),
            (
                "Rules: a packet that belongs to no flow, by how many rules there are.",
                &self.rules,
            ),
            ("Ways to match rules: another packet each time.", &self.ways),
            (
                "Sets: a packet from one of the prefixes, which are blocked.",
                &self.sets,
            ),
            (
                "Hooks: the same packet, of no known flow, and 1,000 rules of an access list.",
                &self.hooks,
            ),
            ("Labs: the same packet in each lab's program.", &self.labs),
        ]
    }
}

/// What no test run shows: what goes through a whole network stack, in batches that bear a busy machine (see [`timed`]), and
/// applying.
struct BeyondTestRuns {
    /// Right only if nobody else uses the machine.
    applying: applying::Applying,
    dropped: Figures,
    accepted: Figures,
    sent: Figures,
    sends: Figures,
    connects: Figures,
    served: Figures,
}

impl BeyondTestRuns {
    fn measure(rounds: u8) -> Result<Self> {
        let [dropped, accepted, sent] = road::measure(rounds)?;
        Ok(Self {
            applying: applying::measure(&[1_000, 10_000, 100_000])?,
            dropped,
            accepted,
            sent,
            sends: send::sends(rounds)?,
            connects: send::connects(rounds)?,
            served: served::measure(rounds)?,
        })
    }

    fn aims(&self, aims: &mut Aims) {
        for (hook, at_most_ns) in [("XDP", 90), ("TC", 100)] {
            let row = format!("the enforcer at {hook}, a set of 1,000 prefixes");
            for size in ["1,000", "100,000"] {
                let row = format!("the enforcer at {hook}, a set of {size} prefixes");
                let what = format!("dropped at {hook}, {size} prefixes, beside dropping all");
                aims.times_floor(&what, &self.dropped, &row, 1.6);
            }
            let what = format!("accepted at {hook}, above no program");
            aims.above_floor(&what, &self.accepted, &row, at_most_ns);
        }
        let row = "the enforcer, acl, 1,000 rules";
        aims.above_floor("a send, above no program", &self.sends, row, 120);
        aims.above_floor("a connect, above no program", &self.connects, row, 25);
        self.applying.aims(aims);
        for policy in ["web-server.yaml", "acl, 10,000 rules"] {
            let what = format!("CPU time of a web server, {policy}, above no program");
            aims.percent_above_floor(&what, &self.served, policy, 5.0);
        }
    }

    fn tables(&self) -> Vec<Table<'_>> {
        vec![
            (
                "Frames that are dropped, beside a program that drops all:",
                &self.dropped,
            ),
            ("Frames that are accepted, beside no program:", &self.accepted),
            ("Sockets send from host to host, beside no program:", &self.sent),
            ("A send on a socket, beside no program in its cgroup:", &self.sends),
            (
                "A connect on a socket, beside no program in its cgroup:",
                &self.connects,
            ),
            ("A web server: CPU time of a request, beside no program:", &self.served),
            (
                "Applying: from a file to the policy in force, medians of 3.",
                &self.applying,
            ),
        ]
    }
}
