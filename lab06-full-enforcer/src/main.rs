//! The program `enforcer`: the daemon, and the commands that talk to it or need none.

use std::{
    io::{self, IsTerminal as _, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use enforcer_policy::{
    Format, Policy, Reading, diff, formats,
    model::{Mac, Protocol, State},
    read_path,
    show::{self, CheckJson},
    text,
};
use lab01_count_packets::{load, logging, schedule, signals};
use lab03_tc_egress_common::quote;
use lab06_full_enforcer::{
    api::{
        self, Applied, ChangeKind, ModeChange, ModeReport, ModeRequest, SetChanged, SetReport, SetRequest, SetSummary,
        Stats, Status,
    },
    client::Client,
    compile::{self, Compiled, Cost},
    enforcer::{self, Enforcer},
    explain::{self, InForce, Query, WrittenProtocol},
    names, report,
    server::Server,
    wire::Wire,
};
use lab06_full_enforcer_common::{
    control::Mode,
    key::{Direction, Hook},
};
use serde::Serialize;

/// Enforces one policy for all that a host receives and sends.
///
/// `enforcer run` is the daemon; it enforces until Ctrl-C or SIGTERM. Of the other commands, `policy check`, `policy
/// explain` and `policy diff` work on files and need neither a daemon nor root; the rest asks the daemon on its socket.
#[derive(Parser)]
#[command(name = "enforcer", version, max_term_width = 100)]
struct Options {
    /// The socket on which the daemon listens.
    #[arg(
        long,
        global = true,
        env = "ENFORCER_SOCKET",
        default_value = "/run/enforcer/enforcer.sock",
        value_name = "PATH"
    )]
    socket: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enforces, in the foreground, until Ctrl-C or SIGTERM.
    Run(RunOptions),

    /// Checks, applies, shows, explains and compares policies.
    #[command(subcommand)]
    Policy(PolicyCommand),

    /// Adds entries to sets of the policy in force, removes them, and lists them: at once, without another policy.
    #[command(subcommand)]
    Set(SetCommand),

    /// Reads the mode, or sets it from the next packet on: whether what is to be blocked is blocked.
    Mode {
        /// What it shall be; without, it is read. It holds until the next apply.
        #[arg(value_enum)]
        change: Option<ModeArgument>,

        #[command(flatten)]
        format: FormatOptions,
    },

    /// Says what is going on: policy, mode, hooks, packets.
    Status {
        #[command(flatten)]
        format: FormatOptions,
    },

    /// Says what was counted, rule by rule. A rule's counters survive a new policy, by its name.
    Stats {
        #[command(flatten)]
        format: FormatOptions,
    },
}

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct RunOptions {
    /// The policy: YAML, TOML, JSON or HCL by its extension. Without one, everything is observed and allowed.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// An interface whose packets are decided about. Can be given several times; without, every one but lo.
    #[arg(short, long, value_name = "IF")]
    iface: Vec<String>,

    /// The cgroup whose sockets' packets are decided about, with all below it: a path below the root of cgroup v2, or a
    /// folder. Without, the root.
    #[arg(long, value_name = "PATH", conflicts_with = "no_cgroup")]
    cgroup: Option<String>,

    /// Observe, whatever policies and `enforcer mode` say: count what would be blocked, and let it pass.
    #[arg(long, conflicts_with = "block")]
    observe: bool,

    /// Block, whatever policies and `enforcer mode` say.
    #[arg(long)]
    block: bool,

    /// Check the policy and the places to attach to, say what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// Which hook of an interface decides about what comes in.
    #[arg(long, value_enum, default_value_t, value_name = "HOOK", conflicts_with = "no_xdp")]
    wire: Wire,

    /// Do not attach to XDP: TC decides about what comes in.
    #[arg(long)]
    no_xdp: bool,

    /// Do not attach to TC: XDP decides about what comes in, and of what goes out only what sockets send is decided about.
    #[arg(long)]
    no_tc: bool,

    /// Do not attach to a cgroup: what goes out is decided about at the interfaces, where nobody knows whose it is, so that
    /// rules that name a cgroup, a user or a group match nothing.
    #[arg(long, visible_alias = "no-cg")]
    no_cgroup: bool,

    /// Leave the system calls `connect` and `sendmsg` alone: what is blocked is blocked as a packet only. For hosts that
    /// translate the destinations of what they send themselves (NAT in OUTPUT): there, the packet has another one than the call.
    #[arg(long)]
    no_connect: bool,

    /// How many flows are followed at once, in about 270 bytes each. With 0 none: replies are judged as what they are by
    /// themselves.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    max_flows: u32,

    /// Log more.
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Says all that is wrong with a policy, and whether it could be enforced.
    Check {
        /// The policy.
        file: PathBuf,

        #[command(flatten)]
        format: FormatOptions,
    },

    /// Puts a policy into force, whole and between two packets; one that has an error leaves the one in force.
    Apply {
        /// The policy.
        file: PathBuf,

        /// Only see whether it could be applied.
        #[arg(long)]
        dry_run: bool,

        #[command(flatten)]
        format: FormatOptions,
    },

    /// Shows the policy in force: its rules in the order in which they are asked, and what holds where none matches.
    Show {
        /// Print the policy itself instead, as it can be applied again: yaml, toml, json or hcl.
        #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
        r#as: Option<FormatArgument>,

        #[command(flatten)]
        format: FormatOptions,
    },

    /// Says what becomes of a packet, and why, by the classifier that the kernel runs.
    Explain(ExplainOptions),

    /// Says in what a policy differs from the one in force, or from another file.
    Diff {
        /// The new policy.
        file: PathBuf,

        /// The old policy; without, the one in force.
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,

        #[command(flatten)]
        format: FormatOptions,
    },
}

