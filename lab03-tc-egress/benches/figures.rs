//! What following a flow costs a packet: `cargo xtask bench lab03`.
//!
//! Every table is filled by the programs themselves, handshake by handshake, and found full before anything is measured.

mod filled;

use std::process::ExitCode;

use anyhow::Result;
use lab01_count_packets::outcome;
use lab03_tc_egress::policy::Policy;
use testbed::{
    bpf::{ProgramType, empty_program},
    figures::{self, Options, Row},
};

use filled::Filled;

const ABOUT: &str =
    "Measures what following a flow costs a packet, in tables of some and of very many flows, in nanoseconds";

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
    options.show(&[("A packet of a flow:", &following)])?;
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
