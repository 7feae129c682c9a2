//! What following a flow costs a packet, and how well a rate is held: `cargo xtask bench lab03`.
//!
//! Every table is filled by the programs themselves, handshake by handshake, and found full before anything is measured. With `--markdown`, a drawing of what a rate does to
//! packets is written beside the tables, `lab03-latency.svg`.

mod filled;
mod latency;
mod rates;

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result};
use lab01_count_packets::outcome;
use lab03_tc_egress::policy::Policy;
use testbed::{
    bpf::{ProgramType, empty_program},
    figures::{self, Options, Row},
};

use filled::Filled;

const ABOUT: &str = "Measures what following a flow costs a packet, in nanoseconds, in tables of some and of very many \
                     flows, and how well a rate is held";

fn main() -> ExitCode {
    let options = Options::from_command_line(ABOUT);
    outcome::exit_code(run(&options))
}

fn run(options: &Options) -> Result<()> {
    let empty = empty_program(ProgramType::SchedCls)?;
    let tables = [(1_000, "1,000"), (100_000, "100,000"), (1_000_000, "1,000,000")]
        .into_iter()
        .map(|(flows, told)| Ok((Filled::with(flows, &stateful())?, told)))
        .collect::<Result<Vec<_>>>()?;
    let shaped = Filled::with(1_000, &shaped())?;
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (filled, told) in &tables {
        rows.push(filled.established(&format!("established, one of {told}"), &empty));
        rows.push(filled.spread(&format!("established, spread over {told}"), &empty));
        rows.push(filled.begun(&format!("new, beside {told}"), &empty));
    }
    rows.push(tables[0].0.answered("going out: established, one of 1,000", &empty));
    rows.push(shaped.answered("going out: the same, below a rate", &empty));
    let following = figures::measure(&mut rows, options.rounds)?;
    drop(rows);
    let rates = rates::measure()?;
    if let Some(markdown) = &options.markdown {
        let file = markdown.with_file_name("lab03-latency.svg");
        fs::write(&file, latency::drawing()?).with_context(|| format!("{} cannot be written", file.display()))?;
    }
    options.show(&[
        ("A packet of a flow:", &following),
        ("What comes of a rate, across a veth pair:", &rates),
    ])?;
    Ok(())
}

/// Only replies and connections to port 443 come in.
fn stateful() -> Policy {
    Policy {
        stateful: true,
        allow_ports: vec!["tcp/443".parse().expect("a port")],
        ..Policy::default()
    }
}

/// As [`stateful`], with a rate that is never reached.
fn shaped() -> Policy {
    Policy {
        shapes: vec!["100gbit".parse().expect("a rate")],
        ..stateful()
    }
}
