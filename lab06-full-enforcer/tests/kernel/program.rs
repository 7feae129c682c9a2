//! The programs, loaded and attached to nothing: packets come through test runs.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    programs::{CgroupSkb, ProgramFd, SchedClassifier, Xdp},
};
use enforcer_policy::Policy;
use lab01_count_packets::load;
use lab06_full_enforcer::{
    api::{Amounts, FlowEvents, ReasonStats},
    compile::{Capacities, compile_for},
    counters::Counters,
    names::Names,
    object,
    tables::KernelTables,
};
use lab06_full_enforcer_common::{control::Mode, counters::Outcome, key::Hook};
use testbed::{
    bpf::{self, ProgramType, TestRun},
    harness::falls_back,
};

/// The programs, loaded.
pub struct Programs {
    // Keeps the programs and those maps alive that nothing below holds.
    _ebpf: Ebpf,
    xdp: ProgramFd,
    ingress: ProgramFd,
    leaving: ProgramFd,
    egress: ProgramFd,
    socket: ProgramFd,
    tables: KernelTables,
    counters: Counters,
}

impl Programs {
    /// Loads them, without a policy. They follow no flows, so that each packet is judged for itself.
    pub fn load() -> Self {
        Self::with(Capacities {
            flows: 0,
            ..Capacities::LEAST
        })
    }

    /// The same, which follow flows.
    pub fn following(flows: u32) -> Self {
        Self::with(Capacities {
            flows,
            ..Capacities::LEAST
        })
    }

    fn with(capacities: Capacities) -> Self {
        let mut ebpf = object::load(&capacities, false).unwrap();
        let xdp: &mut Xdp = load::program(&mut ebpf, "enforce_xdp", "XDP").unwrap();
        xdp.load()
            .map_err(|error| load::explain_program("enforce_xdp", error))
            .unwrap();
        let xdp = xdp.fd().unwrap().try_clone().unwrap();
        let [ingress, leaving] = ["enforce_ingress", "enforce_leaving"].map(|name| {
            let program: &mut SchedClassifier = load::program(&mut ebpf, name, "TC").unwrap();
            program
                .load()
                .map_err(|error| load::explain_program(name, error))
                .unwrap();
            program.fd().unwrap().try_clone().unwrap()
        });
        let [egress, socket] = ["enforce_egress", "enforce_socket"].map(|name| {
            let program: &mut CgroupSkb = load::program(&mut ebpf, name, "cgroup_skb").unwrap();
            program
                .load()
                .map_err(|error| load::explain_program(name, error))
                .unwrap();
            program.fd().unwrap().try_clone().unwrap()
        });
        Self {
            xdp,
            ingress,
            leaving,
            egress,
            socket,
            tables: KernelTables::take(&mut ebpf, capacities).unwrap(),
            counters: Counters::take(&mut ebpf).unwrap(),
            _ebpf: ebpf,
        }
    }

    /// Puts a policy into force, its rules counted by their places in the order of matching; their names.
    pub fn apply(&mut self, policy: &Policy) -> Vec<String> {
        self.apply_for(policy, Names::imagined(policy))
    }

    /// The same, for a host with these interfaces and cgroups.
    pub fn apply_for(&mut self, policy: &Policy, places: Names) -> Vec<String> {
        let compiled = compile_for(policy, places).unwrap();
        self.tables.apply(&compiled, compiled.mode).unwrap();
        compiled.names
    }

    /// Fills the bucket of the rule that is counted by this id.
    pub fn forget(&mut self, id: u32) {
        self.tables.forget(id).unwrap();
    }

    /// Puts a mode into force.
    pub fn set_mode(&mut self, mode: Mode) {
        self.tables.set_mode(mode);
    }

    /// What was counted for the first so many rules, by their places.
    pub fn by_rule(&self, rules: usize) -> Vec<Amounts> {
        (0..rules as u32).map(|id| self.counters.of_rule(id).unwrap()).collect()
    }

