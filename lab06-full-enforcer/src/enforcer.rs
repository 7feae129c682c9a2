//! The enforcer: programs in the kernel, a policy in their tables, a mode.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::MapError,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSock, CgroupSockAddr, SchedClassifier, Xdp, cgroup_sock::CgroupSockLink,
    },
};
use enforcer_policy::{
    decide,
    model::{self, Policy},
    text,
};
use lab01_count_packets::{
    attach::AttachError as XdpAttachError,
    interface::{self, Interface, UnknownInterface},
    load::{self, LoadError},
};
use lab03_tc_egress::attach::{Direction, TcAttach, TcAttachError, TcHooks};
use lab04_cgroup_policy::{
    attach::{AttachError, CgroupLink, Hook},
    cgroup::{Cgroup, CgroupError, Hierarchy},
};
use lab06_full_enforcer_common::{control::Mode, key};
use thiserror::Error;

use crate::{
    api::{
        Amounts, Applied, HookStatus, ModeChange, ModeReport, RuleStats, SetChanged, SetReport, SetRequest, SetSummary,
        Stats, Status,
    },
    compile::{self, CannotEnforce, Capacities, Compiled, Divisions},
    counters::Counters,
    groups,
    ids::Ids,
    local::{LocalPrefixes, Prefixes, prefixes},
    names::{self, CannotLookUp, Names},
    object, orphans,
    sets::{self, Changes, Edit, SetError},
    tables::{KernelTables, TablesError, max_ids, with_cause},
    wire::{self, OnWire, Wire},
};

