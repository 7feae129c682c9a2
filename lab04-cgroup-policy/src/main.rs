//! Says what the processes of a cgroup may send, and enforces it or tells what it would have done.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use enforcer_policy::model::{Mode, Policy};
use lab01_count_packets::{
    load, logging, outcome,
    output::Output,
    schedule::{Due, Schedule, parse_duration, parse_interval},
};
use lab02_xdp_firewall::watch::Watch;
use lab04_cgroup_policy::{
    OBJECT,
    attach::Hook,
    cgroup::{Cgroup, Hierarchy},
    compile::{Compiled, compile},
    control::{self, Control, ControlError, Request},
    enforcement::Loaded,
    statistics::Reporter,
};
use tokio::process::{Child, Command};

/// Enforces a policy on what the processes of a cgroup send and get, or tells what it would have blocked.
///
/// The policy's file is watched: a new version takes effect at once and whole, and one with an error leaves the old one in
/// force. On a terminal the statistics are redrawn in place; in a pipe every report is a block of plain lines. Ctrl-C or
/// SIGTERM detaches the programs and ends with a last report.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Options {
    #[command(subcommand)]
    subcommand: Option<Subcommands>,

    #[command(flatten)]
    run: Option<Run>,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Read, set or toggle the mode of one that runs, from the next packet on.
    Mode {
        /// What it shall do; without it, the mode is printed.
        #[arg(value_enum)]
        mode: Option<ModeArgument>,

        /// The cgroup that it runs on; not needed where only one runs.
        #[arg(long, value_name = "PATH")]
        cgroup: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArgument {
    Observe,
    Block,
    Toggle,
}

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
struct Run {
    /// The cgroup: a folder of cgroup v2, or its path below the root of that. Its descendants are covered.
    #[arg(long, value_name = "PATH")]
    cgroup: PathBuf,

    /// The policy: YAML, TOML, JSON or HCL, as the file's name says.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,

    /// Report what would be blocked, and let it pass.
    #[arg(long, conflicts_with = "block")]
    observe: bool,

    /// Block what the policy blocks. Without either, the mode is the policy's, which observes unless it says otherwise.
    #[arg(long)]
    block: bool,

    /// Make the cgroup if it is not there; it is removed again at the end.
    #[arg(long)]
    create: bool,

    /// Attach only to this hook. Can be given several times.
    #[arg(long = "hook", value_name = "HOOK", value_parser = parse_hook)]
    hooks: Vec<Hook>,

    /// How many entries there is room for, for each version of IP: a rule takes one for each combination of its prefixes
    /// and ports. Memory is taken at the start: 0.5 KiB for each, and 64 bytes for each CPU.
    #[arg(long, default_value_t = 10_240, value_parser = clap::value_parser!(u32).range(1..=1_048_576), value_name = "N")]
    max_entries: u32,

    /// Pin programs, maps and links in this new folder on bpffs. What is pinned stays in force after the end, until the
    /// folder is removed.
    #[arg(long, value_name = "FOLDER")]
    pin: Option<PathBuf>,

    /// Load this eBPF object instead of the one that is built in.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,

    /// The time between two reports.
    #[arg(long, default_value = "1s", value_parser = parse_interval, value_name = "TIME")]
    interval: Duration,

    /// Stop after this time; without it, enforce until Ctrl-C, or until the command ends.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    duration: Option<Duration>,

    /// Print every report as one line of JSON.
    #[arg(long)]
    json: bool,

    /// Run this command in the cgroup, which is made if it is not there. There is one report, after the command has ended,
    /// and its exit status is passed on.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_hook(text: &str) -> Result<Hook, String> {
    let hook = Hook::ALL.into_iter().find(|hook| hook.name() == text);
    hook.ok_or_else(|| format!("the hooks are {}", Hook::ALL.map(Hook::name).join(", ")))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Options { subcommand, run } = Options::parse();
    match (subcommand, run) {
        (Some(Subcommands::Mode { mode, cgroup }), _) => outcome::exit_code(ask_mode(mode, cgroup.as_deref())),
        (None, Some(run)) => match enforce(&run).await {
            Ok(0) => ExitCode::SUCCESS,
            Ok(status) => ExitCode::from(status),
            Err(error) => outcome::exit_code(Err(error)),
        },
        // clap asks for the options of `Run` where there is no subcommand.
        (None, None) => ExitCode::from(2),
    }
}

fn ask_mode(mode: Option<ModeArgument>, cgroup: Option<&Path>) -> Result<()> {
    let request = match mode {
        None => Request::Tell,
        Some(ModeArgument::Observe) => Request::Observe,
        Some(ModeArgument::Block) => Request::Block,
        Some(ModeArgument::Toggle) => Request::Toggle,
    };
    let mode = match cgroup {
        Some(cgroup) => {
            let cgroup = Hierarchy::find()?.open(cgroup)?;
            control::ask(cgroup.id(), cgroup.name(), request)?
        }
        None => control::ask_the_only_one(request)?,
    };
    writeln!(io::stdout(), "{mode}")?;
    Ok(())
}

// ANCHOR: run
/// Enforces until it is time to stop; the exit status of the command, or 0.
async fn enforce(options: &Run) -> Result<u8> {
    let with_command = !options.command.is_empty();
    // A command has the terminal for itself.
    let mut output = if with_command && !options.json {
        Output::Plain
    } else {
        Output::new(options.json)
    };
    logging::init(output.screen());
    let hierarchy = Hierarchy::find()?;
    // Watched before it is read, so that no version is missed in between.
    let watch = Watch::new(std::slice::from_ref(&options.policy));
    let (policy, compiled) = read_policy(&options.policy, options.max_entries)?;
    let watch = watch?;
    load::require_privileges()?;
    let own_object = options.object.as_deref().map(read_object).transpose()?;

    let object = own_object.as_deref().unwrap_or(OBJECT);
    let mut cgroup = if options.create || with_command {
        hierarchy.open_or_make(&options.cgroup)?
    } else {
        hierarchy
            .open(&options.cgroup)
            .map_err(|error| anyhow!("{error}; --create makes a new one"))?
    };
    let control = open_control(&cgroup)?;
    let mut loaded = Loaded::load(object, options.max_entries, options.pin.as_deref())?;
    loaded.tables.apply(&compiled)?;
    let blocking = (options.block || policy.mode == Mode::Block) && !options.observe;
    loaded.tables.set_blocking(blocking)?;

    let hooks = if options.hooks.is_empty() {
        &Hook::ALL[..]
    } else {
        &options.hooks
    };
    // Attached last: the first packet already meets the whole policy. They are detached when the links are dropped.
    let _links = loaded.attach(&cgroup, hooks, options.pin.as_deref())?;
    if let Some(folder) = &options.pin {
        cgroup.keep();
        log::info!(
            "pinned in {}: the policy stays in force until that folder is removed",
            folder.display()
        );
    }
    let child = with_command.then(|| start(&options.command, &cgroup)).transpose()?;

    let reporter = Reporter::new(&cgroup.name().display().to_string());
    let mut server = Server {
        options,
        cgroup,
        policy_name: policy.name,
        loaded,
        reporter,
        control,
        watch,
        child,
    };
    server.serve(&mut output).await
}
// ANCHOR_END: run

/// Reads a policy, says all that is wrong with it, and compiles it.
fn read_policy(path: &Path, max_entries: u32) -> Result<(Policy, Compiled)> {
    let reading = enforcer_policy::read_path(path);
    let rendered = reading.render(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    if !rendered.is_empty() {
        let _ = write!(io::stderr(), "{rendered}");
    }
    let errors = reading.errors();
    let Some(policy) = reading.policy else {
        bail!(
            "the policy {} has {errors} error{}, see above",
            path.display(),
            if errors == 1 { "" } else { "s" }
        );
    };
    match compile(&policy, max_entries) {
        Ok(compiled) => Ok((policy, compiled)),
        Err(refusals) => {
            let all: Vec<String> = refusals
                .iter()
                .map(|refusal| format!("the policy {}: {refusal}", path.display()))
                .collect();
            Err(anyhow!(all.join("\nerror: ")))
        }
    }
}

/// Opens the socket for `mode`; without it, the policy is enforced all the same.
fn open_control(cgroup: &Cgroup) -> Result<Option<Control>> {
    match Control::open(cgroup.id()) {
        Ok(control) => Ok(Some(control)),
        Err(error @ ControlError::Occupied) => Err(error.into()),
        Err(error) => {
            log::warn!("the mode cannot be changed while this runs: {error}");
            Ok(None)
        }
    }
}

fn read_object(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| {
        anyhow!(
            "the eBPF object {} cannot be read: {error}; leave --object out to load the one that is built in",
            path.display()
        )
    })
}

fn start(command: &[OsString], cgroup: &Cgroup) -> Result<Child> {
    let [program, args @ ..] = command else {
        bail!("no command is given");
    };
    let mut command = std::process::Command::new(program);
    command.args(args);
    cgroup.enrol(&mut command)?;
    Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("the command {} cannot be started", program.display()))
}

