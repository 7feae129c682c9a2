//! The programs, loaded and attached to nothing: packets come through test runs.

use std::{
    ops::{Deref, DerefMut},
    os::fd::AsFd as _,
    sync::Mutex,
};

use aya::{
    Ebpf,
    programs::{CgroupSkb, ProgramFd, SchedClassifier, Xdp},
};
use enforcer_policy::Policy;
use lab01_count_packets::load;
use lab03_tc_egress_common::flow::state::State;
use lab06_full_enforcer::{
    api::{Amounts, FlowEvents, ReasonStats},
    compile::{Capacities, Compiled, compile_for},
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

/// The programs of some hooks, loaded: a test loads those that it runs, since the verifier takes seconds over each of them
/// where it is emulated.
pub struct Programs {
    // Keeps those maps alive that nothing below holds.
    _ebpf: Ebpf,
    by_hook: Vec<(Hook, ProgramFd)>,
    tables: KernelTables,
    counters: Counters,
}

impl Programs {
    /// Loads them, without a policy. They follow no flows, so that each packet is judged for itself.
    pub fn load(hooks: &[Hook]) -> Self {
        Self::following(0, hooks)
    }

    /// The same, which follow flows.
    pub fn following(flows: u32, hooks: &[Hook]) -> Self {
        let capacities = Capacities {
            flows,
            ..Capacities::LEAST
        };
        Self::with_room(capacities, hooks)
    }

    /// With this policy in force, and room for it, but not for flows.
    pub fn enforcing(compiled: &Compiled, hooks: &[Hook]) -> Self {
        let capacities = Capacities {
            flows: 0,
            ..Capacities::around(compiled)
        };
        let mut programs = Self::with_room(capacities, hooks);
        programs.tables.apply(compiled, compiled.mode).unwrap();
        programs
    }

    fn with_room(capacities: Capacities, hooks: &[Hook]) -> Self {
        let mut ebpf = object::load(&capacities, false).unwrap();
        let programs = hooks.iter().map(|hook| (*hook, program(&mut ebpf, *hook)));
        Self {
            by_hook: programs.collect(),
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

    /// Has no flow forgotten, however slow the machine is.
    pub fn forget_no_flow(&mut self) {
        const DAY_NS: u64 = 24 * 3600 * 1_000_000_000;
        self.tables.set_idle_times([DAY_NS; State::COUNT]);
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
        let mut programs = self.by_hook.iter();
        let found = programs.find(|(of, _)| *of == hook);
        &found.unwrap_or_else(|| panic!("that of {hook:?} was not loaded")).1
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

/// The programs of all hooks that decide and of the one at sockets, loaded once and used by one test after the other: for tests that ask what has
/// changed, whatever was counted before.
pub struct Shared(Option<Programs>);

/// Those that nobody uses at the moment.
static IDLE: Mutex<Vec<Programs>> = Mutex::new(Vec::new());

impl Shared {
    /// Takes idle ones, or loads some. Their policy is that of who had them last.
    pub fn take() -> Self {
        let idle = IDLE.lock().unwrap().pop();
        Self(Some(idle.unwrap_or_else(|| {
            Programs::load(&[&hooks()[..], &[Hook::CgroupIngress]].concat())
        })))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        IDLE.lock().unwrap().extend(self.0.take());
    }
}

impl Deref for Shared {
    type Target = Programs;

    fn deref(&self) -> &Programs {
        self.0.as_ref().expect("it is there until this is dropped")
    }
}

impl DerefMut for Shared {
    fn deref_mut(&mut self) -> &mut Programs {
        self.0.as_mut().expect("it is there until this is dropped")
    }
}

/// Loads the program of a hook.
fn program(ebpf: &mut Ebpf, hook: Hook) -> ProgramFd {
    let name = match hook {
        Hook::XdpIngress => "enforce_xdp",
        Hook::TcIngress => "enforce_ingress",
        Hook::TcEgress => "enforce_leaving",
        Hook::CgroupEgress => "enforce_egress",
        Hook::CgroupIngress => "enforce_socket",
        hook => panic!("{hook:?} cannot be run by itself"),
    };
    let loaded = match hook {
        Hook::XdpIngress => {
            let program: &mut Xdp = load::program(ebpf, name, "XDP").unwrap();
            program.load().and_then(|()| program.fd())
        }
        Hook::TcIngress | Hook::TcEgress => {
            let program: &mut SchedClassifier = load::program(ebpf, name, "TC").unwrap();
            program.load().and_then(|()| program.fd())
        }
        _ => {
            let program: &mut CgroupSkb = load::program(ebpf, name, "cgroup_skb").unwrap();
            program.load().and_then(|()| program.fd())
        }
    };
    let loaded = loaded.map_err(|error| load::explain_program(name, error)).unwrap();
    loaded.try_clone().unwrap()
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
