//! Deciding about a system call, `connect` or `sendmsg`, before there is a packet.
//!
//! Where a packet will go is known by then, and nothing else of it: the kernel chooses source address, source port and
//! interface later. So a call is refused only if its packets would be blocked whatever those are; about all others is decided
//! when there are packets. Whoever is refused is told at once (`EPERM`), and does not wait for an answer that never comes.

use lab02_xdp_firewall_common::transport::{TCP, UDP};
use lab04_cgroup_policy_common::destination::Destination;

use crate::{
    classify::{Classifier, Question},
    counters::Reason,
    key::{Direction, Key, UpperKey},
    table::{Action, Kind, Rule, RuleMode, Tables, has},
};

/// How many prefixes the host can have for itself. If it has more, no calls are refused.
pub const MAX_LOCAL: usize = 4096;

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// [`Reason::Rule`] or [`Reason::Default`].
    pub reason: Reason,
    /// The rule, where one is the reason.
    pub rule: Rule,
}

impl<T: Tables> Classifier<'_, T> {
    /// Whether a call is refused, in block mode, and why.
    ///
    /// Not asked is whether the packets would go by the loopback interface: that is for the program to know. Nor whether it is
    /// of the DHCP client: see [`is_perhaps_dhcp`].
    #[inline(always)]
    pub fn refuses(&self, destination: &Destination) -> Option<Refused> {
        // ANCHOR: refuses
        if self.config.has & has::AT_CALL == 0 || !self.may_be_refused(destination.protocol) {
            return None;
        }
        let question = self.question_of_call(destination);
        let number = self.tables.first_match(question);
        let Some(rule) = self.rule(number) else {
            let default = Refused {
                reason: Reason::Default,
                rule: Rule::default(),
            };
            return (self.config.block_egress != 0).then_some(default);
        };
        let blocks = rule.action == Action::Block as u8 && rule.mode != RuleMode::Observe as u8;
        // ANCHOR_END: refuses
        blocks.then_some(Refused {
            reason: Reason::Rule,
            rule,
        })
    }

    /// A segment with SYN belongs to no flow. A datagram may belong to one where flows are followed: be an answer, or of what
    /// an earlier policy has let begin.
    #[inline(always)]
    fn may_be_refused(&self, protocol: u8) -> bool {
        match protocol {
            TCP => true,
            UDP => self.config.flows.established_buckets == 0,
            _ => false,
        }
    }

    /// Of the boxes that are asked, all fields are open that are not known here: their classes are of no account.
    #[inline(always)]
    fn question_of_call(&self, destination: &Destination) -> Question {
        let key = Key {
            source: destination.address,
            destination: destination.address,
            ip_version: destination.ip_version,
            upper: UpperKey {
                destination_port: destination.port,
                protocol: destination.protocol,
                has_ports: 1,
                ..UpperKey::EMPTY
            },
        };
        self.question_of_destination(&key, Direction::Egress, Kind::Ordinary as u32)
    }
}

/// Whether a call may be of the host's own DHCP client, whose packets are essential: RFC 2131 section 4.1, RFC 8415 section
/// 7.2. The port that tells is the one that is not known.
#[inline(always)]
pub fn is_perhaps_dhcp(destination: &Destination) -> bool {
    destination.protocol == UDP && matches!((destination.ip_version, destination.port), (4, 67) | (6, 547))
}
