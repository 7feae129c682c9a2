//! The policy's tables in the kernel, and how a new policy takes effect: whole, and between two packets.
//!
//! As in lab02, there are two slots of everything, one word says which is in force, and a slot is not written to before all
//! programs that may still read it are over. Here the slot is part of the entries' keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use lab01_count_packets_common::counter::Counter;
use lab02_xdp_firewall::barrier::Barrier;
use lab02_xdp_firewall_common::slots::{self, SLOTS};
use lab04_cgroup_policy_common::{
    classifier::{Config, Entry, RESERVED_RULES, Tuples},
    counting::{COUNTERS_OF_A_RULE, Outcome, reserved_name, rule_counter},
    key::{KeyV4, KeyV6},
};
use thiserror::Error;

use crate::compile::Compiled;

/// Why a policy did not take effect. The one in force stays.
#[derive(Debug, Error)]
pub enum TablesError {
    /// How many CPUs there are is not known, and so not how long a counter is.
    #[error("the number of CPUs (/sys/devices/system/cpu/possible) cannot be read: {0}")]
    Cpus(io::Error),
    /// The object has no map of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(&'static str),
    /// The kernel refused to read or write a map.
    #[error("a table cannot be written: {0}")]
    Map(#[from] MapError),
    /// The barrier failed.
    #[error("a table cannot be swapped: {0}")]
    Io(#[from] io::Error),
}

/// The sizes of the maps that hold `max_entries` entries of each version of IP in either slot, for
/// [`lab01_count_packets::load::load_object`].
pub fn map_sizes(max_entries: u32) -> [(&'static str, u32); 3] {
    [
        ("RULES_V4", max_entries * SLOTS),
        ("RULES_V6", max_entries * SLOTS),
        ("BY_RULE", (RESERVED_RULES + max_entries * SLOTS) * COUNTERS_OF_A_RULE),
    ]
}

/// The entries of a policy, by version of IP.
pub struct Entries {
    /// Those of IPv4.
    pub v4: BTreeMap<KeyV4, Entry>,
    /// Those of IPv6.
    pub v6: BTreeMap<KeyV6, Entry>,
}

/// The tables of one loaded object.
pub struct PolicyTables {
    rules_v4: HashMap<MapData, KeyV4, Entry>,
    rules_v6: HashMap<MapData, KeyV6, Entry>,
    configs: Array<MapData, Config>,
    active_slot: Array<MapData, u32>,
    mode: Array<MapData, u32>,
    by_rule: PerCpuArray<MapData, Counter>,
    barrier: Barrier,
    active: u32,
    /// What stands in the active slot.
    keys_v4: Vec<KeyV4>,
    keys_v6: Vec<KeyV6>,
    /// The counter numbers of the rules in force.
    numbers: BTreeMap<String, u32>,
}

impl PolicyTables {
    /// Takes the tables out of the loaded object, which was loaded with [`map_sizes`].
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, TablesError> {
        Ok(Self {
            rules_v4: take(ebpf, "RULES_V4")?,
            rules_v6: take(ebpf, "RULES_V6")?,
            configs: take(ebpf, "CONFIGS")?,
            active_slot: take(ebpf, "ACTIVE_SLOT")?,
            mode: take(ebpf, "MODE")?,
            by_rule: take(ebpf, "BY_RULE")?,
            barrier: Barrier::new()?,
            active: 0,
            keys_v4: Vec::new(),
            keys_v6: Vec::new(),
            numbers: BTreeMap::new(),
        })
    }

    /// Puts a policy into force, whole and between two packets; it fits, as it was compiled for no more entries than the
    /// maps were made for. Rules that were in the policy before, by name, keep their counters.
    ///
    /// When it returns, no program reads the policy before it any more.
    pub fn apply(&mut self, compiled: &Compiled) -> Result<(), TablesError> {
        // ANCHOR: apply
        let slot = slots::other(self.active);
        let numbers = self.number(&compiled.rules)?;
        let of = |entry: &Entry| Entry {
            rule: compiled
                .rules
                .get((entry.rule - RESERVED_RULES) as usize)
                .and_then(|name| numbers.get(name))
                .copied()
                .unwrap_or_default(),
            ..*entry
        };
        let v4 = compiled.v4.iter().map(|(key, entry)| {
            let key = KeyV4 {
                slot: slot as u8,
                ..*key
            };
            (key, of(entry))
        });
        let v6 = compiled.v6.iter().map(|(key, entry)| {
            let key = KeyV6 {
                slot: slot as u8,
                ..*key
            };
            (key, of(entry))
        });
        let keys_v4 = fill(&mut self.rules_v4, v4)?;
        let keys_v6 = match fill(&mut self.rules_v6, v6) {
            Ok(keys) => keys,
            Err(error) => {
                remove(&mut self.rules_v4, &keys_v4);
                return Err(error.into());
            }
        };
        self.configs.set(slot, in_slot(&compiled.config, slot as u8), 0)?;
        self.active_slot.set(0, slot, 0)?;
        self.active = slot;
        self.barrier.wait()?;
        remove(&mut self.rules_v4, &std::mem::replace(&mut self.keys_v4, keys_v4));
        remove(&mut self.rules_v6, &std::mem::replace(&mut self.keys_v6, keys_v6));
        self.numbers = numbers;
        // ANCHOR_END: apply
        Ok(())
    }

    /// Blocks or observes, from the next packet on.
    pub fn set_blocking(&mut self, blocking: bool) -> Result<(), TablesError> {
        Ok(self.mode.set(0, u32::from(blocking), 0)?)
    }

    /// Whether it blocks.
    pub fn is_blocking(&self) -> Result<bool, TablesError> {
        Ok(self.mode.get(&0, 0)? != 0)
    }

    /// The counter numbers of the rules in force, those in no file included, by name.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, u32)> {
        let own = self.numbers.iter().map(|(name, number)| (name.as_str(), *number));
        let reserved = (0..RESERVED_RULES).filter_map(|number| Some((reserved_name(number)?, number)));
        reserved.chain(own)
    }

    /// What a rule's counters say, summed over the CPUs: what met it, and what it would have dropped.
    pub fn counted(&self, number: u32) -> Result<[Counter; 2], MapError> {
        let sum = |outcome| -> Result<Counter, MapError> {
            Ok(self
                .by_rule
                .get(&rule_counter(number, outcome), 0)?
                .iter()
                .copied()
                .sum())
        };
        Ok([sum(Outcome::Passed)?, sum(Outcome::WouldDrop)?])
    }

    /// The entries in force, read back from the kernel.
    pub fn entries(&self) -> Result<Entries, TablesError> {
        Ok(Entries {
            v4: self.rules_v4.iter().collect::<Result<_, _>>()?,
            v6: self.rules_v6.iter().collect::<Result<_, _>>()?,
        })
    }

    /// Gives each rule a counter number: its own if it had one, else a free one, whose counters are set to 0. A number that
    /// the policy in force uses is not free.
    fn number(&mut self, rules: &[String]) -> Result<BTreeMap<String, u32>, TablesError> {
        let taken: BTreeSet<u32> = self.numbers.values().copied().collect();
        let mut free = (RESERVED_RULES..).filter(|number| !taken.contains(number));
        let cpus = nr_cpus().map_err(|(_, error)| TablesError::Cpus(error))?;
        let mut numbers = BTreeMap::new();
        for name in rules {
            let number = if let Some(number) = self.numbers.get(name) {
                *number
            } else {
                let Some(number) = free.next() else { break };
                for counter in 0..COUNTERS_OF_A_RULE {
                    let values = PerCpuValues::try_from(vec![Counter::ZERO; cpus])?;
                    self.by_rule.set(number * COUNTERS_OF_A_RULE + counter, values, 0)?;
                }
                number
            };
            numbers.insert(name.clone(), number);
        }
        Ok(numbers)
    }
}

/// Writes entries; what was written is removed again if one of them cannot be.
fn fill<K: Pod>(
    map: &mut HashMap<MapData, K, Entry>,
    entries: impl Iterator<Item = (K, Entry)>,
) -> Result<Vec<K>, MapError> {
    let mut keys = Vec::new();
    for (key, entry) in entries {
        if let Err(error) = map.insert(key, entry, 0) {
            remove(map, &keys);
            return Err(error);
        }
        keys.push(key);
    }
    Ok(keys)
}

fn remove<K: Pod>(map: &mut HashMap<MapData, K, Entry>, keys: &[K]) {
    for key in keys {
        // What is not there need not be removed.
        let _ = map.remove(key);
    }
}

fn in_slot(config: &Config, slot: u8) -> Config {
    let mut config = *config;
    for tuple in config.v4.iter_mut().flat_map(|Tuples { tuples, .. }| tuples) {
        tuple.mask.slot = slot;
    }
    for tuple in config.v6.iter_mut().flat_map(|Tuples { tuples, .. }| tuples) {
        tuple.mask.slot = slot;
    }
    config
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, TablesError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(TablesError::Missing(name))?;
    Ok(map.try_into()?)
}
