//! What a packet costs whose flow is known, and one that begins a flow.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Result, ensure};
use enforcer_policy::{
    Policy,
    model::{Action, Address, Direction, Prefix, Protocol, Range, Rule},
};
use lab01_count_packets::text::grouped;
use lab03_tc_egress::policy::half_open_flows;
use testbed::{
    bpf::{ProgramType, empty_program},
    figures::{self, Figures, Row},
    packets::{self, Packet},
    walk::{Differs, Draw, PORTS, Strangers, shake_hands},
};

use super::{RUNS, place, repeat, xdp_context};
use crate::{
    loaded::Loaded,
    random::Dice,
    shapes::{self, Shape},
};

/// How many flows are followed, unless the enforcer is told otherwise, and how many of them are there.
pub const FOLLOWED: u32 = 65_536;
const ESTABLISHED: u32 = 50_000;

/// Policies of so many rules.
const RULES: [usize; 4] = [10, 1_000, 10_000, 100_000];

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The first client with an established flow, and the first of those who only send a SYN.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
const STRANGERS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 0);

/// The same flow's packet again and again, another flow's each time, and a new flow each time.
pub fn by_flows(rounds: u8) -> Result<Figures> {
    let (link, context) = place()?;
    let inside = link.left.host.enter()?;
    let filled: Vec<Filled> = RULES
        .into_iter()
        .map(|rules| Filled::with(rules, &context))
        .collect::<Result<_>>()?;
    let [tc, xdp, cgroup] = [ProgramType::SchedCls, ProgramType::Xdp, ProgramType::CgroupSkb].map(empty_program);
    let (tc, xdp, cgroup) = (tc?, xdp?, cgroup?);
    let (inwards, answer) = (inwards_from(CLIENTS).ack().build(), answer_to(CLIENTS).ack().build());
    let at_xdp = xdp_context(&inwards, link.left.index);
    let mut rows: Vec<Row<'_>> = Vec::new();
    for filled in &filled {
        rows.push(filled.established("", (&inwards, &context), &tc, filled.loaded.ingress()));
        rows.push(filled.spread(&inwards, &tc));
        rows.push(filled.begun(&tc));
    }
    let some = &filled[1];
    let loaded = &some.loaded;
    rows.push(some.established(", at XDP", (&inwards, &at_xdp), &xdp, loaded.xdp()));
    rows.push(some.established(", at TC egress", (&answer, &context), &tc, loaded.leaving()));
    rows.push(some.established(", at cgroup_skb egress", (&answer, &context), &cgroup, loaded.egress()));
    let figures = figures::measure(&mut rows, rounds)?;
    drop(rows);
    drop(inside);
    for filled in &filled {
        let begun = u64::from(ESTABLISHED) + u64::from(rounds) * u64::from(RUNS);
        let created = filled.loaded.flow_events()?.created;
        ensure!(created > begun, "of {begun} flows only {created} have begun");
    }
    Ok(figures)
}

/// The programs with established flows, and as many half-open ones as there is room for.
struct Filled {
    name: String,
    loaded: Loaded,
    clients: Draw,
    strangers: Strangers,
}

impl Filled {
    fn with(rules: usize, context: &[u8]) -> Result<Self> {
        let filled = Self {
            name: format!("acl, {} rules", grouped(rules as u64)),
            loaded: Loaded::following(FOLLOWED, &policy(rules))?,
            clients: Draw::from(CLIENTS, ESTABLISHED, Differs::Source)?.in_context(context),
            strangers: Strangers::from(STRANGERS, SERVER)?.in_context(context),
        };
        let both = [filled.loaded.ingress(), filled.loaded.leaving()];
        shake_hands(both, context, CLIENTS, SERVER, ESTABLISHED)?;
        let events = filled.loaded.flow_events()?;
        ensure!(
            events.established == u64::from(ESTABLISHED),
            "of {ESTABLISHED} flows {} are established",
            events.established
        );
        // Twice as many as have places, so that each new one takes the place of another one.
        let half_open = 4 * half_open_flows(FOLLOWED);
        filled.strangers.run(filled.loaded.ingress(), half_open)?;
        Ok(filled)
    }

    /// What one client sends, or gets, again and again.
    fn established<'a>(
        &'a self,
        at: &str,
        (frame, context): (&'a [u8], &'a [u8]),
        empty: &'a OwnedFd,
        program: BorrowedFd<'a>,
    ) -> Row<'a> {
        Row::new(
            format!("{}: established{at}", self.name),
            move || repeat(empty.as_fd(), frame, context),
            move || repeat(program, frame, context),
        )
    }

    /// What any of the clients sends.
    fn spread<'a>(&'a self, frame: &'a [u8], empty: &'a OwnedFd) -> Row<'a> {
        let measure = move |program| Ok(self.clients.run(program, frame, RUNS)?.duration_ns);
        Row::new(
            format!(
                "{}: established, spread over {}",
                self.name,
                grouped(ESTABLISHED.into())
            ),
            move || measure(empty.as_fd()),
            move || measure(self.loaded.ingress()),
        )
    }

    /// What somebody else sends each time, a SYN, which begins a flow.
    fn begun<'a>(&'a self, empty: &'a OwnedFd) -> Row<'a> {
        let measure = move |program| Ok(self.strangers.run(program, RUNS)?.duration_ns);
        Row::new(
            format!("{}: a new flow each time", self.name),
            move || measure(empty.as_fd()),
            move || measure(self.loaded.ingress()),
        )
    }
}

/// Access lists, with what the clients want as the last rule. None blocks, or some of the many would block clients first.
fn policy(rules: usize) -> Policy {
    let mut policy = shapes::policy(Shape::Acl, rules - 1, &mut Dice::new(6));
    for rule in &mut policy.rules {
        rule.action = Action::Allow;
    }
    let mut served = Rule::new("served", Action::Allow);
    served.direction = Some(Direction::Ingress);
    served.protocol = Some(Protocol::TCP);
    served.destination = vec![Address::Prefix(Prefix::single(SERVER.into()))];
    served.destination_ports = vec![Range::single(PORTS.1)];
    policy.rules.push(served);
    policy
}

fn inwards_from(client: Ipv4Addr) -> Packet {
    packets::ethernet().ipv4(client, SERVER).tcp(PORTS.0, PORTS.1)
}

fn answer_to(client: Ipv4Addr) -> Packet {
    packets::ethernet().ipv4(SERVER, client).tcp(PORTS.1, PORTS.0)
}
