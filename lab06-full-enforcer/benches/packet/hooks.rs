//! What the same decision costs at each hook.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::Result;
use enforcer_policy::model::{Action, Direction, Range, Rule};
use testbed::{
    bpf::{ProgramType, empty_program},
    figures::{self, Figures, Row},
};

use super::{place, repeat, xdp_context};
use crate::{
    loaded::Loaded,
    random::Dice,
    shapes::{self, Shape},
};

/// A packet that belongs to no flow, at every hook.
pub fn by_hooks(rounds: u8) -> Result<Figures> {
    let (link, context) = place()?;
    let mut dice = Dice::new(6);
    let mut policy = shapes::policy(Shape::Acl, 1_000, &mut dice);
    let frame = shapes::frame(&policy, &mut dice);
    let loaded = Loaded::with(&policy)?;
    let mut by_user = Rule::new("not-for-users", Action::Block);
    by_user.direction = Some(Direction::Ingress);
    by_user.uid = vec![Range {
        first: 1000,
        last: 1999,
    }];
    policy.rules.push(by_user);
    let by_user = Loaded::with(&policy)?;
    let [tc, xdp, cgroup] = [ProgramType::SchedCls, ProgramType::Xdp, ProgramType::CgroupSkb].map(empty_program);
    let (tc, xdp, cgroup) = (tc?, xdp?, cgroup?);
    let at_xdp = xdp_context(&frame, link.left.index);
    let (packet, packet_at_xdp) = ((&frame[..], &context[..]), (&frame[..], &at_xdp[..]));
    let mut rows = vec![
        row("XDP", packet_at_xdp, &xdp, loaded.xdp()),
        row("TC ingress", packet, &tc, loaded.ingress()),
        row("TC egress", packet, &tc, loaded.leaving()),
        row("cgroup_skb egress", packet, &cgroup, loaded.egress()),
        row(
            "cgroup_skb egress, a rule names users",
            packet,
            &cgroup,
            by_user.egress(),
        ),
        row(
            "cgroup_skb ingress, no rule names a socket",
            packet,
            &cgroup,
            loaded.socket(),
        ),
        row(
            "cgroup_skb ingress, a rule names users",
            packet,
            &cgroup,
            by_user.socket(),
        ),
    ];
    let _inside = link.left.host.enter()?;
    Ok(figures::measure(&mut rows, rounds)?)
}

/// A packet with its context in an empty program, and in another one.
pub fn row<'a>(
    name: &str,
    (frame, context): (&'a [u8], &'a [u8]),
    empty: &'a OwnedFd,
    program: BorrowedFd<'a>,
) -> Row<'a> {
    Row::new(
        name,
        move || repeat(empty.as_fd(), frame, context),
        move || repeat(program, frame, context),
    )
}