/// Why the enforcer could not start, or not do what was asked of it. Each text names cause and mend.
#[derive(Debug, Error)]
pub enum EnforcerError {
    /// The policy asks for what cannot be enforced; nothing has changed.
    #[error(transparent)]
    Policy(#[from] CannotEnforce),
    /// The programs could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tables could not be written.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// The counters could not be read or set.
    #[error("the counters cannot be read or set: {}", with_cause(.0))]
    Counters(#[from] MapError),
    /// Which destinations are the host's own is not known.
    #[error("the host's routes of type local cannot be read or kept: {0}; start it with --no-connect")]
    Local(#[from] io::Error),
    /// Another policy could not be put into force.
    #[error(
        "policy {policy} could not be put into force: {cause}\nrollback_ok: policy {stays} is in force as before, with its counters"
    )]
    StaysInForce {
        /// The one that could not.
        policy: String,
        /// The one that was in force, and is.
        stays: String,
        /// Why.
        cause: Box<Self>,
    },
    /// It cannot be said whether what the policy names is there.
    #[error(transparent)]
    Names(#[from] CannotLookUp),
    /// There is no such interface.
    #[error(transparent)]
    Interface(#[from] UnknownInterface),
    /// The packets of an interface have no Ethernet headers, and would be misread.
    #[error(
        "packets of {0} have no Ethernet header, as those of tunnels, without which this version misreads them at an \
         interface; name with --iface those at which it is to decide, or decide in the cgroup alone (--no-xdp --no-tc)"
    )]
    NoEthernet(String),
    /// A program could not be attached to an interface.
    #[error(transparent)]
    Tc(#[from] TcAttachError),
    /// A program could not be attached to an interface's driver.
    #[error(transparent)]
    Xdp(#[from] XdpAttachError),
    /// There is no such cgroup, or none at all.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A program could not be attached to a cgroup.
    #[error(transparent)]
    CgroupAttach(#[from] AttachError),
    /// An entry of a set cannot be added or removed; nothing has changed.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The mode is not to be changed.
    #[error(
        "the mode stays {0}: the enforcer was started with --{0}, which holds until it ends; start it without, and \
         `enforcer mode` or the policy decides"
    )]
    ModeIsFixed(&'static str),
}

/// Where the enforcer looks at packets, and what holds from the start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The interfaces at whose hooks packets are decided about; `None` for every one but `lo`.
    pub interfaces: Option<Vec<String>>,
    /// Which of their hooks decides about what comes in; `None` for none.
    pub wire: Option<Wire>,
    /// Whether their TC egress decides about what leaves and was not decided about in the cgroup.
    pub tc_egress: bool,
    /// The cgroup whose sockets' packets are decided about; `None` for the root of cgroup v2.
    pub cgroup: Option<String>,
    /// Whether it is attached to the cgroup. If not, TC decides about all that leaves.
    pub by_cgroup: bool,
    /// Whether calls of `connect` and `sendmsg` are refused there, where their packets would be blocked whatever they look
    /// like.
    pub at_calls: bool,
    /// How many flows are followed at once; none if 0.
    pub max_flows: u32,
    /// The mode, whatever policies and commands say.
    pub mode: Option<Mode>,
}

/// The enforcer, loaded and attached. Dropping it detaches everything.
pub struct Enforcer {
    // Detached first, so that no packet meets a program whose tables are being taken down.
    attached: Attached,
    kernel: Kernel,
    /// Where calls are refused.
    local: Option<LocalPrefixes>,
    /// Whether groups are kept with sockets, or nobody wants to know.
    keeps_groups: bool,
    capacities: Capacities,
    in_force: InForce,
    /// In what its sets differ from the policy that was applied.
    changes: Changes,
    /// How its rules were divided, for when only its sets change.
    divisions: Divisions,
    fixed_mode: Option<Mode>,
    /// What `enforcer mode` has last set since the policy was applied.
    chosen_mode: Option<Mode>,
    applied: u64,
    started: Instant,
    // Keeps the programs and those maps alive that nothing above holds.
    _ebpf: Ebpf,
}

/// What is in the kernel of a policy.
struct Kernel {
    tables: KernelTables,
    counters: Counters,
    ids: Ids,
}

struct InForce {
    /// With its sets in order, and with their changes.
    policy: Policy,
    contents: Contents,
}

/// What the tables in the kernel hold.
struct Contents {
    /// The mode that the policy asks for.
    mode: Mode,
    /// The names of the rules in the order of matching, and the ids under which they are counted.
    rules: Vec<(String, u32)>,
    /// The interfaces and cgroups that the rules name.
    places: Names,
}

#[derive(Default)]
struct Attached {
    _xdp: Vec<OnWire>,
    _tc: Vec<TcHooks>,
    _cgroup: Vec<CgroupLink>,
    _groups: Option<CgroupSockLink>,
    hooks: Vec<HookStatus>,
}

impl Enforcer {
    /// Loads the programs, puts `policy` into force, and attaches: the first packet already meets the whole policy.
    pub async fn start(options: &Options, policy: Policy) -> Result<Self, EnforcerError> {
        let policy = sets::sort(policy);
        let mut divisions = Divisions::default();
        let compiled = compile::compile_again(&policy, names::on_this_host(&policy)?, &mut divisions)?;
        let capacities = Capacities {
            flows: options.max_flows,
            ..Capacities::around(&compiled)
        };
        let places = Places::find(options)?;
        let mut ebpf = load_programs(&capacities, options, &places)?;
        let keeps_groups = !options.by_cgroup || groups::are_kept(&mut ebpf);
        groups::check(&policy, keeps_groups)?;
        let mut kernel = Kernel {
            tables: KernelTables::take(&mut ebpf, capacities)?,
            counters: Counters::take(&mut ebpf)?,
            ids: Ids::new(max_ids(&capacities)),
        };
        let contents = kernel.put_into_force(compiled, options.mode)?;
        let mut local = if options.by_cgroup && options.at_calls {
            Some(LocalPrefixes::take(&mut ebpf)?)
        } else {
            None
        };
        // Before the first call is met; the server reads them again, once it listens for changes. If they cannot be read, calls
        // are left alone, and the server says why.
        if let Some(local) = &mut local
            && let Ok(prefixes) = prefixes().await
        {
            local.set(&prefixes)?;
        }
        Ok(Self {
            attached: Attached::to(&places, options, &mut ebpf).await?,
            kernel,
            local,
            keeps_groups,
            capacities,
            in_force: InForce { policy, contents },
            changes: Changes::default(),
            divisions,
            fixed_mode: options.mode,
            chosen_mode: None,
            applied: 1,
            started: Instant::now(),
            _ebpf: ebpf,
        })
    }

    /// Detaches everything: from now on nothing is decided about.
    pub fn detach(&mut self) {
        self.attached = Attached::default();
    }

    /// Puts another policy into force, or only sees whether that could be done. If it cannot, the one in force stays. What
    /// was added to sets stays in sets of the same names.
    pub fn apply(&mut self, policy: Policy, dry_run: bool) -> Result<Applied, EnforcerError> {
        let mut policy = sets::sort(policy);
        let changes = self.changes.carried_to(&mut policy);
        groups::check(&policy, self.keeps_groups)?;
        let mut divisions = Divisions::default();
        let compiled = compile::compile_again(&policy, names::on_this_host(&policy)?, &mut divisions)?;
        self.capacities.hold(&compiled)?;
        let mut applied = Applied {
            policy: policy.name.clone(),
            rules: policy.rules.len() as u64,
            mode: self.mode_under(compiled.mode, None),
            missing: compiled.places.missing(&policy),
            kept_entries: changes.count() as u64,
            forgotten_entries: (self.changes.count() - changes.count()) as u64,
            dry_run,
        };
        if !dry_run {
            let contents = self.exchange(&policy.name, compiled, self.fixed_mode)?;
            self.in_force = InForce { policy, contents };
            (self.changes, self.divisions) = (changes, divisions);
            self.chosen_mode = None;
            self.applied += 1;
            applied.mode = self.mode();
        }
        Ok(applied)
    }

    /// Puts the policy in force into force again if an interface or a cgroup that it names has come, gone or become
    /// another one; whether that was so. Mode and counters stay.
    pub fn refresh(&mut self) -> Result<bool, EnforcerError> {
        let places = names::on_this_host(self.policy())?;
        if places == self.in_force.contents.places {
            return Ok(false);
        }
        self.renew(places)?;
        Ok(true)
    }

    /// Whether calls are refused at all, so that somebody wants to know which destinations are the host's own.
    pub fn refuses_calls(&self) -> bool {
        self.local.is_some()
    }

    /// Which destinations are the host's own from now on; `None` if that is not known, and no call is to be refused.
    pub fn set_local(&mut self, prefixes: Option<&Prefixes>) -> Result<(), EnforcerError> {
        match (&mut self.local, prefixes) {
            (None, _) => {}
            (Some(local), Some(prefixes)) => local.set(prefixes)?,
            (Some(local), None) => local.leave_calls_alone()?,
        }
        Ok(())
    }

    /// Adds an entry to a set of the policy in force, or removes one. Mode and counters stay.
    pub fn change_set(&mut self, name: &str, request: &SetRequest) -> Result<SetChanged, EnforcerError> {
        let prefix = text::parse_prefix(&request.prefix).map_err(SetError::Prefix)?;
        let time = request.for_ms.map(Duration::from_millis);
        let mut changes = self.changes.clone();
        let edit = changes.change(self.policy(), name, prefix, request.change, time, Instant::now())?;
        self.edit_sets(edit.as_slice())?;
        self.changes = changes;
        let set = self.policy().sets.get(name);
        Ok(SetChanged {
            set: name.into(),
            prefix: text::prefix(&prefix),
            change: request.change,
            for_ms: request.for_ms,
            entries: set.map_or(0, |set| set.len() as u64),
            rules: sets::rules_that_name(self.policy(), name),
        })
    }

    /// Ends the changes of sets whose time is over; whether there were some.
    pub fn expire(&mut self) -> Result<bool, EnforcerError> {
        let now = Instant::now();
        if !self.changes.has_expired(now) {
            return Ok(false);
        }
        let mut changes = self.changes.clone();
        self.edit_sets(&changes.expire(now))?;
        self.changes = changes;
        Ok(true)
    }

    /// Changes sets of the policy in force; if that fails, they stay as they are.
    fn edit_sets(&mut self, edits: &[Edit]) -> Result<(), EnforcerError> {
        if edits.is_empty() {
            return Ok(());
        }
        for edit in edits {
            edit.apply(&mut self.in_force.policy);
        }
        let renewed = self.renew(self.in_force.contents.places.clone());
        if renewed.is_err() {
            for edit in edits.iter().rev() {
                edit.undone().apply(&mut self.in_force.policy);
            }
        }
        renewed
    }

    /// The sets of the policy in force.
    pub fn sets(&self) -> Vec<SetSummary> {
        self.changes.summaries(self.policy())
    }

    /// One of them, with its entries.
    pub fn set(&self, name: &str) -> Result<SetReport, EnforcerError> {
        Ok(self.changes.report(self.policy(), name, Instant::now())?)
    }

    /// Puts the policy in force, which has changed, into force again; the mode stays.
    fn renew(&mut self, places: Names) -> Result<(), EnforcerError> {
        let compiled = compile::compile_again(&self.in_force.policy, places, &mut self.divisions)?;
        self.capacities.hold(&compiled)?;
        let name = self.policy().name.clone();
        self.in_force.contents = self.exchange(&name, compiled, self.fixed_mode.or(self.chosen_mode))?;
        Ok(())
    }

    /// Puts the policy of this name into force, in this mode or the one that it asks for; if that fails, the one in force
    /// stays.
    fn exchange(&mut self, name: &str, compiled: Compiled, mode: Option<Mode>) -> Result<Contents, EnforcerError> {
        let exchanged = self.kernel.put_into_force(compiled, mode);
        exchanged.map_err(|cause| EnforcerError::StaysInForce {
            policy: name.to_owned(),
            stays: self.policy().name.clone(),
            cause: Box::new(cause),
        })
    }

    /// The policy in force, with its sets in order and without files.
    pub fn policy(&self) -> &Policy {
        &self.in_force.policy
    }

    /// The mode in force.
    pub fn mode(&self) -> ModeReport {
        self.mode_under(self.in_force.contents.mode, self.chosen_mode)
    }

    fn mode_under(&self, of_policy: Mode, chosen: Option<Mode>) -> ModeReport {
        let (mode, set_by) = match (self.fixed_mode, chosen) {
            (Some(fixed), _) => (fixed, "command line"),
            (None, Some(chosen)) => (chosen, "mode command"),
            (None, None) => (of_policy, "policy"),
        };
        ModeReport {
            mode: mode.name().into(),
            set_by: set_by.into(),
        }
    }

    /// Changes the mode, from the next packet on and until another policy is applied.
    pub fn change_mode(&mut self, change: ModeChange) -> Result<ModeReport, EnforcerError> {
        if let Some(fixed) = self.fixed_mode {
            return Err(EnforcerError::ModeIsFixed(fixed.name()));
        }
        let now = self.chosen_mode.unwrap_or(self.in_force.contents.mode);
        let mode = match change {
            ModeChange::Observe => Mode::Observe,
            ModeChange::Block => Mode::Block,
            ModeChange::Toggle => now.toggled(),
        };
        self.kernel.tables.set_mode(mode);
        self.chosen_mode = Some(mode);
        Ok(self.mode())
    }

    /// What is going on.
    pub fn status(&self) -> Result<Status, EnforcerError> {
        let total = self
            .kernel
            .counters
            .by_reason()?
            .into_iter()
            .map(|reason| reason.amounts);
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            process: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            kernel: kernel_release(),
            policy: self.policy().name.clone(),
            rules: self.policy().rules.len() as u64,
            applied: self.applied,
            mode: self.mode(),
            missing: self.in_force.contents.places.missing(self.policy()),
            hooks: self.attached.hooks.clone(),
            flows: self.kernel.counters.flow_events()?,
            total: total.fold(Amounts::default(), Amounts::plus),
        })
    }

