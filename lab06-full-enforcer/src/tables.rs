//! The tables in the kernel, and how a new policy takes effect: whole, and between two packets.

use std::io;

use aya::{
    Ebpf, Pod,
    maps::{Array, Map, MapData, MapError},
};
use lab02_xdp_firewall::{barrier::Barrier, mapped::MappedArray};
use lab02_xdp_firewall_common::prefix_set::tree::{NodeV4, NodeV6};
use lab06_full_enforcer_common::{
    control::{Control, Mode},
    table::{Config, MAX_RULES, Origin, Rule, SLOTS},
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
    #[error("a table cannot be written: {0}")]
    Map(#[from] MapError),
    /// Memory could not be mapped, or the barrier failed.
    #[error("a table cannot be mapped or swapped: {0}")]
    Io(#[from] io::Error),
}

/// The tables of the loaded programs.
pub struct KernelTables {
    control: MappedArray<u64>,
    configs: Array<MapData, Config>,
    rules: MappedArray<Rule>,
    nodes_v4: MappedArray<NodeV4>,
    nodes_v6: MappedArray<NodeV6>,
    masks: MappedArray<u64>,
    in_force: Control,
    barrier: Barrier,
    capacities: Capacities,
}

/// The sizes of the maps, for [`lab01_count_packets::load::load_object`].
pub fn map_sizes(capacities: &Capacities) -> [(&'static str, u32); 3] {
    [
        ("NODES_V4", capacities.nodes_v4 * SLOTS),
        ("NODES_V6", capacities.nodes_v6 * SLOTS),
        ("MASKS", capacities.masks * SLOTS),
    ]
}

impl KernelTables {
    /// Takes the tables out of the loaded object, which was loaded with [`map_sizes`] of the same capacities, and whose
    /// programs are in the kernel: what is mapped into memory gives up the descriptor that loading them needs.
    pub fn take(ebpf: &mut Ebpf, capacities: Capacities) -> Result<Self, TablesError> {
        Ok(Self {
            control: mapped(ebpf, "CONTROL")?,
            configs: take(ebpf, "CONFIGS")?,
            rules: mapped(ebpf, "RULES")?,
            nodes_v4: mapped(ebpf, "NODES_V4")?,
            nodes_v6: mapped(ebpf, "NODES_V6")?,
            masks: mapped(ebpf, "MASKS")?,
            in_force: Control::new(0, Mode::Observe),
            barrier: Barrier::new()?,
            capacities,
        })
    }

    /// Puts a policy and a mode into force, whole and between two packets. When it returns, no program reads the policy
    /// before it any more.
    ///
    /// # Panics
    ///
    /// If it was compiled for larger tables.
    pub fn apply(&mut self, compiled: &Compiled, mode: Mode) -> Result<(), TablesError> {
        // ANCHOR: apply
        let slot = (self.in_force.slot() + 1) % SLOTS;
        let origin = Origin {
            node_v4: slot * self.capacities.nodes_v4,
            node_v6: slot * self.capacities.nodes_v6,
            mask: slot * self.capacities.masks,
            rule: slot * MAX_RULES as u32,
        };
        self.nodes_v4.write(origin.node_v4 as usize, &compiled.content.nodes_v4);
        self.nodes_v6.write(origin.node_v6 as usize, &compiled.content.nodes_v6);
        self.masks.write(origin.mask as usize, &compiled.masks);
        self.rules.write(origin.rule as usize, &compiled.rules);
        self.configs.set(slot, compiled.config.moved_to(origin), 0)?;
        let control = Control::new(slot, mode);
        self.control.store(0, control.word());
        if let Err(error) = self.barrier.wait() {
            // It was refused then, so the policy before stays.
            self.control.store(0, self.in_force.word());
            return Err(error.into());
        }
        self.in_force = control;
        // ANCHOR_END: apply
        Ok(())
    }

    /// Puts a mode into force, between two packets.
    pub fn set_mode(&mut self, mode: Mode) {
        self.in_force = Control::new(self.in_force.slot(), mode);
        self.control.store(0, self.in_force.word());
    }
}

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
