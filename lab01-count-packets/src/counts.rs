//! Reads lab01's maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues},
};
use lab01_count_packets_common::{
    counter::{Counter, Protocol},
    headers::Malformed,
};
use thiserror::Error;

/// The maps of lab01's object, opened for reading.
pub struct Counts {
    by_ipv4_source: PerCpuHashMap<MapData, [u8; 4], Counter>,
    by_ipv6_source: PerCpuHashMap<MapData, [u8; 16], Counter>,
    by_protocol: PerCpuArray<MapData, Counter>,
    malformed: PerCpuArray<MapData, Counter>,
    of_untracked_sources: PerCpuArray<MapData, Counter>,
}

/// A map could not be read.
#[derive(Debug, Error)]
pub enum CountsError {
    /// The object has no map of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(&'static str),
    /// The kernel refused to read it, or it is of another type.
    #[error("the map cannot be read: {0}")]
    Map(#[from] MapError),
}

/// All counters at one moment, summed over the CPUs.
///
/// Read while packets arrive, so sums over different maps can differ by the packets of that moment; once traffic has
/// stopped, the packets by protocol and the malformed ones are all packets, and those of IP protocols are those of
/// sources and of untracked sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By source address; only sources that sent something.
    pub sources: Vec<(IpAddr, Counter)>,
    /// By protocol; only protocols that occurred.
    pub protocols: Vec<(Protocol, Counter)>,
    /// By reason; only reasons that occurred.
    pub malformed: Vec<(Malformed, Counter)>,
    /// Of sources that found no room in the tables.
    pub untracked: Counter,
}

impl Snapshot {
    /// All packets that the program saw.
    pub fn total(&self) -> Counter {
        let protocols = self.protocols.iter().map(|(_, counter)| *counter);
        let malformed = self.malformed.iter().map(|(_, counter)| *counter);
        protocols.chain(malformed).sum()
    }
}

impl Counts {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, CountsError> {
        Ok(Self {
            by_ipv4_source: take(ebpf, "PACKETS_BY_IPV4_SOURCE")?,
            by_ipv6_source: take(ebpf, "PACKETS_BY_IPV6_SOURCE")?,
            by_protocol: take(ebpf, "PACKETS_BY_PROTOCOL")?,
            malformed: take(ebpf, "PACKETS_MALFORMED")?,
            of_untracked_sources: take(ebpf, "PACKETS_OF_UNTRACKED_SOURCES")?,
        })
    }

    /// Reads all of them. Costs two system calls a source.
    pub fn snapshot(&self) -> Result<Snapshot, CountsError> {
        let ipv4 = by_key(&self.by_ipv4_source)?;
        let ipv6 = by_key(&self.by_ipv6_source)?;
        let ipv4 = ipv4
            .into_iter()
            .map(|(address, counter)| (IpAddr::V4(Ipv4Addr::from(address)), counter));
        let ipv6 = ipv6
            .into_iter()
            .map(|(address, counter)| (IpAddr::V6(Ipv6Addr::from(address)), counter));
        let protocols = by_index(&self.by_protocol)?;
        let malformed = by_index(&self.malformed)?;
        Ok(Snapshot {
            sources: ipv4.chain(ipv6).collect(),
            protocols: protocols
                .into_iter()
                .filter_map(|(index, counter)| Some((Protocol::from_index(index)?, counter)))
                .collect(),
            malformed: malformed
                .into_iter()
                .filter_map(|(index, counter)| Some((*Malformed::ALL.get(index as usize)?, counter)))
                .collect(),
            untracked: sum(&self.of_untracked_sources.get(&0, 0)?),
        })
    }
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, CountsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(CountsError::Missing(name))?;
    Ok(map.try_into()?)
}

/// The counters of a hash map; those of keys that no CPU has counted yet are left out.
fn by_key<K: Pod>(map: &PerCpuHashMap<MapData, K, Counter>) -> Result<Vec<(K, Counter)>, MapError> {
    map.iter()
        .map(|entry| entry.map(|(key, values)| (key, sum(&values))))
        .filter(|entry| !matches!(entry, Ok((_, Counter::ZERO))))
        .collect()
}

/// The counters of an array that are not zero, by index.
fn by_index(array: &PerCpuArray<MapData, Counter>) -> Result<Vec<(u32, Counter)>, MapError> {
    (0..array.len())
        .map(|index| Ok((index, sum(&array.get(&index, 0)?))))
        .filter(|entry| !matches!(entry, Ok((_, Counter::ZERO))))
        .collect()
}

fn sum(values: &PerCpuValues<Counter>) -> Counter {
    values.iter().copied().sum()
}