    /// What was counted.
    pub fn stats(&self) -> Result<Stats, EnforcerError> {
        let InForce { policy, contents } = &self.in_force;
        let written = policy.rules.iter().map(|written| (&written.name, written));
        let written: HashMap<&String, &model::Rule> = written.collect();
        let mut rules = Vec::new();
        for (name, id) in &contents.rules {
            let written = written.get(name);
            rules.push(RuleStats {
                rule: name.clone(),
                action: written.map(|written| action(&written.action).into()),
                amounts: self.kernel.counters.of_rule(*id)?,
            });
        }
        for (name, id) in self.kernel.ids.all() {
            if !written.contains_key(&name.to_owned()) {
                rules.push(RuleStats {
                    rule: name.into(),
                    action: None,
                    amounts: self.kernel.counters.of_rule(id)?,
                });
            }
        }
        Ok(Stats {
            policy: policy.name.clone(),
            mode: self.mode(),
            rules,
            reasons: self.kernel.counters.by_reason()?,
            malformed: self.kernel.counters.malformed()?,
        })
    }
}

impl Kernel {
    /// Puts a policy into force, in this mode or the one that it asks for. If that fails, the one before stays.
    fn put_into_force(&mut self, mut compiled: Compiled, mode: Option<Mode>) -> Result<Contents, EnforcerError> {
        // ANCHOR: put_into_force
        let slot = self.tables.free_slot()?;
        let mut ids = self.ids.clone();
        let assigned = ids.assign(&compiled.names);
        for (rule, id) in compiled.rules.iter_mut().zip(&assigned.ids) {
            rule.id = *id;
        }
        self.tables.fill(&slot, &compiled)?;
        for id in assigned.reused {
            self.counters.forget(id)?;
            self.tables.forget(id)?;
        }
        // From here on nothing can fail.
        self.tables.put_into_force(slot, mode.unwrap_or(compiled.mode));
        self.ids = ids;
        // ANCHOR_END: put_into_force
        Ok(Contents {
            mode: compiled.mode,
            rules: compiled.names.into_iter().zip(assigned.ids).collect(),
            places: compiled.places,
        })
    }
}

