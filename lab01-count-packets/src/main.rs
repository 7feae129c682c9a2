//! Counts the packets that arrive at an interface, by source address and by protocol.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use aya::programs::Xdp;
use clap::Parser;
use lab01_count_packets::{
    OBJECT,
    attach::{XdpMode, attach_xdp},
    counts::Counts,
    interface::Interface,
    load, logging, outcome,
    output::Output,
    report::Reporter,
    schedule::{Due, Schedule, parse_duration, parse_interval},
};

/// Counts the packets that arrive at an interface, by source address and by protocol, and lets all of them pass.
///
/// On a terminal the table is redrawn in place; in a pipe every report is a block of plain lines. Ctrl-C or SIGTERM
/// detaches the program and ends with a last report.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Options {
    /// The interface to count on.
    #[arg(short, long, value_name = "IF")]
    iface: String,

    /// Where the program runs: in the driver (native), behind it (generic), or on the card (offload); auto tries
    /// native first and says so if it has to take generic.
    #[arg(long, value_enum, default_value_t = XdpMode::Auto, value_name = "MODE")]
    xdp_mode: XdpMode,

    /// The time between two reports.
    #[arg(long, default_value = "1s", value_parser = parse_interval, value_name = "TIME")]
    interval: Duration,

    /// Stop after this time; without it, count until Ctrl-C.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    duration: Option<Duration>,

    /// How many sources to show; 0 for all.
    #[arg(long, default_value_t = 20, value_name = "N")]
    top: usize,

    /// How many IPv4 sources, and how many IPv6 sources, have a counter of their own. Packets of further ones are
    /// counted together.
    #[arg(long, default_value_t = 10_240, value_parser = clap::value_parser!(u32).range(1..=4_194_304), value_name = "N")]
    max_sources: u32,

    /// Print every report as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    outcome::exit_code(run(&options).await)
}

// ANCHOR: run
async fn run(options: &Options) -> Result<()> {
    let mut output = Output::new(options.json);
    logging::init(output.screen());
    let interface = Interface::find(&options.iface)?;

    let capacities = [
        ("PACKETS_BY_IPV4_SOURCE", options.max_sources),
        ("PACKETS_BY_IPV6_SOURCE", options.max_sources),
    ];
    let mut ebpf = load::load_object(OBJECT, &capacities)?;
    load::forward_log_lines(&mut ebpf).context("the program's log lines cannot be read")?;
    let counts = Counts::take(&mut ebpf)?;

    let program: &mut Xdp = load::program(&mut ebpf, "count_packets", "XDP")?;
    program
        .load()
        .map_err(|error| load::explain_program("count_packets", error))?;
    let attached = attach_xdp(program, &interface, options.xdp_mode).await?;
    interface.warn_if_down();

    let mut reporter = Reporter::new(&interface.name, &attached.mode.to_string(), options.top);
    report_until_stopped(options, &interface, &counts, &mut reporter, &mut output).await
    // Dropping `ebpf` detaches the program.
}
// ANCHOR_END: run

async fn report_until_stopped(
    options: &Options,
    interface: &Interface,
    counts: &Counts,
    reporter: &mut Reporter,
    output: &mut Output,
) -> Result<()> {
    let mut schedule = Schedule::start(options.interval, options.duration);
    loop {
        let due = tokio::select! {
            due = schedule.next() => Some(due.context("signals cannot be caught")?),
            () = interface.gone() => None,
        };
        let report = reporter.report(counts.snapshot()?, schedule.elapsed());
        output
            .show(&report)
            .context("the report cannot be written to standard output")?;
        match due {
            Some(Due::Report) => {}
            Some(Due::LastReport) => return Ok(()),
            None => bail!(
                "{} has gone: it was removed, renamed or moved, and nothing is counted any more; start again with an \
                 interface that is there",
                interface.name
            ),
        }
    }
}
