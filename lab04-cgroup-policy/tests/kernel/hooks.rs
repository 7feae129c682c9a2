//! The test's own programs, which note what a hook is called for and return the verdict that they are told.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf, Pod, include_bytes_aligned,
    maps::{Array, MapData},
    programs::{CgroupSkb, CgroupSockAddr, ProgramFd},
};
use lab01_count_packets::load;
use lab04_cgroup_policy::{
    attach::{CgroupLink, Hook},
    cgroup::{Cgroup, Hierarchy},
};
use lab04_cgroup_policy_common::destination::Destination;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab04-hooks"));

/// The programs, loaded, with their maps.
pub struct Hooks {
    ebpf: Ebpf,
    verdicts: Array<MapData, u32>,
    calls: Array<MapData, u64>,
    last_destination: Array<MapData, Destination>,
    longest_packet: Array<MapData, [u32; 4]>,
}

impl Hooks {
    /// Loads them all; they allow.
    pub fn load() -> Self {
        let mut ebpf = load::load_object(OBJECT, &[]).unwrap();
        for hook in Hook::ALL {
            let loaded = match hook {
                Hook::Egress | Hook::Ingress => load::program::<CgroupSkb>(&mut ebpf, hook.name(), "cgroup_skb")
                    .unwrap()
                    .load(),
                _ => load::program::<CgroupSockAddr>(&mut ebpf, hook.name(), "cgroup_sock_addr")
                    .unwrap()
                    .load(),
            };
            loaded
                .map_err(|error| load::explain_program(hook.name(), error))
                .unwrap();
        }
        let mut hooks = Self {
            verdicts: take(&mut ebpf, "VERDICTS"),
            calls: take(&mut ebpf, "CALLS"),
            last_destination: take(&mut ebpf, "LAST_DESTINATION"),
            longest_packet: take(&mut ebpf, "LONGEST_PACKET"),
            ebpf,
        };
        for hook in Hook::ALL {
            hooks.tell(hook, true);
        }
        hooks
    }

    /// What a hook is to answer from now on.
    pub fn tell(&mut self, hook: Hook, allow: bool) {
        self.verdicts.set(index(hook), u32::from(allow), 0).unwrap();
    }

    /// Attaches the program of one hook.
    pub fn attach(&self, cgroup: &testbed::Cgroup, hook: Hook) -> CgroupLink {
        CgroupLink::attach(self.program(hook).as_fd(), &opened(cgroup), hook).unwrap()
    }

    /// The program of a hook.
    pub fn program(&self, hook: Hook) -> ProgramFd {
        let program = self.ebpf.program(hook.name()).unwrap();
        program.fd().unwrap().try_clone().unwrap()
    }

    /// How often a hook was called.
    pub fn calls(&self, hook: Hook) -> u64 {
        self.calls.get(&index(hook), 0).unwrap()
    }

    /// What a hook on a system call was last called for.
    pub fn last_destination(&self, hook: Hook) -> Destination {
        self.last_destination.get(&index(hook), 0).unwrap()
    }

    /// Of the longest packet yet at a hook on packets: its length, the length that its header leads to, its interface, its last
    /// byte.
    pub fn longest_packet(&self, hook: Hook) -> [u32; 4] {
        self.longest_packet.get(&index(hook), 0).unwrap()
    }
}

/// A cgroup of the testbed's, opened as the lab opens them.
pub fn opened(cgroup: &testbed::Cgroup) -> Cgroup {
    Hierarchy::find().unwrap().open(cgroup.path()).unwrap()
}

fn index(hook: Hook) -> u32 {
    Hook::ALL.iter().position(|known| *known == hook).unwrap() as u32
}

fn take<T: Pod>(ebpf: &mut Ebpf, name: &str) -> Array<MapData, T> {
    ebpf.take_map(name).unwrap().try_into().unwrap()
}