fn action(action: &model::Action) -> &'static str {
    match action {
        model::Action::Allow => "allow",
        model::Action::Block => "block",
        model::Action::Log => "log",
        model::Action::RateLimit(_) => "rate_limit",
    }
}

/// The interfaces and the cgroup that were asked for, which are there.
struct Places {
    interfaces: Vec<Interface>,
    cgroup: Option<Cgroup>,
}

impl Places {
    fn find(options: &Options) -> Result<Self, EnforcerError> {
        let names = match &options.interfaces {
            _ if options.wire.is_none() && !options.tc_egress => Vec::new(),
            Some(named) => named.clone(),
            None => interface::names()
                .into_iter()
                .filter(|name| name != decide::LOOPBACK)
                .collect(),
        };
        let mut interfaces = Vec::new();
        for name in &names {
            let interface = Interface::find(name)?;
            if has_ethernet(&interface)? {
                interfaces.push(interface);
            } else if options.interfaces.is_some() || interface.is_up() {
                return Err(EnforcerError::NoEthernet(name.clone()));
            } else {
                log::warn!(
                    "{name}, which is down, is left out: {}",
                    EnforcerError::NoEthernet(name.clone())
                );
            }
        }
        let cgroup = if options.by_cgroup {
            let hierarchy = Hierarchy::find()?;
            let name = options.cgroup.as_deref().unwrap_or("/");
            Some(hierarchy.open(name.as_ref())?)
        } else {
            None
        };
        Ok(Self { interfaces, cgroup })
    }
}

