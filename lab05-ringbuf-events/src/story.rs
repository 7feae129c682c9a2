//! Tells the story: reads what the programs tell, puts it in order, and shows it.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lab01_count_packets::{
    interface::Interface,
    logging,
    schedule::{Due, Schedule},
};
use lab02_xdp_firewall::policy::Policy;
use lab02_xdp_firewall_common::{bucket::Limit, firewall::Fragments, prefix_set::build::Prefix};
use lab04_cgroup_policy::cgroup::{Cgroup, Hierarchy};
use lab05_ringbuf_events::{
    cgroups::CgroupNames,
    clock::{Calendar, boot_ns},
    event::Event,
    filter::Filter,
    frame::{Frame, Sources, host_id},
    processes::Processes,
    reader::record_in,
    tell::{Style, Teller},
    watch::{Sizes, Watch},
};
use lab05_ringbuf_events_common::{
    decision::{Decision, Settings},
    process::{Exec, ProcessEvent},
};

use crate::options::{AllowOrBlock, Options};

/// How many prefixes there is room for.
const MAX_ENTRIES: u32 = 4096;

/// What is told, in the order in which it happened.
struct Story {
    watch: Watch,
    teller: Teller,
    processes: Processes,
    cgroups: CgroupNames,
    filter: Filter,
    calendar: Calendar,
    host_id: String,
    is_on_terminal: bool,
    decisions: Vec<Decision>,
    deeds: Vec<(ProcessEvent, Option<Exec>)>,
}

/// Runs the command.
pub async fn tell(options: &Options) -> Result<()> {
    logging::init(None);
    let interfaces: Vec<Interface> = options
        .iface
        .iter()
        .map(|name| Interface::find(name))
        .collect::<Result<_, _>>()?;
    let hierarchy = if options.no_cgroup {
        None
    } else {
        Some(Hierarchy::find()?)
    };
    let cgroup = cgroup(options, hierarchy.as_ref())?;
    if interfaces.is_empty() && cgroup.is_none() && options.no_processes {
        bail!("nothing is left to tell of: give an interface (--iface), or leave out --no-cgroup or --no-processes");
    }
    let start_ns = boot_ns();
    let mut watch = Watch::load(sizes(options), &policy(options), settings(options))?;
    if !options.no_processes {
        watch.attach_processes()?;
    }
    if let Some(cgroup) = &cgroup {
        watch.attach_cgroup(cgroup)?;
    }
    for interface in &interfaces {
        watch.attach_xdp(interface, options.xdp_mode).await?;
        interface.warn_if_down();
    }
    let calendar = Calendar::now();
    let host_id = host_id();
    let mut story = Story {
        teller: Teller::new(style(options), &host_id, calendar, start_ns, options.observe),
        // Looked at when events are told already, so that no process falls in between.
        processes: if options.no_processes {
            Processes::default()
        } else {
            Processes::from_procfs(hierarchy.as_ref().map(Hierarchy::root))
        },
        cgroups: CgroupNames::below(hierarchy.as_ref().map_or(Path::new(""), Hierarchy::root)),
        filter: filter(options, cgroup.as_ref()),
        decisions: Vec::new(),
        deeds: Vec::new(),
        watch,
        calendar,
        host_id,
        is_on_terminal: style(options) != Style::Json && io::stdout().is_terminal(),
    };
    story.go_on(options, &interfaces, cgroup.as_ref()).await
    // Dropping the watch detaches all programs.
}

impl Story {
    // ANCHOR: go_on
    async fn go_on(&mut self, options: &Options, interfaces: &[Interface], cgroup: Option<&Cgroup>) -> Result<()> {
        let mut schedule = Schedule::start(options.frames.unwrap_or(FOREVER), options.duration);
        // Signals are caught from the first look at the schedule on, and whoever reads "watching" may send one.
        tokio::select! {
            biased;
            _ = schedule.next() => return self.end(),
            () = std::future::ready(()) => {}
        }
        log::info!("watching{}", scope(interfaces, cgroup, options));
        show(self.teller.head())?;
        loop {
            let (decisions, deeds) = (&mut self.decisions, &mut self.deeds);
            tokio::select! {
                due = schedule.next() => match due.context("signals cannot be caught")? {
                    Due::Report => self.show_frame()?,
                    Due::LastReport => return self.end(),
                },
                why = gone(interfaces, cgroup) => {
                    self.end()?;
                    bail!(why);
                }
                read = self.watch.decisions.read(|record| decisions.extend(record_in::<Decision>(record))) => {
                    read.context("the ring buffer of decisions cannot be waited for")?;
                }
                read = self.watch.processes.read(|record| deeds.extend(deed(record))) => {
                    read.context("the ring buffer of processes cannot be waited for")?;
                }
            }
            self.show_events()?;
        }
    }
    // ANCHOR_END: go_on

    // ANCHOR: show_events
    /// Shows what has come, of both ring buffers, in the order of time.
    fn show_events(&mut self) -> Result<()> {
        let (decisions, deeds) = (&mut self.decisions, &mut self.deeds);
        // Decisions first: what a process did before one of them is in the other ring buffer by then.
        self.watch
            .decisions
            .read_now(|record| decisions.extend(record_in::<Decision>(record)));
        self.watch.processes.read_now(|record| deeds.extend(deed(record)));
        let mut deeds = std::mem::take(&mut self.deeds);
        let mut decisions = std::mem::take(&mut self.decisions);
        deeds.sort_by_key(|(event, _)| event.time_ns);
        decisions.sort_by_key(|decision| decision.time_ns);
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut decisions = decisions.into_iter().peekable();
        for (event, exec) in deeds {
            while let Some(decision) = decisions.next_if(|decision| decision.time_ns < event.time_ns) {
                self.write(&mut out, &Event::Decision(decision))?;
            }
            let parent = self.processes.get(event.parent).map(|parent| parent.comm.clone());
            let process = self.processes.follow(&event, exec.as_ref());
            let event = Event::Process { event, process, parent };
            self.write(&mut out, &event)?;
        }
        for decision in decisions {
            self.write(&mut out, &Event::Decision(decision))?;
        }
        out.flush()?;
        Ok(())
    }
    // ANCHOR_END: show_events

