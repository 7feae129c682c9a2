//! What of the events is shown.

use lab02_xdp_firewall_common::prefix_set::build::Prefix;
use lab05_ringbuf_events_common::{decision::Outcome, process::Deed};

use crate::{
    cgroups::CgroupNames,
    event::{self, Event},
    flows::Flow,
    processes::{Process, Processes},
};

/// What is shown; without any condition, everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of these processes, and of those that come from them.
    pub pids: Vec<u32>,
    /// Of processes with these names.
    pub comms: Vec<String>,
    /// With these outcomes.
    pub outcomes: Vec<Outcome>,
    /// From or to an address in one of these.
    pub addresses: Vec<Prefix>,
    /// Threads, too, and not only processes.
    pub threads: bool,
    /// Processes of this cgroup and of those below it, by the path below the root with a slash in front.
    pub cgroup: Option<String>,
}

impl Filter {
    /// Whether an event is shown. A condition on outcomes or addresses leaves out what has none, which is processes.
    pub fn shows(&self, event: &Event, processes: &Processes, cgroups: &mut CgroupNames) -> bool {
        if !self.is_of_process(event.pid(), &event.comm(), processes) {
            return false;
        }
        match event {
            Event::Decision(decision) => {
                let sides = event::sides(decision).map(|(source, destination)| [source.ip(), destination.ip()]);
                let is_in = |prefix: &Prefix| sides.iter().flatten().any(|address| prefix.contains(*address));
                (self.outcomes.is_empty() || self.outcomes.contains(&event::outcome(decision)))
                    && (self.addresses.is_empty() || self.addresses.iter().any(is_in))
            }
            Event::Process { event, .. } => {
                // A thread is shown on demand, and so is the end of one.
                let is_thread = match event::deed(event) {
                    Deed::Exec => false,
                    Deed::Fork => event.tid != event.pid,
                    Deed::Exit => event.is_last == 0,
                };
                self.outcomes.is_empty()
                    && self.addresses.is_empty()
                    && (self.threads || !is_thread)
                    && self.is_of_cgroup(event.cgroup, cgroups)
            }
        }
    }

    /// Whether a process is shown in a frame.
    pub fn shows_process(&self, process: &Process, processes: &Processes, cgroups: &mut CgroupNames) -> bool {
        self.is_of_process(Some(process.pid), &process.comm, processes) && self.is_of_cgroup(process.cgroup, cgroups)
    }

    /// Whether a flow is shown in a frame.
    pub fn shows_flow(&self, flow: &Flow, processes: &Processes) -> bool {
        let sides = [flow.local().ip(), flow.remote().ip()];
        let is_in = |prefix: &Prefix| sides.iter().any(|address| prefix.contains(*address));
        self.is_of_process(flow.pid, &flow.comm, processes)
            && (self.addresses.is_empty() || self.addresses.iter().any(is_in))
    }

    fn is_of_cgroup(&self, id: u64, cgroups: &mut CgroupNames) -> bool {
        let Some(wanted) = &self.cgroup else {
            return true;
        };
        let name = cgroups.name(id);
        let below = name.as_deref().and_then(|name| name.strip_prefix(wanted.as_str()));
        wanted == "/" || below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    }

    fn is_of_process(&self, pid: Option<u32>, comm: &str, processes: &Processes) -> bool {
        let is_named = self.comms.is_empty() || self.comms.iter().any(|name| name == comm);
        let comes_from =
            |ancestor: &u32| pid.is_some_and(|pid| pid == *ancestor || processes.descends_from(pid, *ancestor));
        is_named && (self.pids.is_empty() || self.pids.iter().any(comes_from))
    }
}