fn has_ethernet(interface: &Interface) -> Result<bool, CannotLookUp> {
    wire::has_ethernet(interface).map_err(|cause| CannotLookUp::Interface {
        name: interface.name.clone(),
        cause,
    })
}

/// The hooks that [`Enforcer::start`] would attach to, each with the interface or the cgroup's folder. Changes nothing.
pub fn places(options: &Options) -> Result<Vec<(&'static str, String)>, EnforcerError> {
    let places = Places::find(options)?;
    let interfaces = places.interfaces.iter();
    let interfaces = interfaces.flat_map(|interface| {
        let hooks = [
            options.wire.map(|wire| wire.hook(interface)),
            options.tc_egress.then(|| key::Hook::TcEgress.name()),
        ];
        hooks.into_iter().flatten().map(|hook| (hook, interface.name.clone()))
    });
    let cgroup = places.cgroup.iter();
    let cgroup = cgroup.flat_map(|cgroup| {
        let programs = cgroup_programs(options);
        programs.map(|program| (program.hook.name(), cgroup.path().display().to_string()))
    });
    Ok(interfaces.chain(cgroup).collect())
}

/// Loads what may be attached at these places, and nothing else: the verifier looks long at each program.
fn load_programs(capacities: &Capacities, options: &Options, places: &Places) -> Result<Ebpf, LoadError> {
    let mut ebpf = object::load(capacities, options.by_cgroup)?;
    if places
        .interfaces
        .iter()
        .any(|interface| options.wire.is_some_and(|wire| wire.tries_xdp(interface)))
    {
        let program: &mut Xdp = load::program(&mut ebpf, XDP, "XDP")?;
        program.load().map_err(|error| load::explain_program(XDP, error))?;
    }
    for TcProgram { name, direction, .. } in TC_PROGRAMS {
        let is_wanted = match direction {
            Direction::Ingress => matches!(options.wire, Some(Wire::Auto | Wire::Tc)),
            Direction::Egress => options.tc_egress,
        };
        if is_wanted && !places.interfaces.is_empty() {
            let program: &mut SchedClassifier = load::program(&mut ebpf, name, "TC")?;
            program.load().map_err(|error| load::explain_program(name, error))?;
        }
    }
    if places.cgroup.is_some() {
        load_cgroup_programs(&mut ebpf, options)?;
    }
    Ok(ebpf)
}