#[derive(Subcommand)]
enum SetCommand {
    /// Adds an entry. It stays until it is removed, its time is over, the enforcer ends, or a policy is applied that has no
    /// set of this name.
    Add(SetChange),

    /// Removes an entry. One that the policy has itself is back when its time is over or a policy is applied.
    Remove(SetChange),

    /// Lists a set's entries, whose they are and for how long; without a name, the sets.
    List {
        /// The set.
        name: Option<String>,

        #[command(flatten)]
        format: FormatOptions,
    },
}

#[derive(Args)]
struct SetChange {
    /// The set.
    name: String,

    /// An address, or a prefix such as 203.0.113.0/24.
    prefix: String,

    /// For how long, such as 90s, 10m or 1h; without, for good.
    #[arg(long, value_name = "TIME", value_parser = parse_for)]
    r#for: Option<Duration>,

    #[command(flatten)]
    format: FormatOptions,
}

#[derive(Args)]
struct ExplainOptions {
    /// The policy; without, the one in force.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// Which way the packet goes.
    #[arg(long, value_enum, default_value_t = DirectionArgument::Ingress, value_name = "WAY")]
    direction: DirectionArgument,

    /// Its source address.
    #[arg(long, value_name = "ADDRESS")]
    src: IpAddr,

    /// Its destination address.
    #[arg(long, value_name = "ADDRESS")]
    dst: IpAddr,

    /// Its protocol: tcp, udp, icmp, icmpv6 or a number.
    #[arg(long, value_name = "PROTOCOL")]
    proto: WrittenProtocol,

    /// Its source port, where the protocol has ports.
    #[arg(long, default_value_t = 40_000, value_name = "PORT")]
    sport: u16,

    /// Its destination port; needed where the protocol has ports.
    #[arg(long, value_name = "PORT")]
    dport: Option<u16>,

    /// Its ICMP type.
    #[arg(long, default_value_t = 0, value_name = "TYPE")]
    icmp_type: u8,

    /// Its ICMP code.
    #[arg(long, default_value_t = 0, value_name = "CODE")]
    icmp_code: u8,

    /// The interface; without, one that no rule names.
    #[arg(long, value_name = "IF")]
    iface: Option<String>,

    /// The sender's MAC address, of a packet that comes in; without, one that no rule names.
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    mac: Option<Mac>,

    /// The cgroup of the socket that sends it, or that it is for: a path below the root of cgroup v2.
    #[arg(long, default_value = "/", value_name = "PATH")]
    cgroup: String,

    /// The user who made that socket, by number.
    #[arg(long, default_value_t = 0, value_name = "UID")]
    uid: u32,

