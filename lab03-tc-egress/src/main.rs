//! Follows connections at an interface, denies what goes out, and holds it to a rate.

use std::{
    io::{self, BufWriter, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::programs::SchedClassifier;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab01_count_packets::{
    interface::Interface,
    load, logging, outcome,
    output::Output,
    schedule::{Due, Schedule, parse_duration, parse_interval},
};
use lab02_xdp_firewall::value::{PortRange, WrittenPrefix};
use lab03_tc_egress::{
    PROGRAMS,
    attach::{Direction, OnHook, TcAttach, TcHooks, Way, qdiscs},
    flows::{FlowTables, heads},
    options::{BurstOption, DenyRule, ShapeOption},
    policy::Policy,
    statistics::{Counters, Names, Reporter},
    tables::{self, ProgramTables},
};

/// Follows connections at an interface's TC hooks, in both directions; lets in only what belongs to them, denies where
/// nothing shall go, and holds what goes out to a rate.
///
/// Without options everything passes and is counted. On a terminal the statistics are redrawn in place; in a pipe every
/// report is a block of plain lines. Ctrl-C or SIGTERM detaches the programs and ends with a last report.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    run: RunOptions,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the flows that a running instance knows, those with the most bytes first.
    Flows(FlowsOptions),
}

#[derive(Args)]
struct FlowsOptions {
    /// The interface of the running instance.
    #[arg(short, long, value_name = "IF")]
    iface: String,

    /// How many flows to print; 0 for all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    top: usize,

    /// Print every flow as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct RunOptions {
    /// The interface.
    #[arg(short, long, value_name = "IF", required = true)]
    iface: Option<String>,

    /// How the programs are attached: by TCX (Linux 6.6), or as filters of clsact; auto takes TCX where the kernel has it.
    #[arg(long, value_enum, default_value_t = TcAttach::Auto, value_name = "HOW")]
    attach: TcAttach,

    /// Which hooks. With one of them, flows are seen from one side, and none is ever established.
    #[arg(long, value_enum, default_value_t = Hooks::Both, value_name = "HOOKS")]
    hooks: Hooks,

    /// Let in only what belongs to a flow that went out, and what goes to a listed port.
    #[arg(long)]
    stateful: bool,

    /// Let in new flows to this port or range, of one protocol or of all that have ports: 22, tcp/443, udp/5000-5999. Can
    /// be given several times.
    #[arg(long, requires = "stateful", value_name = "[PROTO/]PORT[-PORT]")]
    allow_port: Vec<PortRange>,

    /// For how long after the start packets of TCP connections come in that were there before; 0s for never. Whoever
    /// sends a packet without SYN gets in meanwhile, and learns from the answer whether a port is open.
    #[arg(long, requires = "stateful", default_value = "30s", value_parser = parse_pick_up, value_name = "TIME")]
    pick_up: Duration,

    /// Deny what goes out to a prefix, to ports, or to ports of a prefix: 203.0.113.0/24, tcp/25, 203.0.113.0/24,tcp/25.
    /// Can be given several times; the first that matches counts.
    #[arg(long, value_name = "RULE")]
    deny: Vec<DenyRule>,

    /// Hold what goes out to a rate of IP packets, all of it or that to a prefix: 1gbit, 203.0.113.0/24=10mbit. Can be
    /// given several times; the longest prefix wins.
    #[arg(long, value_name = "[PREFIX=]RATE")]
    shape: Vec<ShapeOption>,

    /// How much may go out at once after a pause: 100mbit, or bytes: 131072; at least 65536. A tenth of a second's worth
    /// if not given.
    #[arg(long, requires = "shape", value_name = "[PREFIX=]SIZE")]
    burst: Vec<BurstOption>,

    /// What becomes of what exceeds a rate: wait needs the fq queueing discipline on the interface; auto waits where it
    /// is, and looks again with every report.
    #[arg(long, requires = "shape", value_enum, default_value_t = Pacing::Auto, value_name = "HOW")]
    pacing: Pacing,

    /// How many established flows are remembered; a quarter as many half-open ones, and at least 4096, have a table of
    /// their own. Memory is taken at the start: 216 bytes for each.
    #[arg(long, default_value_t = 65_536, value_parser = parse_max_flows, value_name = "N")]
    max_flows: u32,

    /// For how long an established TCP connection may be silent.
    #[arg(long, default_value = "2h4m", value_parser = parse_duration, value_name = "TIME")]
    tcp_idle: Duration,

    /// For how long other flows may be silent that have gone on after an answer.
    #[arg(long, default_value = "2m", value_parser = parse_duration, value_name = "TIME")]
    udp_idle: Duration,

    /// What happens to frames that are malformed.
    #[arg(long, value_enum, default_value_t = PassOrDrop::Drop, value_name = "VERDICT")]
    malformed: PassOrDrop,

    /// The time between two reports.
    #[arg(long, default_value = "2s", value_parser = parse_interval, value_name = "TIME")]
    stats_interval: Duration,

    /// Stop after this time; without it, run until Ctrl-C.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    duration: Option<Duration>,

    /// Print every report as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hooks {
    Both,
    Ingress,
    Egress,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pacing {
    Auto,
    Wait,
    Drop,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PassOrDrop {
    Pass,
    Drop,
}

fn parse_max_flows(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(flows @ 1..=1_000_000) => Ok(flows),
        _ => Err("it is a number from 1 to 1000000".into()),
    }
}

/// A time that may be nothing.
fn parse_pick_up(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => parse_duration(text),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.command {
        Some(Command::Flows(options)) => print_flows(options),
        None => run(&options.run).await,
    };
    outcome::exit_code(result)
}

fn print_flows(options: &FlowsOptions) -> Result<()> {
    let interface = Interface::find(&options.iface)?;
    load::require_privileges()?;
    let mut flows = FlowTables::of_running(&interface)?.flows();
    if options.top > 0 {
        flows.truncate(options.top);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    if options.json {
        for flow in &flows {
            writeln!(out, "{}", serde_json::to_string(flow)?)?;
        }
    } else {
        writeln!(out, "{}", heads())?;
        for flow in &flows {
            writeln!(out, "{}", flow.to_string().trim_end())?;
        }
    }
    out.flush()?;
    Ok(())
}

// ANCHOR: run
async fn run(options: &RunOptions) -> Result<()> {
    let mut output = Output::new(options.json);
    logging::init(output.screen());
    if options.stateful && options.hooks != Hooks::Both {
        bail!("--stateful needs both hooks: who is let in depends on what went out; leave --hooks away");
    }
    let interface = Interface::find(options.iface.as_deref().unwrap_or_default())?;
    warn_of_slips(options);
    let policy = policy(options);

    let mut ebpf = tables::load(policy.max_flows)?;
    load::forward_log_lines(&mut ebpf).context("the programs' log lines cannot be read")?;
    for (name, _) in PROGRAMS {
        let program: &mut SchedClassifier = load::program(&mut ebpf, name, "SchedClassifier")?;
        program.load().map_err(|error| load::explain_program(name, error))?;
    }
    let (mut tables, shapes) = ProgramTables::put(&mut ebpf, &policy)?;
    let pacing = Pace::new(options, &interface, &mut tables)?;
    let flows = FlowTables::take(&mut ebpf)?;
    let counters = Counters::take(&mut ebpf)?;

    // Attached last: the first packet already meets the whole policy.
    let mut hooks = TcHooks::open(&interface, options.attach)?;
    for (name, direction) in PROGRAMS {
        if options.hooks.include(direction) {
            hooks.attach(load::program(&mut ebpf, name, "SchedClassifier")?, direction)?;
        }
    }
    for other in hooks.others()? {
        tell_of(&other, &interface);
    }
    interface.warn_if_down();

    let reporter = Reporter::new(Names {
        interface: interface.name.clone(),
        attached: hooks.way().to_string(),
        rules: options.deny.iter().map(|rule| rule.text.clone()).collect(),
        shapes,
        max_flows: policy.max_flows,
    });
    serve(
        options,
        &interface,
        pacing,
        &mut tables,
        &flows,
        &counters,
        reporter,
        &mut output,
    )
    .await
    // Dropping `hooks` detaches the programs.
}
// ANCHOR_END: run

/// Says what else is on a hook. A filter of this lab may be one that nobody holds any more, and decides all the same.
fn tell_of(other: &OnHook, interface: &Interface) {
    let name = other.name.as_deref().unwrap_or_default();
    let is_ours = PROGRAMS.iter().any(|(ours, _)| *ours == name);
    if is_ours && other.way == Way::Clsact {
        log::warn!(
            "{0} carries {other} already, of another run, which decides, too; if that one was killed, remove it: `tc qdisc \
             del dev {0} clsact`",
            interface.name
        );
    } else {
        log::info!("{} carries {other} already, which is left alone", interface.name);
    }
}

/// Reports until it is time to stop.
#[expect(
    clippy::too_many_arguments,
    reason = "the parts of the one thing that runs, each taken once"
)]
async fn serve(
    options: &RunOptions,
    interface: &Interface,
    mut pace: Pace,
    tables: &mut ProgramTables,
    flows: &FlowTables,
    counters: &Counters,
    mut reporter: Reporter,
    output: &mut Output,
) -> Result<()> {
    let mut schedule = Schedule::start(options.stats_interval, options.duration);
    loop {
        let due = tokio::select! {
            due = schedule.next() => Some(due.context("signals cannot be caught")?),
            () = interface.gone() => None,
        };
        pace.look_again(interface, tables)?;
        let report = reporter.report(counters.read(flows.fill())?, schedule.elapsed(), pace.can_wait);
        output
            .show(&report)
            .context("the report cannot be written to standard output")?;
        match due {
            Some(Due::Report) => {}
            Some(Due::LastReport) => return Ok(()),
            None => bail!(
                "{} has gone: it was removed, renamed or moved, and nothing is followed any more; start again with an \
                 interface that is there",
                interface.name
            ),
        }
    }
}

/// Whether what exceeds a rate waits, and whether that may change.
struct Pace {
    can_wait: bool,
    follows: bool,
}

impl Pace {
    fn new(options: &RunOptions, interface: &Interface, tables: &mut ProgramTables) -> Result<Self> {
        let mut pace = Self {
            can_wait: false,
            follows: !options.shape.is_empty() && options.pacing == Pacing::Auto,
        };
        if options.shape.is_empty() || options.pacing == Pacing::Drop {
            return Ok(pace);
        }
        pace.can_wait = has_fq(interface);
        if options.pacing == Pacing::Wait && !pace.can_wait {
            bail!(
                "packets cannot wait on {0}, which has no fq queueing discipline; add it: `tc qdisc replace dev {0} root \
                 fq`, or use --pacing drop",
                interface.name
            );
        }
        if !pace.can_wait {
            log::info!(
                "{0} has no fq queueing discipline, so what exceeds a rate is dropped; with it packets wait: `tc qdisc \
                 replace dev {0} root fq`",
                interface.name
            );
        }
        tables.set_can_wait(pace.can_wait)?;
        Ok(pace)
    }

    /// Looks whether `fq` has come or gone: without it a packet that shall wait leaves at once, and no rate holds.
    fn look_again(&mut self, interface: &Interface, tables: &mut ProgramTables) -> Result<()> {
        if !self.follows {
            return Ok(());
        }
        let can_wait = has_fq(interface);
        if can_wait != self.can_wait {
            tables.set_can_wait(can_wait)?;
            self.can_wait = can_wait;
            log::info!(
                "the queueing discipline of {} has changed: what exceeds a rate {} now",
                interface.name,
                if can_wait { "waits" } else { "is dropped" }
            );
        }
        Ok(())
    }
}

/// Whether every queue of the interface is `fq`, which sends packets at the time that is written on them.
fn has_fq(interface: &Interface) -> bool {
    let kinds = qdiscs(interface).unwrap_or_default();
    // These hold no packets themselves.
    let mut queues = kinds
        .iter()
        .filter(|kind| !matches!(kind.as_str(), "clsact" | "ingress" | "mq"))
        .peekable();
    queues.peek().is_some() && queues.all(|kind| kind == "fq")
}

impl Hooks {
    fn include(self, direction: Direction) -> bool {
        match self {
            Self::Both => true,
            Self::Ingress => direction == Direction::Ingress,
            Self::Egress => direction == Direction::Egress,
        }
    }
}

fn policy(options: &RunOptions) -> Policy {
    Policy {
        stateful: options.stateful,
        allow_ports: options.allow_port.clone(),
        pick_up: options.pick_up,
        deny: options.deny.clone(),
        shapes: options.shape.clone(),
        bursts: options.burst.clone(),
        max_flows: options.max_flows,
        tcp_idle: options.tcp_idle,
        udp_idle: options.udp_idle,
        drop_malformed: options.malformed == PassOrDrop::Drop,
    }
}

/// What is more often a slip than meant; what is done is said, once.
fn warn_of_slips(options: &RunOptions) {
    let prefixes = options
        .deny
        .iter()
        .filter_map(|rule| rule.prefix)
        .chain(options.shape.iter().filter_map(|shape| shape.prefix))
        .chain(options.burst.iter().filter_map(|burst| burst.prefix));
    for WrittenPrefix { prefix, host_bits_of } in prefixes {
        if let Some(address) = host_bits_of {
            log::warn!("{address}/{} is taken as {prefix}", prefix.len());
        }
    }
}