/// What runs until it is time to stop.
struct Server<'a> {
    options: &'a Run,
    // Dropped in this order: nothing is in the cgroup any more when it is to be removed.
    child: Option<Child>,
    loaded: Loaded,
    cgroup: Cgroup,
    policy_name: String,
    reporter: Reporter,
    control: Option<Control>,
    watch: Watch,
}

/// What happened.
enum Event {
    Due(Due),
    Ended(u8),
    Changed,
    Asked(control::Asked),
}

impl Server<'_> {
    async fn serve(&mut self, output: &mut Output) -> Result<u8> {
        let mut schedule = Schedule::start(self.options.interval, self.options.duration);
        loop {
            let event = tokio::select! {
                due = schedule.next() => Event::Due(due.context("signals cannot be caught")?),
                status = ended(&mut self.child) => Event::Ended(status?),
                changed = self.watch.changed() => {
                    changed.context("the policy's file cannot be watched any more")?;
                    Event::Changed
                }
                asked = asked(self.control.as_mut()) => Event::Asked(asked.context("requests cannot be heard any more")?),
            };
            match event {
                Event::Changed => self.follow_policy(),
                Event::Asked(asked) => self.obey(asked)?,
                // One report, when the command has ended.
                Event::Due(Due::Report) if self.child.is_some() => {}
                Event::Due(due) => {
                    self.report(output, schedule.elapsed())?;
                    if due == Due::LastReport {
                        return Ok(0);
                    }
                }
                Event::Ended(status) => {
                    self.report(output, schedule.elapsed())?;
                    return Ok(status);
                }
            }
            if !self.cgroup.is_present() {
                bail!(
                    "the cgroup {} has gone, and nothing is enforced any more; start again with one that is there",
                    self.cgroup.name().display()
                );
            }
        }
    }

    fn report(&mut self, output: &mut Output, elapsed: Duration) -> Result<()> {
        let tables = &self.loaded.tables;
        let statistics = self.loaded.counters.read(tables)?;
        let blocking = tables.is_blocking()?;
        let report = self
            .reporter
            .report(&self.policy_name, blocking, tables, statistics, elapsed);
        output
            .show(&report)
            .context("the report cannot be written to standard output")
    }

    /// Puts a new version of the policy into force, or says why the old one stays.
    fn follow_policy(&mut self) {
        let applied = read_policy(&self.options.policy, self.options.max_entries).and_then(|(policy, compiled)| {
            self.loaded.tables.apply(&compiled)?;
            Ok((policy, compiled.rules.len()))
        });
        match applied {
            Ok((policy, rules)) => {
                log::info!("the policy changed: {}, {rules} rules, is in force", policy.name);
                self.policy_name = policy.name;
            }
            Err(error) => log::error!("the policy changed, and the old one stays in force: {error:#}"),
        }
    }

    fn obey(&mut self, asked: control::Asked) -> Result<()> {
        let tables = &mut self.loaded.tables;
        let before = tables.is_blocking()?;
        let blocking = match asked.request {
            Request::Tell => before,
            Request::Observe => false,
            Request::Block => true,
            Request::Toggle => !before,
        };
        tables.set_blocking(blocking)?;
        let mode = if blocking { "block" } else { "observe" };
        if blocking != before {
            log::info!("the mode is {mode} now");
        }
        asked.answer(mode);
        Ok(())
    }
}

/// Waits for a request; for ever if none can be made.
async fn asked(control: Option<&mut Control>) -> io::Result<control::Asked> {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for the command's end; for ever if there is none.
async fn ended(child: &mut Option<Child>) -> Result<u8> {
    let Some(child) = child else {
        return std::future::pending().await;
    };
    let status = child.wait().await.context("the command cannot be waited for")?;
    // As a shell tells it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
