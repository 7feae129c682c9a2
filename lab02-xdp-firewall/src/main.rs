//! A firewall in XDP: drops what is blocked, limits what is too much, and tells what it did.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use aya::programs::Xdp;
use clap::{Parser, ValueEnum};
use lab01_count_packets::{
    attach::{XdpMode, attach_xdp},
    interface::Interface,
    load, logging, outcome,
    output::Output,
    schedule::{Due, Schedule, parse_duration, parse_interval},
};
use lab02_xdp_firewall::{
    OBJECT,
    list::{self, List},
    policy::Policy,
    statistics::{Counters, Reporter},
    tables::{FirewallTables, map_sizes},
    value::{Mac, PortRange, Rate, WrittenPrefix},
    watch::Watch,
};
use lab02_xdp_firewall_common::{firewall::Fragments, prefix_set::build::Prefix};

/// Drops packets before the kernel has touched them: by source address, by port, by sender, or because a source sends
/// too much.
///
/// What blocks wins over what allows, and what matches nothing meets the default. On a terminal the statistics are
/// redrawn in place; in a pipe every report is a block of plain lines. Ctrl-C or SIGTERM detaches the program and ends
/// with a last report.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Options {
    /// The interface whose incoming packets are filtered.
    #[arg(short, long, value_name = "IF")]
    iface: String,

    /// Drop packets from this address or prefix, IPv4 or IPv6. Can be given several times.
    #[arg(long, value_name = "PREFIX")]
    block_ip: Vec<WrittenPrefix>,

    /// Drop packets from the prefixes in this file, one a line. It is watched: a new version takes effect at once and
    /// whole, and one with an error leaves the old one in force. Can be given several times.
    #[arg(long, value_name = "FILE")]
    block_file: Vec<PathBuf>,

    /// Drop packets to this port or range, of one protocol or of all that have ports: 80, tcp/80, udp/5000-5999. Can be
    /// given several times.
    #[arg(long, value_name = "[PROTO/]PORT[-PORT]")]
    block_port: Vec<PortRange>,

    /// Drop packets from this port or range. Can be given several times.
    #[arg(long, value_name = "[PROTO/]PORT[-PORT]")]
    block_source_port: Vec<PortRange>,

    /// Drop frames from this MAC address. Can be given several times.
    #[arg(long, value_name = "MAC")]
    block_mac: Vec<Mac>,

    /// Let packets from this address or prefix pass, whatever the default and the rate limit say. Can be given several
    /// times.
    #[arg(long, value_name = "PREFIX")]
    allow_ip: Vec<WrittenPrefix>,

    /// Let packets to this port or range pass, whatever the default and the rate limit say. Can be given several times.
    #[arg(long, value_name = "[PROTO/]PORT[-PORT]")]
    allow_port: Vec<PortRange>,

    /// What happens to packets that nothing matches. Frames that are not IP, and IPv6's neighbour discovery, always pass.
    #[arg(long, value_enum, default_value_t = PassOrDrop::Pass, value_name = "VERDICT")]
    default: PassOrDrop,

    /// What each source may send: packets a second (1000), or bits of IP packets a second (500kbit, 10mbit, 1gbit). An
    /// IPv6 source is a /64.
    #[arg(long, value_name = "RATE")]
    rate_limit: Option<Rate>,

    /// How much a source may send at once after a pause: packets or bytes, as the rate has it. A tenth of a second's
    /// worth if not given, and at least 10 packets or 65536 bytes.
    #[arg(long, requires = "rate_limit", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000), value_name = "N")]
    burst: Option<u64>,

    /// What happens to fragments: pass decides later ones by address alone, as they have no ports; track gives them the
    /// verdict of their first one and drops those that come before it; drop drops all.
    #[arg(long, value_enum, default_value_t = FragmentsOption::Pass, value_name = "HOW")]
    fragments: FragmentsOption,

    /// What happens to frames that are malformed.
    #[arg(long, value_enum, default_value_t = PassOrDrop::Drop, value_name = "VERDICT")]
    malformed: PassOrDrop,

    /// How many prefixes there is room for, those of files included. Memory is taken at the start: 420 bytes for each at
    /// powers of two, and up to 740 between them.
    #[arg(long, default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1..=4_194_304), value_name = "N")]
    max_entries: u32,

    /// Where the program runs: in the driver (native), behind it (generic), or on the card (offload); auto tries native
    /// first and says so if it has to take generic.
    #[arg(long, value_enum, default_value_t = XdpMode::Auto, value_name = "MODE")]
    xdp_mode: XdpMode,

    /// The time between two reports.
    #[arg(long, default_value = "2s", value_parser = parse_interval, value_name = "TIME")]
    stats_interval: Duration,

    /// Stop after this time; without it, filter until Ctrl-C.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    duration: Option<Duration>,

    /// Print every report as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PassOrDrop {
    Pass,
    Drop,
}

