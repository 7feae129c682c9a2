//! What counting costs a packet: `cargo xtask bench lab01`.
//!
//! Every figure is the median of several rounds, in which the program and an empty one run by turns on the same packet
//! (`BPF_PROG_TEST_RUN`), so that both see the same clock, the same caches and the same neighbours. What counts is the
//! difference: an empty program is what XDP itself costs.

mod programs;
mod raw;
mod spread;

use std::{fmt::Write as _, fs, os::fd::BorrowedFd, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lab01_count_packets::{outcome, text::grouped};
use serde::Serialize;
use testbed::{
    bpf::{TestRun, test_run, warm_up},
    packets::{self, Mutate as _, Packet},
};

use crate::{
    programs::Programs,
    spread::{SourceField, SpreadSources},
};

/// Measures what counting costs a packet, in nanoseconds.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Options {
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,

    /// Write the figures as a Markdown table into this file, too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// How many rounds to take the median of.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u8).range(1..), value_name = "N")]
    rounds: u8,

    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How often each program runs in a round.
const RUNS: u32 = 200_000;
/// How many sources the rows with many sources have.
const MANY_SOURCES: u16 = 10_000;

fn main() -> ExitCode {
    let options = Options::parse();
    outcome::exit_code(measure(&options))
}

fn measure(options: &Options) -> Result<()> {
    let programs = Programs::load()?;
    let mut rows = rows()?;
    for row in &rows {
        row.warm_up(&programs)?;
    }
    for _ in 0..options.rounds {
        for row in &mut rows {
            row.measure(&programs)?;
        }
    }
    let figures = Figures {
        machine: machine(),
        rounds: options.rounds,
        runs_per_round: RUNS,
        rows: rows.iter().map(Row::figure).collect(),
    };
    if let Some(path) = &options.markdown {
        fs::write(path, figures.markdown()).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{}", figures.table());
    }
    Ok(())
}

/// One kind of packet, and how long the programs took for it.
struct Row {
    packet: &'static str,
    frame: Vec<u8>,
    /// Where many sources are to be: what changes the source address in front of each run.
    spread: Option<SpreadSources>,
    empty_ns: Vec<u32>,
    count_packets_ns: Vec<u32>,
}

fn rows() -> Result<Vec<Row>> {
    let (v4, v6) = (
        |packet: Packet| {
            packet
                .ipv4("192.0.2.7", "192.0.2.1")
                .udp(1000, 53)
                .payload([0; 18])
                .build()
        },
        |packet: Packet| {
            packet
                .ipv6("2001:db8::7", "2001:db8::1")
                .udp(1000, 53)
                .payload([0; 18])
                .build()
        },
    );
    let plain = packets::ethernet;
    let beyond_the_frame = [0xff; 2];
    let row = |packet, frame, spread| Row {
        packet,
        frame,
        spread,
        empty_ns: Vec::new(),
        count_packets_ns: Vec::new(),
    };
    Ok(vec![
        row("IPv4, one source", v4(plain()), None),
        row(
            "IPv4, 10,000 sources in random order",
            v4(plain()),
            Some(SpreadSources::load(SourceField::Ipv4, MANY_SOURCES)?),
        ),
        row("IPv6, one source", v6(plain()), None),
        row(
            "IPv6, 10,000 sources in random order",
            v6(plain()),
            Some(SpreadSources::load(SourceField::Ipv6, MANY_SOURCES)?),
        ),
        row("IPv4 behind a VLAN tag", v4(plain().vlan(10)), None),
        row("IPv4 behind two VLAN tags", v4(plain().service_vlan(20).vlan(10)), None),
        row("ARP", plain().arp_request("192.0.2.7", "192.0.2.1").build(), None),
        row(
            "malformed (IPv4 total length)",
            v4(plain()).with_bytes(16, &beyond_the_frame),
            None,
        ),
    ])
}

impl Row {
    fn warm_up(&self, programs: &Programs) -> Result<()> {
        for program in [programs.empty(), programs.count_packets()] {
            let program = self.in_front_of(program)?;
            warm_up(program, &self.frame, Duration::from_millis(50))?;
        }
        Ok(())
    }

    fn measure(&mut self, programs: &Programs) -> Result<()> {
        let empty_ns = self.run(programs.empty())?;
        let before = programs.packets_counted()?;
        let count_packets_ns = self.run(programs.count_packets())?;
        let counted = programs.packets_counted()? - before;
        ensure!(
            counted == u64::from(RUNS),
            "{RUNS} packets were sent and {counted} counted: the figures would be those of another program"
        );
        self.empty_ns.push(empty_ns);
        self.count_packets_ns.push(count_packets_ns);
        Ok(())
    }

    /// The average time of a run in nanoseconds.
    fn run(&self, program: BorrowedFd<'_>) -> Result<u32> {
        let program = self.in_front_of(program)?;
        Ok(test_run(program, TestRun::repeated(&self.frame, RUNS))?.duration_ns)
    }

    /// The program, or what changes the source address and then calls it.
    fn in_front_of<'a>(&'a self, program: BorrowedFd<'a>) -> Result<BorrowedFd<'a>> {
        match &self.spread {
            None => Ok(program),
            Some(spread) => spread.in_front_of(program),
        }
    }

    fn figure(&self) -> Figure {
        let differences: Vec<i64> = std::iter::zip(&self.count_packets_ns, &self.empty_ns)
            .map(|(program, empty)| i64::from(*program) - i64::from(*empty))
            .collect();
        Figure {
            packet: self.packet,
            empty_ns: median(&self.empty_ns),
            count_packets_ns: median(&self.count_packets_ns),
            above_empty_ns: median(&differences),
            above_empty_least_ns: differences.iter().copied().min().unwrap_or_default(),
            above_empty_most_ns: differences.iter().copied().max().unwrap_or_default(),
        }
    }
}

fn median<T: Copy + Ord + Default>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// All that was measured.
#[derive(Serialize)]
struct Figures {
    machine: String,
    rounds: u8,
    runs_per_round: u32,
    rows: Vec<Figure>,
}

/// One row: medians over the rounds.
#[derive(Serialize)]
struct Figure {
    packet: &'static str,
    empty_ns: u32,
    count_packets_ns: u32,
    /// The median of the rounds' differences, which is not quite the difference of the medians.
    above_empty_ns: i64,
    above_empty_least_ns: i64,
    above_empty_most_ns: i64,
}

const HEADS: [&str; 5] = [
    "packet",
    "empty program",
    "count_packets",
    "above empty",
    "least to most",
];

impl Figures {
    fn explanation(&self) -> String {
        format!(
            "Nanoseconds a packet on one CPU, medians of {} rounds of {} runs; an empty XDP program and count_packets take \
             turns. For many sources, another program in front of either puts a random source into the packet.",
            self.rounds,
            grouped(u64::from(self.runs_per_round))
        )
    }

    fn cells(&self) -> Vec<[String; 5]> {
        let rows = self.rows.iter();
        rows.map(|row| {
            [
                row.packet.to_owned(),
                row.empty_ns.to_string(),
                row.count_packets_ns.to_string(),
                row.above_empty_ns.to_string(),
                format!("{} to {}", row.above_empty_least_ns, row.above_empty_most_ns),
            ]
        })
        .collect()
    }

    fn table(&self) -> String {
        let mut text = format!("{}\n{}\n\n", self.explanation(), self.machine);
        let heads = HEADS.map(str::to_owned);
        for [packet, numbers @ ..] in std::iter::once(&heads).chain(&self.cells()) {
            let _ = write!(text, "{packet:<38}");
            for number in numbers {
                let _ = write!(text, "  {number:>13}");
            }
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = format!("{}\n\n{}.\n\n", self.explanation(), self.machine);
        let _ = writeln!(text, "| {} |\n|---|---:|---:|---:|---:|", HEADS.join(" | "));
        for row in self.cells() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }
}

/// What the figures were measured on, without a date and without a name.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("an unknown processor", |model| model.trim_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let release = read("/proc/sys/kernel/osrelease");
    // 5.10.0-39-cloud-amd64: what comes behind the numbers names a build, not a kernel.
    let release = release.trim().split(['-', '+']).next().unwrap_or_default();
    format!("{cores} cores of {model}, Linux {release}")
}
