//! Visibility frames: which processes there are and what they have to do with the network, at one moment.

use std::{fs, net::SocketAddr};

use lab05_ringbuf_events_common::flow::Opened;
use serde::Serialize;

use crate::{
    cgroups::CgroupNames,
    clock::Calendar,
    event::{end_in_words, protocol_name},
    filter::Filter,
    flows::Flow,
    processes::{Process, Processes, state_of},
};

// ANCHOR: frame
/// A frame.
#[derive(Debug, Serialize)]
pub struct Frame {
    /// `frame`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The host: a name made of its machine id, which stays the same.
    pub host_id: String,
    /// When.
    pub ts: String,
    /// The processes, by number.
    pub procs: Vec<FrameProcess>,
    /// The flows, by process.
    pub flows: Vec<FrameFlow>,
}

/// A process in a frame.
#[derive(Debug, Serialize)]
pub struct FrameProcess {
    /// Its number.
    pub pid: u32,
    /// Its parent's number.
    pub ppid: u32,
    /// The program's path.
    pub exe: String,
    /// Its user.
    pub uid: u32,
    /// Its arguments, without the program's own name.
    pub args: Vec<String>,
    /// Whether there are more arguments than these.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub args_cut: bool,
    /// Its name as the kernel keeps it.
    pub comm: String,
    /// When it was made.
    pub start: String,
    /// `R`, `S`, `D`, `T`, `Z` as in `ps`, or `ended`.
    pub state: String,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// How many threads it has.
    pub threads: u32,
    /// Its cgroup's path, where that was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// A flow in a frame.
#[derive(Debug, Serialize)]
pub struct FrameFlow {
    /// The process that has, or had, the socket.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: String,
    /// The socket's user.
    pub uid: Option<u32>,
    /// This side.
    pub laddr: SocketAddr,
    /// The other side.
    pub raddr: SocketAddr,
    /// The protocol, by name where it has a known one.
    pub proto: String,
    /// `egress` if this side began, `ingress` if the other did, `unknown` if that is not known.
    pub dir: &'static str,
    /// Packets, both ways.
    pub pkts: u64,
    /// Bytes of the IP layer, both ways.
    pub bytes: u64,
    /// Packets received.
    pub pkts_in: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Packets sent.
    pub pkts_out: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// The socket's state.
    pub state: &'static str,
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The cgroup's path, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}
// ANCHOR_END: frame

/// Where a frame's content comes from.
pub struct Sources<'a> {
    /// The host's name.
    pub host_id: &'a str,
    /// For times.
    pub calendar: &'a Calendar,
    /// For names of cgroups.
    pub cgroups: &'a mut CgroupNames,
    /// What is left out.
    pub filter: &'a Filter,
}

impl Frame {
    /// Puts a frame together; processes that have ended since the last one are shown a last time.
    pub fn new(sources: Sources<'_>, now_ns: u64, processes: &mut Processes, flows: Vec<Flow>) -> Self {
        let Sources {
            host_id,
            calendar,
            cgroups,
            filter,
        } = sources;
        let shown: Vec<&Flow> = flows.iter().filter(|flow| filter.shows_flow(flow, processes)).collect();
        let mut flows: Vec<FrameFlow> = shown.into_iter().map(|flow| FrameFlow::new(flow, cgroups)).collect();
        flows.sort_by_key(|flow| (flow.pid, flow.cookie));
        let ended = processes.take_ended();
        let mut procs = Vec::new();
        for process in processes.all().chain(&ended) {
            if filter.shows_process(process, processes, cgroups) {
                procs.push(FrameProcess::new(process, calendar, cgroups));
            }
        }
        procs.sort_by_key(|process| process.pid);
        Self {
            kind: "frame",
            host_id: host_id.to_owned(),
            ts: calendar.at(now_ns),
            procs,
            flows,
        }
    }
}

impl FrameProcess {
    fn new(process: &Process, calendar: &Calendar, cgroups: &mut CgroupNames) -> Self {
        let state = match process.ended {
            Some(_) => "ended".to_owned(),
            None => state_of(process.pid).map_or_else(|| "ended".to_owned(), |letter| letter.to_string()),
        };
        Self {
            pid: process.pid,
            ppid: process.parent,
            exe: process.exe.clone(),
            uid: process.uid,
            args: process.args.clone(),
            args_cut: process.args_cut,
            comm: process.comm.clone(),
            start: calendar.at(process.start_ns),
            state,
            end: process.ended.map(|(exit_code, _)| end_in_words(exit_code)),
            threads: process.threads,
            cgroup: cgroups.name(process.cgroup),
        }
    }
}

impl FrameFlow {
    fn new(flow: &Flow, cgroups: &mut CgroupNames) -> Self {
        let counters = &flow.counters;
        Self {
            pid: flow.pid,
            comm: flow.comm.clone(),
            uid: flow.uid,
            laddr: flow.local(),
            raddr: flow.remote(),
            proto: protocol_name(flow.key.tuple.protocol),
            dir: match flow.opened {
                Opened::Here => "egress",
                Opened::ByPeer => "ingress",
                Opened::Unknown => "unknown",
            },
            pkts: counters.packets_in + counters.packets_out,
            bytes: counters.bytes_in + counters.bytes_out,
            pkts_in: counters.packets_in,
            bytes_in: counters.bytes_in,
            pkts_out: counters.packets_out,
            bytes_out: counters.bytes_out,
            state: flow.state,
            cookie: flow.key.cookie,
            cgroup: cgroups.name(flow.cgroup),
        }
    }
}

/// The host's name: the beginning of its machine id (machine-id(5)), else of its boot's id.
pub fn host_id() -> String {
    let files = ["/etc/machine-id", "/proc/sys/kernel/random/boot_id"];
    let id = files.into_iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(12).collect();
        (digits.len() == 12).then_some(digits)
    });
    format!("h-{}", id.unwrap_or_else(|| "unknown".into()))
}