#[derive(Clone, Copy, ValueEnum)]
enum FragmentsOption {
    Pass,
    Drop,
    Track,
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
    // Watched before it is read, so that no version is missed in between.
    let watch = Watch::new(&options.block_file)?;
    let policy = policy(options)?;
    warn_of_slips(options);

    let mut ebpf = load::load_object(OBJECT, &map_sizes(options.max_entries))?;
    load::forward_log_lines(&mut ebpf).context("the program's log lines cannot be read")?;
    let program: &mut Xdp = load::program(&mut ebpf, "firewall", "XDP")?;
    program
        .load()
        .map_err(|error| load::explain_program("firewall", error))?;
    let mut tables = FirewallTables::take(&mut ebpf, options.max_entries)?;
    tables.apply(&policy)?;
    let counters = Counters::take(&mut ebpf)?;

    // Attached last: the first packet already meets the whole policy.
    let program: &mut Xdp = load::program(&mut ebpf, "firewall", "XDP")?;
    let attached = attach_xdp(program, &interface, options.xdp_mode).await?;
    interface.warn_if_down();

    let reporter = Reporter::new(&interface.name, &attached.mode.to_string());
    serve(
        options,
        &interface,
        watch,
        &mut tables,
        &counters,
        reporter,
        &mut output,
    )
    .await
    // Dropping `ebpf` detaches the program.
}
// ANCHOR_END: run

/// Reports, and follows the list files, until it is time to stop.
async fn serve(
    options: &Options,
    interface: &Interface,
    mut watch: Watch,
    tables: &mut FirewallTables,
    counters: &Counters,
    mut reporter: Reporter,
    output: &mut Output,
) -> Result<()> {
    let mut schedule = Schedule::start(options.stats_interval, options.duration);
    loop {
        let due = tokio::select! {
            due = schedule.next() => Some(due.context("signals cannot be caught")?),
            () = interface.gone() => None,
            changed = watch.changed() => {
                changed.context("the list files cannot be watched any more")?;
                follow_lists(options, tables);
                continue;
            }
        };
        let report = reporter.report(counters.read()?, schedule.elapsed());
        output
            .show(&report)
            .context("the report cannot be written to standard output")?;
        match due {
            Some(Due::Report) => {}
            Some(Due::LastReport) => return Ok(()),
            None => bail!(
                "{} has gone: it was removed, renamed or moved, and nothing is filtered any more; start again with an \
                 interface that is there",
                interface.name
            ),
        }
    }
}

/// Puts a new version of the lists into force, or says why the old one stays.
fn follow_lists(options: &Options, tables: &mut FirewallTables) {
    let applied = policy(options).and_then(|policy| {
        tables.apply(&policy)?;
        Ok(policy.block.len())
    });
    match applied {
        Ok(prefixes) => log::info!("the lists changed: {prefixes} prefixes are blocked now"),
        Err(error) => log::error!("the lists changed, and the old ones stay in force: {error:#}"),
    }
}

fn policy(options: &Options) -> Result<Policy> {
    let mut block = prefixes(&options.block_ip);
    for file in &options.block_file {
        let List {
            prefixes,
            first_with_host_bits,
        } = list::read(file)?;
        if let Some((line, text)) = first_with_host_bits {
            log::warn!(
                "{}:{line}: {text} has bits behind its length, which are ignored here and below",
                file.display()
            );
        }
        block.extend(prefixes);
    }
    Ok(Policy {
        block,
        allow: prefixes(&options.allow_ip),
        block_ports: options.block_port.clone(),
        block_source_ports: options.block_source_port.clone(),
        allow_ports: options.allow_port.clone(),
        block_macs: options.block_mac.clone(),
        limit: options
            .rate_limit
            .map(|rate| (rate, options.burst.unwrap_or(rate.default_burst()))),
        drop_by_default: options.default == PassOrDrop::Drop,
        drop_malformed: options.malformed == PassOrDrop::Drop,
        fragments: match options.fragments {
            FragmentsOption::Pass => Fragments::Pass,
            FragmentsOption::Drop => Fragments::Drop,
            FragmentsOption::Track => Fragments::Track,
        },
    })
}

/// The bytes of the IP layer that fit into an ordinary Ethernet frame.
const FULL_PACKET: u64 = 1500;

fn prefixes(written: &[WrittenPrefix]) -> Vec<Prefix> {
    written.iter().map(|written| written.prefix).collect()
}

/// What is more often a slip than meant; what is done is said, once.
fn warn_of_slips(options: &Options) {
    if let (Some(Rate::Bytes(_)), Some(burst @ ..FULL_PACKET)) = (options.rate_limit, options.burst) {
        log::warn!(
            "packets of more than {burst} bytes never pass a burst of {burst}; ordinary ones have {FULL_PACKET}"
        );
    }
    for WrittenPrefix { prefix, host_bits_of } in options.block_ip.iter().chain(&options.allow_ip) {
        if let Some(address) = host_bits_of {
            log::warn!("{address}/{} is taken as {prefix}", prefix.len());
        }
    }
}