    /// The group of the process that made it, by number; without, one that is not known, as of sockets that were made before
    /// a policy with groups.
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,

    /// What its flow is to the enforcer: `new` for a packet that begins one or belongs to none, `established` for one that
    /// belongs to the flow which a packet like it began, `related` for an ICMP error about one, `invalid` for TCP without SYN
    /// and without a flow.
    #[arg(long, value_enum, default_value_t = StateArgument::New, value_name = "STATE")]
    state: StateArgument,

    #[command(flatten)]
    format: FormatOptions,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateArgument {
    New,
    Established,
    Related,
    Invalid,
}

#[derive(Args)]
struct FormatOptions {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArgument {
    Observe,
    Block,
    Toggle,
}

#[derive(Clone, Copy, ValueEnum)]
enum DirectionArgument {
    Ingress,
    Egress,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let client = Client::of(&options.socket);
    match &options.command {
        Command::Run(run_options) => conclude(run(run_options, &options.socket).await),
        command => conclude(ask(command, &client).await),
    }
}

// ANCHOR: run
async fn run(options: &RunOptions, socket: &Path) -> Result<()> {
    let level = if options.verbose {
        log::LevelFilter::Debug
    } else {
        log::LevelFilter::Info
    };
    logging::init_from(level, None);
    options.check()?;
    let policy = match &options.policy {
        Some(file) => enforceable(file)?,
        None => Policy::allow_all("none"),
    };
    let places = options.places();
    if options.dry_run {
        return print(&dry_run(&places, &policy)?);
    }
    load::require_privileges()?;
    // Before anything is attached, so that a second enforcer leaves the first one alone.
    let mut server = Server::open(socket)?;
    let enforcer = Enforcer::start(&places, policy).await?;
    tell(&enforcer, options, socket)?;
    let stopped = async {
        if let Err(error) = signals::asked_to_stop().await {
            log::error!("signals cannot be caught: {error}");
        }
    };
    server.serve(enforcer, stopped).await?;
    log::info!("stopped: every hook is detached, and nothing is enforced any more");
    Ok(())
}
// ANCHOR_END: run

impl RunOptions {
    fn check(&self) -> Result<(), Misuse> {
        let no_interface = self.wire().is_none() && self.no_tc;
        let misuse = if no_interface && self.no_cgroup {
            "--no-xdp, --no-tc and --no-cgroup leave no hook: nothing would be decided about; leave one of them away"
        } else if no_interface && !self.iface.is_empty() {
            "--iface is about XDP and TC, which --no-xdp and --no-tc leave out; leave one of them away"
        } else if self.no_tc && self.wire == Wire::Tc {
            "--no-tc leaves out what --wire tc asks for; leave one of them away"
        } else {
            return Ok(());
        };
        Err(Misuse(misuse.into()))
    }

    /// Which hook of the interfaces is to decide about what comes in.
    fn wire(&self) -> Option<Wire> {
        match (self.no_xdp, self.no_tc) {
            (true, true) => None,
            (true, false) => Some(Wire::Tc),
            (false, true) => Some(Wire::Xdp),
            (false, false) => Some(self.wire),
        }
    }