    /// What has happened in the table of flows.
    pub fn flow_events(&self) -> FlowEvents {
        self.counters.flow_events().unwrap()
    }

    /// What was counted by hook and reason.
    pub fn by_reason(&self) -> Vec<ReasonStats> {
        self.counters.by_reason().unwrap()
    }

    /// For running one elsewhere than here.
    pub fn fd(&self, hook: Hook) -> ProgramFd {
        self.of(hook).try_clone().unwrap()
    }

    fn of(&self, hook: Hook) -> &ProgramFd {
        match hook {
            Hook::XdpIngress => &self.xdp,
            Hook::TcIngress => &self.ingress,
            Hook::TcEgress => &self.leaving,
            Hook::CgroupEgress => &self.egress,
            Hook::CgroupIngress => &self.socket,
        }
    }

    /// Runs one of them once on a frame of the interface with this index (`lo` has 1); whether it lets it pass.
    pub fn lets_pass(&self, hook: Hook, frame: &[u8], interface: u32) -> bool {
        let context = context(hook, frame, interface);
        let run = TestRun {
            context: &context,
            ..TestRun::once(frame)
        };
        let outcome = bpf::test_run(self.of(hook).as_fd(), run)
            .unwrap_or_else(|error| panic!("{error}: {} bytes {frame:02x?}", frame.len()));
        match (hook, outcome.retval) {
            // `TC_ACT_UNSPEC` is -1, `TC_ACT_SHOT` 2.
            // `XDP_PASS` is 2, `XDP_DROP` 1.
            (Hook::TcIngress | Hook::TcEgress, u32::MAX)
            | (Hook::CgroupEgress | Hook::CgroupIngress, 1)
            | (Hook::XdpIngress, 2) => true,
            (Hook::TcIngress | Hook::TcEgress, 2)
            | (Hook::CgroupEgress | Hook::CgroupIngress, 0)
            | (Hook::XdpIngress, 1) => false,
            (hook, code) => panic!("{hook:?} returned {code}: {frame:02x?}"),
        }
    }
}

/// The hooks that decide and at which a test run can be on another interface than `lo`: XDP from Linux 5.14 on.
pub fn hooks() -> Vec<Hook> {
    let has_context = {
        let program = bpf::empty_program(ProgramType::Xdp).unwrap();
        let frame = [0; 64];
        let run = TestRun {
            context: &context(Hook::XdpIngress, &frame, 0),
            ..TestRun::once(&frame)
        };
        bpf::test_run(program.as_fd(), run).is_ok()
    };
    let mut hooks: Vec<Hook> = Hook::ALL.into_iter().filter(|hook| hook.decides()).collect();
    if !has_context {
        falls_back("test runs of XDP are on lo: no context for them before Linux 5.14");
        hooks.retain(|hook| *hook != Hook::XdpIngress);
    }
    hooks
}

/// What says that a frame is one of this interface. For `lo`, which is the kernel's default, it is not said.
fn context(hook: Hook, frame: &[u8], interface: u32) -> Vec<u8> {
    match hook {
        Hook::XdpIngress if interface == 1 => Vec::new(),
        // `struct xdp_md`: `data`, `data_end`, `data_meta`, `ingress_ifindex`, `rx_queue_index`, `egress_ifindex`.
        Hook::XdpIngress => {
            let fields = [0, frame.len() as u32, 0, interface, 0, 0];
            fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
        }
        // The last field of these is `ifindex` of `struct __sk_buff`.
        _ => {
            let mut context = vec![0; 44];
            if interface > 1 {
                context[40..].copy_from_slice(&interface.to_ne_bytes());
            }
            context
        }
    }
}

/// Packets by outcome, as [`Outcome::ALL`] has them.
pub fn packets(amounts: &Amounts) -> [u64; Outcome::COUNT as usize] {
    [
        amounts.passed.packets,
        amounts.observed.packets,
        amounts.dropped.packets,
    ]
}
