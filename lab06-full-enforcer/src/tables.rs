//! The tables in the kernel, and how a new policy takes effect: whole, and between two packets.

use std::io;

use aya::{
    Ebpf, Pod,
    maps::{Array, Map, MapData, MapError},
};
use lab02_xdp_firewall::{barrier::Barrier, mapped::MappedArray, tables::random};
use lab02_xdp_firewall_common::prefix_set::tree::{NodeV4, NodeV6};
use lab03_tc_egress::policy::{buckets_for, half_open_flows};
use lab03_tc_egress_common::flow::state::{IDLE_NS, State};
use lab06_full_enforcer_common::{
    control::{Control, Mode},
    counters::by_rule_len,
    flow,
    limit::{self, RateLimit},
    table::{Class, Config, Group, MAX_PARTITIONS, Origin, Partition, Record, Rule, Run, SLOTS},
};
use thiserror::Error;

use crate::compile::{Capacities, Compiled};

/// Why the tables could not be opened or written. The policy in force stays.
#[derive(Debug, Error)]
pub enum TablesError {
    /// The object has no map of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(&'static str),
    /// The kernel refused to read or write a map.
    #[error("a table cannot be written: {}", with_cause(.0))]
    Map(#[from] MapError),
    /// Memory could not be mapped.
    #[error("a table cannot be mapped into memory: {0}")]
    Io(#[from] io::Error),
    /// It could not be waited for.
    #[error("it cannot be waited until no packet is decided by an older policy any more: {0}")]
    Barrier(io::Error),
}

/// An error of aya's with the kernel's words, which it keeps to itself.
pub fn with_cause(error: &MapError) -> String {
    match error {
        MapError::SyscallError(error) => format!("{}: {}", error.call, error.io_error),
        error => error.to_string(),
    }
}

/// A slot in which a policy can be written: no program reads it.
#[must_use]
pub struct FreeSlot(u32);

/// The tables of the loaded programs.
pub struct KernelTables {
    control: MappedArray<u64>,
    configs: Array<MapData, Config>,
    nodes_v4: MappedArray<NodeV4>,
    nodes_v6: MappedArray<NodeV6>,
    class_numbers: MappedArray<u64>,
    classes: MappedArray<Class>,
    partitions: MappedArray<Partition>,
    groups: MappedArray<Group>,
    runs: MappedArray<Run>,
    records: MappedArray<Record>,
    rules: MappedArray<Rule>,
    limits: MappedArray<RateLimit>,
    buckets: Array<MapData, FullBucket>,
    bucket_key: [u64; 2],
    flows: flow::Settings,
    generation: u32,
    in_force: Control,
    barrier: Barrier,
    capacities: Capacities,
}

/// The sizes of the maps, for [`lab01_count_packets::load::load_object`].
pub fn map_sizes(capacities: &Capacities) -> [(&'static str, u32); 12] {
    [
        ("NODES_V4", capacities.nodes_v4 * SLOTS),
        ("NODES_V6", capacities.nodes_v6 * SLOTS),
        ("CLASS_NUMBERS", pairs(capacities.class_numbers) * SLOTS),
        ("CLASSES", capacities.classes * SLOTS),
        ("GROUPS", capacities.groups * SLOTS),
        ("RUNS", capacities.records * SLOTS),
        ("RECORDS", capacities.records * SLOTS),
        ("RULES", capacities.rules * SLOTS),
        ("LIMITS", capacities.limits * SLOTS),
        ("BUCKETS", limit::of_rule(max_ids(capacities))),
        ("PACKETS_BY_RULE", by_rule_len(max_ids(capacities))),
        ("FLOWS", flow_buckets(capacities.flows).iter().sum::<u32>().max(1)),
    ]
}

/// How many buckets there are for flows whose both ends are proven, and for all others.
fn flow_buckets(flows: u32) -> [u32; 2] {
    if flows == 0 {
        return [0; 2];
    }
    [buckets_for(flows), buckets_for(half_open_flows(flows))]
}

/// How many rules can be counted apart: those in force, and as many whose counters wait for them to come back.
pub const fn max_ids(capacities: &Capacities) -> u32 {
    capacities.rules * 2
}

/// How many words hold so many numbers, two in each: see `CLASS_NUMBERS` in the program.
const fn pairs(numbers: u32) -> u32 {
    numbers.div_ceil(2)
}

fn in_pairs(numbers: &[u32]) -> Vec<u64> {
    let pairs = numbers.chunks(2);
    pairs
        .map(|pair| u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32)
        .collect()
}

impl KernelTables {
    /// Takes the tables out of the loaded object, which was loaded with [`map_sizes`] of the same capacities, and whose
    /// programs are in the kernel: what is mapped into memory gives up the descriptor that loading them needs.
    pub fn take(ebpf: &mut Ebpf, capacities: Capacities) -> Result<Self, TablesError> {
        Ok(Self {
            control: mapped(ebpf, "CONTROL")?,
            configs: take(ebpf, "CONFIGS")?,
            nodes_v4: mapped(ebpf, "NODES_V4")?,
            nodes_v6: mapped(ebpf, "NODES_V6")?,
            class_numbers: mapped(ebpf, "CLASS_NUMBERS")?,
            classes: mapped(ebpf, "CLASSES")?,
            partitions: mapped(ebpf, "PARTITIONS")?,
            groups: mapped(ebpf, "GROUPS")?,
            runs: mapped(ebpf, "RUNS")?,
            records: mapped(ebpf, "RECORDS")?,
            rules: mapped(ebpf, "RULES")?,
            limits: mapped(ebpf, "LIMITS")?,
            buckets: take(ebpf, "BUCKETS")?,
            bucket_key: [random()?, random()?],
            flows: {
                let [established_buckets, half_open_buckets] = flow_buckets(capacities.flows);
                flow::Settings {
                    idle_ns: IDLE_NS,
                    hash_key: [random()?, random()?],
                    established_buckets,
                    half_open_buckets,
                }
            },
            generation: 0,
            in_force: Control::new(0, Mode::Observe),
            barrier: Barrier::new()?,
            capacities,
        })
    }

    /// Puts a policy and a mode into force, whole and between two packets: what is being decided about at this moment is
    /// decided by the policy before.
    ///
    /// # Panics
    ///
    /// If there is no room for it: see [`Capacities::hold`].
    pub fn apply(&mut self, compiled: &Compiled, mode: Mode) -> Result<(), TablesError> {
        // ANCHOR: apply
        let slot = self.free_slot()?;
        self.fill(&slot, compiled)?;
        self.put_into_force(slot, mode);
        // ANCHOR_END: apply
        Ok(())
    }

    /// A slot that no program reads. When it returns, none reads any other policy than the one in force, nor knows ids
    /// that this one has not.
    pub fn free_slot(&mut self) -> Result<FreeSlot, TablesError> {
        // ANCHOR: free_slot
        self.barrier.wait().map_err(TablesError::Barrier)?;
        Ok(FreeSlot((self.in_force.slot() + 1) % SLOTS))
        // ANCHOR_END: free_slot
    }

    /// Writes a policy to where no program looks.
    ///
    /// # Panics
    ///
    /// If there is no room for it: see [`Capacities::hold`].
    pub fn fill(&mut self, FreeSlot(slot): &FreeSlot, compiled: &Compiled) -> Result<(), TablesError> {
        let origin = self.origin(*slot);
        self.nodes_v4.write(origin.node_v4 as usize, &compiled.content.nodes_v4);
        self.nodes_v6.write(origin.node_v6 as usize, &compiled.content.nodes_v6);
        self.class_numbers
            .write(origin.class_number as usize / 2, &in_pairs(&compiled.class_numbers));
        self.classes.write(origin.class as usize, &compiled.classes);
        let partitions = compiled.partitions.iter().map(|partition| partition.moved_to(origin));
        let partitions: Vec<Partition> = partitions.collect();
        self.partitions.write(origin.partition as usize, &partitions);
        self.groups.write(origin.group as usize, &compiled.groups);
        self.runs.write(origin.record as usize, &compiled.runs);
        self.records.write(origin.record as usize, &compiled.records);
        self.rules.write(origin.rule as usize, &compiled.rules);
        self.limits.write(origin.limit as usize, &compiled.limits);
        self.generation = self.generation.wrapping_add(1);
        let config = Config {
            bucket_key: self.bucket_key,
            flows: self.flows,
            generation: self.generation.into(),
            ..compiled.config.moved_to(origin)
        };
        Ok(self.configs.set(*slot, config, 0)?)
    }

    /// Puts into force what a slot was filled with, between two packets. This cannot fail: it is a store to memory.
    pub fn put_into_force(&mut self, FreeSlot(slot): FreeSlot, mode: Mode) {
        self.in_force = Control::new(slot, mode);
        self.control.store(0, self.in_force.word());
    }

    fn origin(&self, slot: u32) -> Origin {
        let of = &self.capacities;
        Origin {
            slot,
            node_v4: slot * of.nodes_v4,
            node_v6: slot * of.nodes_v6,
            class_number: slot * pairs(of.class_numbers) * 2,
            class: slot * of.classes,
            partition: slot * 2 * MAX_PARTITIONS as u32,
            group: slot * of.groups,
            record: slot * of.records,
            rule: slot * of.rules,
            limit: slot * of.limits,
        }
    }

    /// Fills the bucket of a rule's id. To be called while no policy that a program reads has it.
    pub fn forget(&mut self, id: u32) -> Result<(), TablesError> {
        Ok(self.buckets.set(limit::of_rule(id), FullBucket::default(), 0)?)
    }

    /// From the next policy on, flows are forgotten when nothing was seen of them for so long, by their state.
    pub fn set_idle_times(&mut self, idle_ns: [u64; State::COUNT]) {
        self.flows.idle_ns = idle_ns;
    }

    /// Puts a mode into force, between two packets.
    pub fn set_mode(&mut self, mode: Mode) {
        self.in_force = Control::new(self.in_force.slot(), mode);
        self.control.store(0, self.in_force.word());
    }
}

/// A bucket as a map holds it: its lock, whose bits the kernel keeps, and the moment at which it will be full.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FullBucket {
    lock: [u32; 2],
    full_at_ns: u64,
}

// SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
unsafe impl Pod for FullBucket {}

fn mapped<T: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<MappedArray<T>, TablesError> {
    Ok(MappedArray::new(&take(ebpf, name)?)?)
}

/// The map of this name, out of the loaded object.
pub fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, TablesError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(TablesError::Missing(name))?;
    Ok(map.try_into()?)
}
