//! Filters that a killed enforcer has left behind: those of clsact stay until somebody removes them, and go on enforcing.

use std::{collections::BTreeSet, fs};

use aya::programs::{TcAttachType, tc};
use lab01_count_packets::interface::Interface;
use lab03_tc_egress::attach::{Direction, TcAttachError, Way, programs_on};

/// Removes the filters of this name from one of an interface's hooks, if no process holds their programs any more.
pub fn remove(interface: &Interface, direction: Direction, name: &str) -> Result<(), TcAttachError> {
    let filters = programs_on(interface)?.into_iter().filter(|on_hook| {
        on_hook.way == Way::Clsact && on_hook.direction == direction && on_hook.name.as_deref() == Some(name)
    });
    let ids: BTreeSet<u32> = filters.filter_map(|filter| filter.program_id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    if !ids.is_disjoint(&held_programs()) {
        log::warn!(
            "another enforcer decides at {}, too: a packet passes if both let it",
            interface.name
        );
        return Ok(());
    }
    let hook = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    match tc::qdisc_detach_program(&interface.name, hook, name) {
        Ok(()) => log::info!("removed from {} what a killed enforcer had left there", interface.name),
        Err(error) => log::warn!(
            "what a killed enforcer has left at {} cannot be removed, and goes on enforcing: {error}; \
             `tc qdisc del dev {} clsact` removes it",
            interface.name,
            interface.name
        ),
    }
    Ok(())
}

/// The ids of the programs that processes hold descriptors of, as far as it may be seen.
fn held_programs() -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        // What is no process, and what has ended meanwhile, has none.
        for descriptor in fs::read_dir(process.path().join("fdinfo"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
            let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
            ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
        }
    }
    ids
}
