//! Flows: which process talks to whom over which socket, and how much.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, Map, MapData, MapError},
};
use lab01_count_packets_common::headers::Address;
use lab05_ringbuf_events_common::{
    flow::{FlowCounters, FlowKey, Opened, Owner},
    tuple::FiveTuple,
};
use thiserror::Error;

use crate::{
    processes::{Processes, text},
    sockets::{self, Socket},
};

/// Flows cannot be read.
#[derive(Debug, Error)]
pub enum FlowsError {
    /// The object has no map of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(&'static str),
    /// The kernel refused to read it.
    #[error("the flows cannot be read: {0}")]
    Map(#[from] MapError),
    /// The kernel did not tell its sockets.
    #[error("the sockets cannot be asked for (sock_diag): {0}; the kernel needs CONFIG_INET_DIAG")]
    Sockets(#[from] io::Error),
}

/// The maps of flows, opened for reading.
pub struct Flows {
    flows: BpfHashMap<MapData, FlowKey, FlowCounters>,
    owners: BpfHashMap<MapData, u64, Owner>,
}

/// A flow, and all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The socket, and both sides; the source is the socket's own.
    pub key: FlowKey,
    /// What was counted.
    pub counters: FlowCounters,
    /// The process that has the socket, if any is known.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: String,
    /// The socket's user.
    pub uid: Option<u32>,
    /// The cgroup of the process; 0 if that is not known.
    pub cgroup: u64,
    /// Which side began.
    pub opened: Opened,
    /// The socket's state, as `ss` calls it; `closed` where this network namespace does not have it any more (or never
    /// had: a process in another one has its sockets there).
    pub state: &'static str,
}

impl Flow {
    /// This side.
    pub fn local(&self) -> SocketAddr {
        let tuple = &self.key.tuple;
        SocketAddr::new(address(tuple, &tuple.source), tuple.source_port)
    }

    /// The other side.
    pub fn remote(&self) -> SocketAddr {
        let tuple = &self.key.tuple;
        SocketAddr::new(address(tuple, &tuple.destination), tuple.destination_port)
    }
}

/// An address of a tuple; `0.0.0.0` where there is no IP.
pub fn address(tuple: &FiveTuple, address: &Address) -> IpAddr {
    if tuple.ip_version == 6 {
        Ipv6Addr::from(address.ipv6()).into()
    } else {
        Ipv4Addr::from(address.ipv4()).into()
    }
}

impl Flows {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, FlowsError> {
        Ok(Self {
            flows: take(ebpf, "FLOWS")?,
            owners: take(ebpf, "OWNERS")?,
        })
    }

    // ANCHOR: snapshot
    /// All flows at this moment, each with its process and state.
    pub fn snapshot(&self, processes: &Processes) -> Result<Vec<Flow>, FlowsError> {
        let sockets = sockets::all()?;
        let holders = sockets::holders();
        let mut all = Vec::new();
        for entry in &self.flows {
            let (key, counters) = entry?;
            // A flow's entry may be replaced between two steps of the iteration; what is then read is another one's.
            let owner = self.owners.get(&key.cookie, 0).ok();
            let socket = sockets.get(&key.cookie);
            all.push(Self::flow(key, counters, owner, socket, &sockets, &holders, processes));
        }
        Ok(all)
    }
    // ANCHOR_END: snapshot

    // ANCHOR: owner
    fn flow(
        key: FlowKey,
        counters: FlowCounters,
        owner: Option<Owner>,
        socket: Option<&Socket>,
        sockets: &HashMap<u64, Socket>,
        holders: &HashMap<u64, u32>,
        processes: &Processes,
    ) -> Flow {
        // Who has the descriptor now; else who made or connected the socket, which is all that is known of one that is
        // closed.
        let holder = socket.and_then(|socket| holders.get(&u64::from(socket.inode)).copied());
        let pid = holder.or_else(|| owner.map(|owner| owner.pid));
        let process = pid.and_then(|pid| processes.get(pid));
        let comm = match (process, owner) {
            (Some(process), _) if holder.is_some() => process.comm.clone(),
            (_, Some(owner)) => text(&owner.comm),
            (Some(process), None) => process.comm.clone(),
            (None, None) => String::new(),
        };
        Flow {
            key,
            counters,
            pid,
            comm,
            uid: socket.map(|socket| socket.uid).or_else(|| owner.map(|owner| owner.uid)),
            cgroup: owner.map_or(0, |owner| owner.cgroup),
            opened: match Opened::from_number(counters.opened) {
                // It had begun before it was watched: a port that is listened on is the server's.
                Opened::Unknown if is_listened_on(&key, sockets) => Opened::ByPeer,
                Opened::Unknown if socket.is_some() => Opened::Here,
                opened => opened,
            },
            state: socket.map_or("closed", |socket| socket.state),
        }
    }
    // ANCHOR_END: owner
}

fn is_listened_on(key: &FlowKey, sockets: &HashMap<u64, Socket>) -> bool {
    sockets.values().any(|socket| {
        socket.state == "listen"
            && socket.protocol == key.tuple.protocol
            && socket.local.port() == key.tuple.source_port
    })
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, FlowsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(FlowsError::Missing(name))?;
    Ok(map.try_into()?)
}
