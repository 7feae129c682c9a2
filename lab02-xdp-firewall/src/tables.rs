//! The firewall's tables in the kernel, and how a new policy takes effect: whole, and between two packets.
//!
//! There are two slots of everything. The new policy is written where no program looks, then one word is changed, which
//! every program reads once a packet. Before the old slot is written to again, all programs that may still read it have
//! to be over.

use std::io;

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
};
use lab02_xdp_firewall_common::{
    firewall::Config,
    prefix_set::{
        Origin,
        exact::{BucketV4, BucketV6},
        tree::{NodeV4, NodeV6},
    },
    slots::{self, SLOTS},
};
use thiserror::Error;

use crate::{
    barrier::Barrier,
    mapped::MappedArray,
    policy::{Capacities, Policy, TooLarge},
    value::Mac,
};

/// Why a policy did not take effect. The one in force stays.
#[derive(Debug, Error)]
pub enum TablesError {
    /// It has too many entries.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The object has no map of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(&'static str),
    /// The kernel refused to read or write a map.
    #[error("a table cannot be written: {0}")]
    Map(#[from] MapError),
    /// Memory could not be mapped, or the barrier failed.
    #[error("a table cannot be mapped or swapped: {0}")]
    Io(#[from] io::Error),
}

/// The tables of one loaded program.
pub struct FirewallTables {
    nodes_v4: MappedArray<NodeV4>,
    nodes_v6: MappedArray<NodeV6>,
    buckets_v4: MappedArray<BucketV4>,
    buckets_v6: MappedArray<BucketV6>,
    ports: MappedArray<u64>,
    blocked_macs: HashMap<MapData, [u8; 6], u8>,
    configs: Array<MapData, Config>,
    active_slot: Array<MapData, u32>,
    active: u32,
    barrier: Barrier,
    max_entries: u32,
    bucket_key: [u64; 2],
}

/// The sizes of the maps that hold `max_entries` prefixes, for [`lab01_count_packets::load::load_object`].
pub fn map_sizes(max_entries: u32) -> [(&'static str, u32); 4] {
    let slot = Capacities::for_entries(max_entries);
    [
        ("NODES_V4", slot.nodes_v4 * SLOTS),
        ("NODES_V6", slot.nodes_v6 * SLOTS),
        ("BUCKETS_V4", slot.buckets_v4 * SLOTS),
        ("BUCKETS_V6", slot.buckets_v6 * SLOTS),
    ]
}

impl FirewallTables {
    /// Takes the tables out of the loaded object, which was loaded with [`map_sizes`] of the same `max_entries`.
    ///
    /// Its program has to be in the kernel already: what is mapped into memory here gives its descriptor up, and
    /// loading a program needs those of all its maps.
    pub fn take(ebpf: &mut Ebpf, max_entries: u32) -> Result<Self, TablesError> {
        Ok(Self {
            nodes_v4: mapped(ebpf, "NODES_V4")?,
            nodes_v6: mapped(ebpf, "NODES_V6")?,
            buckets_v4: mapped(ebpf, "BUCKETS_V4")?,
            buckets_v6: mapped(ebpf, "BUCKETS_V6")?,
            ports: mapped(ebpf, "PORTS")?,
            blocked_macs: take(ebpf, "BLOCKED_MACS")?,
            configs: take(ebpf, "CONFIGS")?,
            active_slot: take(ebpf, "ACTIVE_SLOT")?,
            active: 0,
            barrier: Barrier::new()?,
            max_entries,
            bucket_key: [random()?, random()?],
        })
    }

    /// Puts `policy` into force, whole and between two packets. Blocked MAC addresses are only ever added.
    ///
    /// When it returns, no program reads the policy before it any more.
    pub fn apply(&mut self, policy: &Policy) -> Result<(), TablesError> {
        let compiled = policy.compile(self.max_entries, self.bucket_key, random()?)?;
        for Mac(mac) in &policy.block_macs {
            self.blocked_macs.insert(mac, 1, 0)?;
        }
        // ANCHOR: apply
        let slot = slots::other(self.active);
        let capacity = Capacities::for_entries(self.max_entries);
        let origin = Origin {
            node_v4: slot * capacity.nodes_v4,
            node_v6: slot * capacity.nodes_v6,
            bucket_v4: slot * capacity.buckets_v4,
            bucket_v6: slot * capacity.buckets_v6,
        };
        let first_port = slot * (1 << 16);
        self.nodes_v4.write(origin.node_v4 as usize, &compiled.content.nodes_v4);
        self.nodes_v6.write(origin.node_v6 as usize, &compiled.content.nodes_v6);
        self.buckets_v4
            .write(origin.bucket_v4 as usize, &compiled.content.buckets_v4);
        self.buckets_v6
            .write(origin.bucket_v6 as usize, &compiled.content.buckets_v6);
        self.ports.write(first_port as usize, &compiled.ports);
        let config = Config {
            block: compiled.config.block.moved_to(origin),
            allow: compiled.config.allow.moved_to(origin),
            first_port,
            ..compiled.config
        };
        self.configs.set(slot, config, 0)?;
        self.active_slot.set(0, slot, 0)?;
        self.active = slot;
        self.barrier.wait()?;
        // ANCHOR_END: apply
        Ok(())
    }
}

fn mapped<T: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<MappedArray<T>, TablesError> {
    Ok(MappedArray::new(&take(ebpf, name)?)?)
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, TablesError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(TablesError::Missing(name))?;
    Ok(map.try_into()?)
}

/// A number from the kernel's generator.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is as long as is said. Reads of up to 256 bytes are never cut short (getrandom(2)).
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if read < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(u64::from_ne_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the maps that grow with the number of prefixes.
    fn memory(max_entries: u32) -> usize {
        let sizes = [
            size_of::<NodeV4>(),
            size_of::<NodeV6>(),
            size_of::<BucketV4>(),
            size_of::<BucketV6>(),
        ];
        let entries = map_sizes(max_entries).map(|(_, entries)| entries as usize);
        sizes.iter().zip(entries).map(|(size, entries)| size * entries).sum()
    }

    #[test]
    fn a_prefix_takes_the_memory_that_the_help_tells() {
        for max_entries in [1 << 14, 1 << 17, 1 << 22] {
            let each = memory(max_entries) / max_entries as usize;
            assert!((415..=426).contains(&each), "{each} bytes at {max_entries}");
        }
        for max_entries in [(1 << 14) + 1, 100_000, (1 << 17) + 1, (1 << 21) + 1] {
            let each = memory(max_entries) / max_entries as usize;
            assert!(each <= 745, "{each} bytes at {max_entries}");
        }
    }
}