    fn write(&mut self, out: &mut impl io::Write, event: &Event) -> Result<()> {
        if self.filter.shows(event, &self.processes, &mut self.cgroups) {
            writeln!(out, "{}", self.teller.event(event, &mut self.cgroups))?;
        }
        Ok(())
    }

    fn show_frame(&mut self) -> Result<()> {
        let now_ns = boot_ns();
        let flows = self.watch.flows.snapshot(&self.processes)?;
        let sources = Sources {
            host_id: &self.host_id,
            calendar: &self.calendar,
            cgroups: &mut self.cgroups,
            filter: &self.filter,
        };
        let frame = Frame::new(sources, now_ns, &mut self.processes, flows);
        show(self.teller.frame(&frame, now_ns))
    }

    fn end(&mut self) -> Result<()> {
        self.show_events()?;
        if self.is_on_terminal {
            // Behind the ^C that the terminal has shown.
            show([String::new()])?;
        }
        self.show_frame()?;
        let balance = self.watch.books.balance()?;
        show([self.teller.balance(&balance)])
    }
}

/// No frames but the last.
const FOREVER: Duration = Duration::from_hours(24 * 365);

fn show(lines: impl IntoIterator<Item = String>) -> Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(())
}

/// A record of the ring buffer of processes: a long one of an exec, or a short one.
fn deed(record: &[u8]) -> Option<(ProcessEvent, Option<Exec>)> {
    let exec = record_in::<Exec>(record);
    Some((record_in::<ProcessEvent>(record)?, exec))
}

/// Waits until something that is watched goes; tells what.
async fn gone(interfaces: &[Interface], cgroup: Option<&Cgroup>) -> String {
    loop {
        if let Some(Interface { name, .. }) = interfaces.iter().find(|interface| !interface.is_present()) {
            return format!(
                "{name} has gone: it was removed, renamed or moved; start again with an interface that is there"
            );
        }
        if let Some(cgroup) = cgroup.filter(|cgroup| !cgroup.is_present()) {
            let name = cgroup.name().display();
            return format!("the cgroup {name} has gone: it was removed; start again with one that is there");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn style(options: &Options) -> Style {
    let out = io::stdout();
    if options.json || !(options.pretty || out.is_terminal()) {
        return Style::Json;
    }
    let is_terminal = out.is_terminal();
    Style::Pretty {
        width: is_terminal.then(terminal_width).flatten(),
        colour: is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

fn terminal_width() -> Option<usize> {
    crossterm::terminal::size()
        .ok()
        .map(|(columns, _)| usize::from(columns))
}

fn filter(options: &Options, cgroup: Option<&Cgroup>) -> Filter {
    Filter {
        pids: options.pid.clone(),
        comms: options.comm.clone(),
        outcomes: options.verdict.iter().copied().map(Into::into).collect(),
        addresses: prefixes(&options.address),
        threads: options.threads,
        cgroup: cgroup.map(|cgroup| cgroup.name().to_string_lossy().into_owned()),
    }
}

fn prefixes(written: &[lab02_xdp_firewall::value::WrittenPrefix]) -> Vec<Prefix> {
    written.iter().map(|written| written.prefix).collect()
}

fn sizes(options: &Options) -> Sizes {
    Sizes {
        max_entries: MAX_ENTRIES,
        ring_bytes: options.ring_size,
        max_flows: options.max_flows,
    }
}

fn policy(options: &Options) -> Policy {
    Policy {
        block: prefixes(&options.block_ip),
        allow: prefixes(&options.allow_ip),
        block_ports: options.block_port.clone(),
        block_source_ports: Vec::new(),
        allow_ports: options.allow_port.clone(),
        block_macs: options.block_mac.clone(),
        limit: None,
        drop_by_default: options.default == AllowOrBlock::Block,
        drop_malformed: options.malformed == AllowOrBlock::Block,
        fragments: Fragments::Pass,
    }
}

fn settings(options: &Options) -> Settings {
    Settings {
        limit: options
            .events_per_second
            // A tenth of a second's worth at once, and one at least.
            .map_or(Settings::DEFAULT.limit, |rate| Limit::new(rate, (rate / 10).max(1))),
        is_limited: u32::from(options.events_per_second.is_some()),
        one_in: options.one_in,
        observe: u32::from(options.observe),
        tell_packets: u32::from(options.packets),
    }
}

/// The cgroup that is watched, if one is.
fn cgroup(options: &Options, hierarchy: Option<&Hierarchy>) -> Result<Option<Cgroup>> {
    match hierarchy {
        None => Ok(None),
        Some(hierarchy) => {
            let name = options.cgroup.as_deref().unwrap_or(Path::new("/"));
            Ok(Some(hierarchy.open(name)?))
        }
    }
}

fn scope(interfaces: &[Interface], cgroup: Option<&Cgroup>, options: &Options) -> String {
    let mut parts = Vec::new();
    if !options.no_processes {
        parts.push("processes".to_owned());
    }
    if let Some(cgroup) = cgroup {
        parts.push(format!("the cgroup {}", cgroup.name().display()));
    }
    parts.extend(interfaces.iter().map(|interface| interface.name.clone()));
    format!(" {}", parts.join(", "))
}
