//! What the same packet costs in each lab's program, with nothing in its policy.

use std::os::fd::AsFd as _;

use anyhow::Result;
use aya::programs::{ProgramFd, SchedClassifier, Xdp};
use enforcer_policy::{Policy, model::Mode};
use lab01_count_packets::load;
use lab02_xdp_firewall::tables::FirewallTables;
use lab03_tc_egress::tables::ProgramTables;
use lab04_cgroup_policy::{attach::Hook, compile::compile, enforcement};
use testbed::{
    bpf::{ProgramType, empty_program},
    figures::{self, Figures},
    packets,
};

use super::{hooks::row, place, xdp_context};
use crate::loaded::{Loaded, bring};

/// How many flows lab 03 and lab 06 have room for, and how many entries lab 04 has.
const ROOM: u32 = 1_024;

/// The same datagram in the program of each lab, which lets it pass.
pub fn by_labs(rounds: u8) -> Result<Figures> {
    let (link, at_tc) = place()?;
    let frame = packets::ethernet()
        .ipv4("198.51.100.7", "192.0.2.1")
        .udp(1000, 53)
        .payload([0; 18])
        .build();
    let at_xdp = xdp_context(&frame, link.left.index);
    let mut policy = Policy::allow_all("open");
    policy.mode = Mode::Block;
    let (following, not_following) = (Loaded::following(ROOM, &policy)?, Loaded::with(&policy)?);
    let (counting, firewall, tracking) = (counting()?, firewall()?, tracking()?);
    let in_cgroup = in_cgroup(&policy)?;
    let egress = in_cgroup.program(Hook::Egress)?;
    let [xdp, tc, cgroup] = [ProgramType::Xdp, ProgramType::SchedCls, ProgramType::CgroupSkb].map(empty_program);
    let (xdp, tc, cgroup) = (xdp?, tc?, cgroup?);
    let (in_frame, in_packet) = ((&frame[..], &at_xdp[..]), (&frame[..], &at_tc[..]));
    let mut rows = vec![
        row("lab 01, XDP: counted", in_frame, &xdp, counting.as_fd()),
        row("lab 02, XDP: no rule", in_frame, &xdp, firewall.as_fd()),
        row("lab 06, XDP: no rule, no flows", in_frame, &xdp, not_following.xdp()),
        row("lab 03, TC ingress: a known flow", in_packet, &tc, tracking.as_fd()),
        row("lab 06, TC ingress: a known flow", in_packet, &tc, following.ingress()),
        row("lab 04, cgroup_skb egress: no rule", in_packet, &cgroup, egress.as_fd()),
        row(
            "lab 06, cgroup_skb egress: no rule, no flows",
            in_packet,
            &cgroup,
            not_following.egress(),
        ),
        row(
            "lab 06, cgroup_skb egress: a known flow",
            in_packet,
            &cgroup,
            following.egress(),
        ),
    ];
    let _inside = link.left.host.enter()?;
    Ok(figures::measure(&mut rows, rounds)?)
}

/// Lab 01's. Here and below, a program holds the maps that it uses.
fn counting() -> Result<ProgramFd> {
    let mut ebpf = load::load_object(lab01_count_packets::OBJECT, &[])?;
    bring(&mut ebpf, "count_packets", Xdp::load)
}

/// Lab 02's.
fn firewall() -> Result<ProgramFd> {
    let sizes = lab02_xdp_firewall::tables::map_sizes(1);
    let mut ebpf = load::load_object(lab02_xdp_firewall::OBJECT, &sizes)?;
    let program = bring(&mut ebpf, "firewall", Xdp::load)?;
    FirewallTables::take(&mut ebpf, 1)?.apply(&lab02_xdp_firewall::policy::Policy::NO_RULES)?;
    Ok(program)
}

/// Lab 03's, at ingress.
fn tracking() -> Result<ProgramFd> {
    let policy = lab03_tc_egress::policy::Policy {
        max_flows: ROOM,
        ..lab03_tc_egress::policy::Policy::default()
    };
    let mut ebpf = lab03_tc_egress::tables::load(ROOM)?;
    let [(name, _), _] = lab03_tc_egress::PROGRAMS;
    let program = bring(&mut ebpf, name, SchedClassifier::load)?;
    ProgramTables::put(&mut ebpf, &policy)?;
    Ok(program)
}

/// Lab 04's.
fn in_cgroup(policy: &Policy) -> Result<enforcement::Loaded> {
    let mut loaded = enforcement::Loaded::load(lab04_cgroup_policy::OBJECT, ROOM, None)?;
    let compiled = compile(policy, ROOM).map_err(|refusals| anyhow::anyhow!("{}", refusals[0]))?;
    loaded.tables.apply(&compiled)?;
    loaded.tables.set_blocking(true)?;
    Ok(loaded)
}
