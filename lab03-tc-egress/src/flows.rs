//! Reads the flow table, of a program loaded here or of one that runs elsewhere, and shows it.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError},
    programs::{ProgramError, loaded_programs},
};
use lab01_count_packets::{counts::CountsError, interface::Interface, text::binary_bytes};
use lab02_xdp_firewall::{mapped::MappedArray, statistics::take};
use lab03_tc_egress_common::{
    decide::Config,
    flow::{
        key::Endpoint,
        state::State,
        table::{Bucket, Flow},
    },
};
use serde::Serialize;
use thiserror::Error;

use crate::{
    PROGRAMS,
    attach::{TcAttachError, programs_on},
    tables::now_ns,
};

/// Why the table cannot be read. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum FlowsError {
    /// No program of this lab is on the interface.
    #[error(
        "no program of this lab is attached to {interface}; start it, `lab03-tc-egress --iface {interface}`, and ask again \
         while it runs"
    )]
    NotRunning {
        /// The interface.
        interface: String,
    },
    /// A program is there, and cannot be looked at.
    #[error(
        "the program on {interface} cannot be looked at: {cause}; CAP_SYS_ADMIN is needed to open what another process has made"
    )]
    Forbidden {
        /// The interface.
        interface: String,
        /// The kernel's words.
        cause: String,
    },
    /// The interface cannot be asked.
    #[error(transparent)]
    Attach(#[from] TcAttachError),
    /// The object has no such map.
    #[error(transparent)]
    Missing(#[from] CountsError),
    /// The program has maps of another version of this lab.
    #[error("the program on {interface} has no flow table that this version understands; run the same version of both")]
    Version {
        /// The interface.
        interface: String,
    },
    /// Memory could not be mapped.
    #[error("the flow table cannot be mapped: {0}")]
    Io(#[from] io::Error),
}

/// The flow table.
pub struct FlowTables {
    established: MappedArray<Bucket>,
    half_open: MappedArray<Bucket>,
    config: Option<Config>,
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Proven ones.
    pub established: u64,
    /// Others.
    pub half_open: u64,
}

impl FlowTables {
    /// Takes the tables out of the loaded object, whose programs are in the kernel already.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, FlowsError> {
        Ok(Self {
            established: MappedArray::new(&take(ebpf, "FLOWS")?)?,
            half_open: MappedArray::new(&take(ebpf, "HALF_OPEN")?)?,
            config: None,
        })
    }

    // ANCHOR: find
    /// Finds the tables of the program that runs on `interface`, whichever process has loaded it.
    pub fn of_running(interface: &Interface) -> Result<Self, FlowsError> {
        let ours = programs_on(interface)?.into_iter().find_map(|on_hook| {
            let name = on_hook.name?;
            PROGRAMS
                .iter()
                .any(|(ours, _)| *ours == name)
                .then_some(on_hook.program_id?)
        });
        let Some(program_id) = ours else {
            return Err(FlowsError::NotRunning {
                interface: interface.name.clone(),
            });
        };
        let forbidden = |cause: String| FlowsError::Forbidden {
            interface: interface.name.clone(),
            cause,
        };
        let map_ids = map_ids(program_id).map_err(|error| forbidden(error.to_string()))?;
        let (mut established, mut half_open, mut config) = (None, None, None);
        for id in map_ids {
            let map = MapData::from_id(id).map_err(|error| forbidden(error.to_string()))?;
            let name = map.info().map_err(|error| forbidden(error.to_string()))?;
            match name.name_as_str() {
                Some("FLOWS") => established = mapped(map)?,
                Some("HALF_OPEN") => half_open = mapped(map)?,
                Some("CONFIG") => config = array::<Config>(map).and_then(|array| array.get(&0, 0).ok()),
                _ => {}
            }
        }
        match (established, half_open, config) {
            (Some(established), Some(half_open), Some(config)) => Ok(Self {
                established,
                half_open,
                config: Some(config),
            }),
            _ => Err(FlowsError::Version {
                interface: interface.name.clone(),
            }),
        }
    }
    // ANCHOR_END: find

    /// How many flows there are whose time is not over. Reads all of the table, so it takes about 50 milliseconds a million.
    pub fn fill(&self) -> Fill {
        let now_ns = now_ns();
        let count = |table| live(table, now_ns).count() as u64;
        Fill {
            established: count(&self.established),
            half_open: count(&self.half_open),
        }
    }

    /// The flows whose time is not over, those with the most bytes first.
    pub fn flows(&self) -> Vec<FlowLine> {
        let now_ns = now_ns();
        let all = live(&self.established, now_ns).chain(live(&self.half_open, now_ns));
        let mut lines: Vec<FlowLine> = all
            .filter_map(|flow| FlowLine::new(&flow, now_ns, self.config.as_ref()))
            .collect();
        lines.sort_by_cached_key(|line| {
            (
                std::cmp::Reverse(line.bytes_out + line.bytes_back),
                line.originator,
                line.responder,
            )
        });
        lines
    }
}

fn map_ids(program_id: u32) -> Result<Vec<u32>, ProgramError> {
    for program in loaded_programs() {
        let program = program?;
        if program.id() == program_id {
            return Ok(program.map_ids()?.unwrap_or_default());
        }
    }
    Ok(Vec::new())
}

fn mapped(map: MapData) -> Result<Option<MappedArray<Bucket>>, FlowsError> {
    Ok(array(map).map(|array| MappedArray::new(&array)).transpose()?)
}

fn array<T: aya::Pod>(map: MapData) -> Option<Array<MapData, T>> {
    let array: Result<_, MapError> = Map::Array(map).try_into();
    array.ok()
}

fn live(table: &MappedArray<Bucket>, now_ns: u64) -> impl Iterator<Item = Flow> {
    (0..table.len()).flat_map(move |index| {
        let Bucket { tags, flows } = table.read(index);
        let places = tags.into_iter().zip(flows);
        places
            .filter(move |(tag, flow)| *tag != 0 && flow.expires_ns > now_ns)
            .map(|(_, flow)| flow)
    })
}

/// One flow. Field for field the JSON line.
#[derive(Clone, Debug, Serialize)]
pub struct FlowLine {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
    pub protocol: String,
    /// The end that began.
    pub originator: IpAddr,
    /// Its port, or the identifier of its echo requests.
    pub originator_port: u16,
    /// The other end.
    pub responder: IpAddr,
    /// Its port.
    pub responder_port: u16,
    /// The ids of the VLAN tags, the outer one first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<u32>,
    /// The name of its state.
    pub state: &'static str,
    /// Packets from the originator.
    pub packets_out: u64,
    /// Packets from the responder.
    pub packets_back: u64,
    /// Bytes from the originator, with Ethernet headers.
    pub bytes_out: u64,
    /// Bytes from the responder.
    pub bytes_back: u64,
    /// For how long it has been silent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// In how long it is forgotten.
    pub expires_in_ms: u64,
}

impl FlowLine {
    fn new(flow: &Flow, now_ns: u64, config: Option<&Config>) -> Option<Self> {
        let (originator, responder) = flow.ends();
        let left_ns = flow.expires_ns.saturating_sub(now_ns);
        let idle_ns =
            config.map(|config| config.idle_ns[usize::from(flow.state) % State::COUNT].saturating_sub(left_ns));
        let zone = flow.key.zone;
        Some(Self {
            protocol: match flow.key.protocol() {
                1 => "icmp".into(),
                6 => "tcp".into(),
                17 => "udp".into(),
                58 => "icmpv6".into(),
                number => number.to_string(),
            },
            originator: address(originator, flow.key.ip_version()),
            originator_port: originator.port,
            responder: address(responder, flow.key.ip_version()),
            responder_port: responder.port,
            vlans: [zone & 0xfff, zone >> 12 & 0xfff]
                .into_iter()
                .filter(|id| *id != 0)
                .collect(),
            state: flow.state()?.name(),
            packets_out: flow.packets[0],
            packets_back: flow.packets[1],
            bytes_out: flow.bytes[0],
            bytes_back: flow.bytes[1],
            idle_ms: idle_ns.map(|ns| ns / 1_000_000),
            expires_in_ms: left_ns / 1_000_000,
        })
    }
}

fn address(end: Endpoint, ip_version: u8) -> IpAddr {
    if ip_version == 4 {
        Ipv4Addr::from(end.address.ipv4()).into()
    } else {
        Ipv6Addr::from(end.address.ipv6()).into()
    }
}

impl fmt::Display for FlowLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: u16| match (address, port) {
            (address, 0) => address.to_string(),
            (IpAddr::V4(address), port) => format!("{address}:{port}"),
            (IpAddr::V6(address), port) => format!("[{address}]:{port}"),
        };
        let idle = self.idle_ms.map_or_else(String::new, |ms| format!("{} s", ms / 1000));
        write!(
            f,
            "{:<6}  {:<23}  {:<23}  {:<17}  {:>19}  {:>6}",
            self.protocol,
            end(self.originator, self.originator_port),
            end(self.responder, self.responder_port),
            self.state,
            format!("{} / {}", binary_bytes(self.bytes_out), binary_bytes(self.bytes_back)),
            idle,
        )?;
        for vlan in &self.vlans {
            write!(f, "  vlan {vlan}")?;
        }
        Ok(())
    }
}

/// The heads of the columns of [`FlowLine`]'s text.
pub fn heads() -> String {
    format!(
        "{:<6}  {:<23}  {:<23}  {:<17}  {:>19}  {:>6}",
        "proto", "originator", "responder", "state", "bytes out / back", "idle"
    )
}