fn load_cgroup_programs(ebpf: &mut Ebpf, options: &Options) -> Result<(), LoadError> {
    for CgroupProgram { name, hook, .. } in cgroup_programs(options) {
        let loaded = if hook.is_of_calls() {
            load::program::<CgroupSockAddr>(ebpf, name, "cgroup_sock_addr")?.load()
        } else {
            load::program::<CgroupSkb>(ebpf, name, "cgroup_skb")?.load()
        };
        loaded.map_err(|error| load::explain_program(name, error))?;
    }
    let program: &mut CgroupSock = load::program(ebpf, NOTE_GROUP, "cgroup_sock")?;
    program.load().map_err(|error| load::explain_program(NOTE_GROUP, error))
}

/// The program of the object that keeps the groups of sockets.
const NOTE_GROUP: &str = "note_group";

/// The program of the object that is attached to drivers.
const XDP: &str = "enforce_xdp";

/// A program of the object that is attached to interfaces.
#[derive(Clone, Copy)]
struct TcProgram {
    name: &'static str,
    hook: key::Hook,
    direction: Direction,
}

const TC_PROGRAMS: [TcProgram; 2] = [
    TcProgram {
        name: "enforce_ingress",
        hook: key::Hook::TcIngress,
        direction: Direction::Ingress,
    },
    TcProgram {
        name: "enforce_leaving",
        hook: key::Hook::TcEgress,
        direction: Direction::Egress,
    },
];

/// A program of the object that is attached to the cgroup.
struct CgroupProgram {
    name: &'static str,
    hook: key::Hook,
    attach_to: Hook,
}