    fn places(&self) -> enforcer::Options {
        enforcer::Options {
            interfaces: (!self.iface.is_empty()).then(|| self.iface.clone()),
            wire: self.wire(),
            tc_egress: !self.no_tc,
            cgroup: self.cgroup.clone(),
            by_cgroup: !self.no_cgroup,
            at_calls: !self.no_connect,
            max_flows: self.max_flows,
            mode: match (self.observe, self.block) {
                (true, _) => Some(Mode::Observe),
                (_, true) => Some(Mode::Block),
                _ => None,
            },
        }
    }
}

fn dry_run(places: &enforcer::Options, policy: &Policy) -> Result<Vec<String>> {
    let names = names::on_this_host(policy)?;
    let compiled = compile::compile_for(policy, names.clone())?;
    let mode = places.mode.unwrap_or(compiled.mode);
    let mut lines = vec![format!(
        "would enforce policy {} ({}) in {} mode at:",
        policy.name,
        report::counted(compiled.rules.len() as u64, "rule"),
        mode.name()
    )];
    for (hook, at) in enforcer::places(places)? {
        lines.push(format!("  {hook} at {at}"));
    }
    lines.extend(report::missing(&names.missing(policy)));
    lines.push("nothing was changed".into());
    Ok(lines)
}

/// Says what holds now, and what does not.
fn tell(enforcer: &Enforcer, options: &RunOptions, socket: &Path) -> Result<()> {
    let status = enforcer.status()?;
    log::info!(
        "policy {} is in force: {} rules, mode {}",
        status.policy,
        status.rules,
        status.mode.mode
    );
    for hook in &status.hooks {
        log::info!("deciding at {} of {} ({})", hook.hook, hook.at, hook.attached_by);
    }
    for line in report::missing(&status.missing) {
        log::warn!("{line}");
    }
    let comes_in = [Hook::XdpIngress, Hook::TcIngress].map(Hook::name);
    if options.wire().is_none() {
        log::warn!("--no-xdp and --no-tc: nothing that comes in is decided about");
    } else if !status.hooks.iter().any(|hook| comes_in.contains(&hook.hook.as_str())) {
        log::warn!("there is no interface but lo: nothing that comes in is decided about");
    }
    if options.no_tc && options.no_cgroup {
        log::warn!("--no-tc and --no-cgroup: nothing that goes out is decided about");
    } else if options.no_tc {
        log::warn!("--no-tc: of what leaves, only what sockets send is decided about");
    } else if options.no_cgroup {
        log::warn!("--no-cgroup: nobody knows who sends, so rules that name a cgroup, a user or a group match nothing");
    }
    log::info!(
        "listening on {}; Ctrl-C stops, and detaches everything",
        socket.display()
    );
    Ok(())
}

/// All commands but `run`.
async fn ask(command: &Command, client: &Client) -> Result<()> {
    match command {
        Command::Run(_) => Ok(()),
        Command::Policy(command) => ask_about_policy(command, client).await,
        Command::Set(command) => ask_about_sets(command, client).await,
        Command::Mode { change, format } => {
            let report: ModeReport = match change {
                None => client.get(api::path::MODE).await?,
                Some(change) => {
                    let mode = match change {
                        ModeArgument::Observe => ModeChange::Observe,
                        ModeArgument::Block => ModeChange::Block,
                        ModeArgument::Toggle => ModeChange::Toggle,
                    };
                    client.put(api::path::MODE, &ModeRequest { mode }).await?
                }
            };
            format.print(&report, |report| vec![report::mode(report)])
        }
        Command::Status { format } => {
            let status: Status = client.get(api::path::STATUS).await?;
            format.print(&status, report::status)
        }
        Command::Stats { format } => {
            let stats: Stats = client.get(api::path::STATS).await?;
            format.print(&stats, report::stats)
        }
    }
}

async fn ask_about_policy(command: &PolicyCommand, client: &Client) -> Result<()> {
    match command {
        PolicyCommand::Check { file, format } => check(file, format),
        PolicyCommand::Apply { file, dry_run, format } => {
            let reading = read_path(file);
            let policy = accepted(&reading)?.self_contained();
            let path = format!("{}?dry_run={dry_run}", api::path::POLICY);
            let applied = client.post(&path, &policy).await;
            let applied: Applied = applied.map_err(|error| pointed_at(reading, error.into()))?;
            format.print(&applied, report::applied)
        }
        PolicyCommand::Show { r#as, format } => {
            let policy: Policy = client.get(api::path::POLICY).await?;
            if let Some(FormatArgument(written_as)) = r#as {
                return print(&lines(&formats::write(&policy, *written_as)));
            }
            let mode: ModeReport = client.get(api::path::MODE).await?;
            format.print(&show::json(&policy), |_| {
                let mut told = lines(&show::text(&policy));
                // The policy's own is not what holds.
                if mode.set_by != "policy" {
                    told.push(format!("in force  {}", report::mode(&mode)));
                }
                told
            })
        }
        PolicyCommand::Explain(options) => {
            let policy = match &options.policy {
                Some(file) => enforceable(file)?,
                None => client.get(api::path::POLICY).await?,
            };
            let in_force = if options.policy.is_some() {
                None
            } else {
                let status: Status = client.get(api::path::STATUS).await?;
                Some(InForce {
                    mode: mode_of(&status.mode),
                    hooks: status.hooks,
                })
            };
            let explanation = explain::explain(&compiled(&policy)?, &options.query()?, in_force.as_ref());
            options.format.print(&explanation, report::explanation)
        }
        PolicyCommand::Diff { file, against, format } => {
            let new = read_policy(file)?;
            let old = match against {
                Some(file) => read_policy(file)?,
                None => client.get(api::path::POLICY).await?,
            };
            format.print(&diff::diff(&old, &new), |diff| lines(&diff::text(diff)))
        }
    }
}

async fn ask_about_sets(command: &SetCommand, client: &Client) -> Result<()> {
    match command {
        SetCommand::Add(change) => change.ask_for(ChangeKind::Add, client).await,
        SetCommand::Remove(change) => change.ask_for(ChangeKind::Remove, client).await,
        SetCommand::List { name: None, format } => {
            let sets: Vec<SetSummary> = client.get(api::path::SETS).await?;
            format.print(&sets, |sets| report::sets(sets))
        }
        SetCommand::List {
            name: Some(name),
            format,
        } => {
            let set: SetReport = client.get(&path_of_set(name)?).await?;
            format.print(&set, report::set)
        }
    }
}

impl SetChange {
    async fn ask_for(&self, change: ChangeKind, client: &Client) -> Result<()> {
        let request = SetRequest {
            change,
            prefix: self.prefix.clone(),
            for_ms: self
                .r#for
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        };
        let changed: SetChanged = client.post(&path_of_set(&self.name)?, &request).await?;
        self.format.print(&changed, report::set_changed)
    }
}

/// Names have no characters but those that stand in a path as they are.
fn path_of_set(name: &str) -> Result<String, Misuse> {
    let name = text::parse_set_name(name).map_err(|refusal| Misuse(refusal.to_string()))?;
    Ok(format!("{}/{name}", api::path::SETS))
}

/// The longest time of an entry.
const LONGEST: Duration = Duration::from_hours(24 * 366 * 10);

fn parse_for(text: &str) -> Result<Duration, String> {
    let time = schedule::parse_duration(text)?;
    if time > LONGEST {
        return Err("the longest is ten years; without --for it is for good".into());
    }
    Ok(time)
}

fn mode_of(report: &ModeReport) -> Mode {
    if report.mode == Mode::Block.name() {
        Mode::Block
    } else {
        Mode::Observe
    }
}

fn compiled(policy: &Policy) -> Result<Compiled> {
    Ok(compile::compile(policy)?)
}

/// Whether a policy is right and can be enforced, and what it costs.
fn check(file: &Path, format: &FormatOptions) -> Result<()> {
    let (reading, compiled) = read_to_enforce(file);
    let cost = compiled.as_ref().map(Cost::of);
    if !format.json {
        accepted(&reading)?;
        let mut lines = vec![reading.summary()];
        lines.extend(cost.iter().flat_map(report::cost));
        return print(&lines);
    }
    let check = Check {
        reading: reading.check_json(),
        cost,
    };
    print(&[serde_json::to_string(&check)?])?;
    if reading.policy.is_some() {
        Ok(())
    } else {
        Err(AlreadyTold.into())
    }
}

/// What `check --json` prints.
#[derive(Serialize)]
struct Check {
    #[serde(flatten)]
    reading: CheckJson,
    /// `None` for a policy that cannot be used.
    cost: Option<Cost>,
}

/// Reads a policy and compiles it, and refuses what this version does not enforce where it stands, as any other mistake.
fn read_to_enforce(file: &Path) -> (Reading, Option<Compiled>) {
    let mut reading = read_path(file);
    let compiled = reading.policy.as_ref().map(compile::compile);
    match compiled {
        None => (reading, None),
        Some(Ok(compiled)) => (reading, Some(compiled)),
        Some(Err(cannot)) => {
            reading.refuse(&cannot.causes);
            (reading, None)
        }
    }
}

fn enforceable(file: &Path) -> Result<Policy> {
    accepted(&read_to_enforce(file).0)
}

/// Why the daemon did not take a policy: with the places in the file, if it cannot be enforced. (Only then it is compiled
/// here, too, which takes as long as there.)
fn pointed_at(mut reading: Reading, error: anyhow::Error) -> anyhow::Error {
    let refused = reading
        .policy
        .as_ref()
        .and_then(|policy| compile::compile(policy).err());
    let Some(cannot) = refused else { return error };
    // Its warnings were told.
    reading.diagnostics.clear();
    reading.refuse(&cannot.causes);
    accepted(&reading).err().unwrap_or(error)
}

fn read_policy(file: &Path) -> Result<Policy> {
    accepted(&read_path(file))
}

/// The policy, after all that there is to say about it was said to standard error.
fn accepted(reading: &Reading) -> Result<Policy> {
    let mut stderr = io::stderr();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let _ = stderr.write_all(reading.render(colour).as_bytes());
    reading.policy.clone().ok_or_else(|| AlreadyTold.into())
}

/// What is wrong was said already.
#[derive(Debug, thiserror::Error)]
#[error("the policy has errors; they stand above")]
struct AlreadyTold;

impl ExplainOptions {
    fn query(&self) -> Result<Query> {
        let WrittenProtocol(protocol) = self.proto;
        if self.src.is_ipv4() != self.dst.is_ipv4() {
            return Err(Misuse("--src and --dst are of different versions of IP; no packet has that".into()).into());
        }
        if protocol.has_ports() && self.dport.is_none() {
            return Err(Misuse(format!(
                "{protocol} has ports: say --dport, and --sport where it matters"
            ))
            .into());
        }
        if !protocol.has_ports() && self.dport.is_some() {
            return Err(Misuse(format!("{protocol} has no ports: leave --dport away")).into());
        }
        let state = match self.state {
            StateArgument::New => State::New,
            StateArgument::Established => State::Established,
            StateArgument::Related => State::Related,
            StateArgument::Invalid => State::Invalid,
        };
        if state == State::Related && !quote::is_error(protocol.0, self.icmp_type) {
            return Err(Misuse(
                "--state related is for ICMP errors: say --proto icmp and --icmp-type 3, 4, 5, 11 or 12, or icmpv6 and a \
                 type below 128"
                    .into(),
            )
            .into());
        }
        if state == State::Invalid && protocol != Protocol::TCP {
            return Err(Misuse("--state invalid is for TCP; anything else without a flow is new".into()).into());
        }
        Ok(Query {
            direction: match self.direction {
                DirectionArgument::Ingress => Direction::Ingress,
                DirectionArgument::Egress => Direction::Egress,
            },
            interface: self.iface.clone(),
            mac: self.mac,
            cgroup: self.cgroup.clone(),
            uid: self.uid,
            gid: self.gid,
            source: self.src,
            destination: self.dst,
            protocol,
            source_port: self.sport,
            destination_port: self.dport.unwrap_or(0),
            icmp: (self.icmp_type, self.icmp_code),
            state,
        })
    }
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no MAC address; write six bytes, as 02:00:00:00:00:01"))
}

/// The command line asks for what does not exist.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misuse(String);

/// An error line for each cause, and the exit status: 2 for a misuse, else 1.
fn conclude(result: Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if error.is::<AlreadyTold>() {
        return ExitCode::FAILURE;
    }
    let reader_has_gone = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
    if reader_has_gone {
        return ExitCode::SUCCESS;
    }
    for line in format!("{error:#}").lines() {
        let _ = writeln!(io::stderr(), "error: {line}");
    }
    if error.is::<Misuse>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// A format of policies, by its name.
#[derive(Clone, Copy)]
struct FormatArgument(Format);

impl std::str::FromStr for FormatArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let format = Format::ALL.into_iter().find(|format| format.extension() == text);
        format
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no format of policies; write yaml, toml, json or hcl"))
    }
}

impl FormatOptions {
    fn print<T: Serialize>(&self, value: &T, lines: impl FnOnce(&T) -> Vec<String>) -> Result<()> {
        if self.json {
            let json = serde_json::to_string(value).context("the answer cannot be written as JSON")?;
            print(&[json])
        } else {
            print(&lines(value))
        }
    }
}

fn print(lines: &[String]) -> Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(())
}