const CGROUP_PROGRAMS: [CgroupProgram; 6] = [
    CgroupProgram {
        name: "enforce_egress",
        hook: key::Hook::CgroupEgress,
        attach_to: Hook::Egress,
    },
    CgroupProgram {
        name: "enforce_socket",
        hook: key::Hook::CgroupIngress,
        attach_to: Hook::Ingress,
    },
    CgroupProgram {
        name: "enforce_connect4",
        hook: key::Hook::Connect4,
        attach_to: Hook::Connect4,
    },
    CgroupProgram {
        name: "enforce_connect6",
        hook: key::Hook::Connect6,
        attach_to: Hook::Connect6,
    },
    CgroupProgram {
        name: "enforce_sendmsg4",
        hook: key::Hook::SendMsg4,
        attach_to: Hook::SendMsg4,
    },
    CgroupProgram {
        name: "enforce_sendmsg6",
        hook: key::Hook::SendMsg6,
        attach_to: Hook::SendMsg6,
    },
];

/// Those of them that are wanted.
fn cgroup_programs(options: &Options) -> impl Iterator<Item = CgroupProgram> {
    let at_calls = options.at_calls;
    let programs = CGROUP_PROGRAMS.into_iter();
    programs.filter(move |program| at_calls || !program.hook.is_of_calls())
}

impl Attached {
    async fn to(places: &Places, options: &Options, ebpf: &mut Ebpf) -> Result<Self, EnforcerError> {
        let (mut xdp, mut tc, mut hooks) = (Vec::new(), Vec::new(), Vec::new());
        for interface in &places.interfaces {
            for TcProgram { name, direction, .. } in TC_PROGRAMS {
                // Those of hooks that are left out this time, too: they would go on enforcing.
                orphans::remove(interface, direction, name)?;
            }
            let mut wanted = TC_PROGRAMS.to_vec();
            if !options.tc_egress {
                wanted.retain(|program| program.direction == Direction::Ingress);
            }
            if let Some(wire) = options.wire {
                let program: &mut Xdp = load::program(ebpf, XDP, "XDP")?;
                if let Some(on_wire) = wire::attach(program, interface, wire).await? {
                    hooks.push(HookStatus {
                        hook: key::Hook::XdpIngress.name().into(),
                        at: interface.name.clone(),
                        attached_by: on_wire.mode.to_string(),
                    });
                    xdp.push(on_wire);
                    wanted.retain(|program| program.direction == Direction::Egress);
                }
            } else {
                wanted.retain(|program| program.direction == Direction::Egress);
            }
            if wanted.is_empty() {
                continue;
            }
            let mut attached = TcHooks::open(interface, TcAttach::Auto)?;
            for TcProgram { name, hook, direction } in wanted {
                let program: &mut SchedClassifier = load::program(ebpf, name, "TC")?;
                attached.attach(program, direction)?;
                hooks.push(HookStatus {
                    hook: hook.name().into(),
                    at: interface.name.clone(),
                    attached_by: attached.way().to_string(),
                });
            }
            tc.push(attached);
        }
        let (mut links, mut groups) = (Vec::new(), None);
        if let Some(cgroup) = &places.cgroup {
            let program: &mut CgroupSock = load::program(ebpf, NOTE_GROUP, "cgroup_sock")?;
            let link = program.attach(cgroup, CgroupAttachMode::Single);
            let link = link.and_then(|link| program.take_link(link));
            groups = Some(link.map_err(|error| load::explain_program(NOTE_GROUP, error))?);
            for CgroupProgram { name, hook, attach_to } in cgroup_programs(options) {
                let fd = if hook.is_of_calls() {
                    load::program::<CgroupSockAddr>(ebpf, name, "cgroup_sock_addr")?.fd()
                } else {
                    load::program::<CgroupSkb>(ebpf, name, "cgroup_skb")?.fd()
                };
                let fd = fd.map_err(|error| load::explain_program(name, error))?;
                links.push(CgroupLink::attach(fd.as_fd(), cgroup, attach_to)?);
                hooks.push(HookStatus {
                    hook: hook.name().into(),
                    at: cgroup.path().display().to_string(),
                    attached_by: "link".into(),
                });
            }
        }
        Ok(Self {
            _xdp: xdp,
            _tc: tc,
            _cgroup: links,
            _groups: groups,
            hooks,
        })
    }
}

fn kernel_release() -> String {
    let read: io::Result<String> = fs::read_to_string("/proc/sys/kernel/osrelease");
    read.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}
