//! A compiled policy: records of a fixed size that lie in arrays.
//!
//! Each condition of a rule becomes a bit in masks, bit `n` for the rule that is number `n` in the order of matching. For
//! every field there is a table from what stands in a packet to the mask of the rules that are content with it: addresses
//! and ports are looked up in search trees over the intervals in which the same rules are content, protocols and ICMP
//! types and codes are indices. The rules that match are what all masks have in common.

use lab02_xdp_firewall_common::prefix_set::tree::{NodeV4, NodeV6, Tree};

use crate::key::Essential;

/// How many rules a policy can have: a bit each in a word.
pub const MAX_RULES: usize = 64;

/// How many slots there are: the policy in force, and the one that is being written.
pub const SLOTS: u32 = 2;

/// What a rule does with the packets that it matches.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They pass.
    Allow = 0,
    /// They are blocked.
    Block = 1,
    /// They are counted, and the next rule that matches decides.
    Log = 2,
}

/// Which mode holds for a rule.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleMode {
    /// That of the control word.
    AsControl = 0,
    /// Its own: what it would block is counted, and passes.
    Observe = 1,
    /// Its own: what it blocks is blocked.
    Block = 2,
}

/// A rule, as far as it is not in the masks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Where it is counted: the same for a rule of this name in every policy.
    pub id: u32,
    /// An [`Action`].
    pub action: u8,
    /// A [`RuleMode`].
    pub mode: u8,
    /// Fills up to a multiple of eight bytes.
    pub padding: [u8; 2],
}

const _: () = assert!(size_of::<Rule>() == 8);

/// A field that is looked up in a tree.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// The tree, over the first values of all intervals but the lowest; empty if every rule is content with every value.
    pub tree: Tree,
    /// The index of the mask of the tree's first position.
    pub first_mask: u32,
    /// Fills up to a multiple of eight bytes.
    pub padding: u32,
}

/// A policy, but for the content of the arrays. Read once a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Source addresses of IPv4.
    pub source_v4: Field,
    /// Destination addresses of IPv4.
    pub destination_v4: Field,
    /// Source addresses of IPv6.
    pub source_v6: Field,
    /// Destination addresses of IPv6.
    pub destination_v6: Field,
    /// Source ports.
    pub source_port: Field,
    /// Destination ports.
    pub destination_port: Field,
    /// The rules that hold for incoming packets.
    pub ingress: u64,
    /// The rules that hold for outgoing packets.
    pub egress: u64,
    /// The rules that are content with packets that have no ports.
    pub without_ports: u64,
    /// The rules that are content with packets that have no ICMP type.
    pub without_icmp: u64,
    /// The rules that are content with frames that are not IP.
    pub without_ip: u64,
    /// The rules that only count.
    pub log: u64,
    /// By [`Essential`], the rules that name it.
    pub named: [u64; Essential::COUNT as usize],
    /// The index of the mask of protocol 0; those of the others follow.
    pub first_protocol: u32,
    /// The index of the mask of ICMP type 0, as above.
    pub first_icmp_type: u32,
    /// The index of the mask of ICMP code 0, as above.
    pub first_icmp_code: u32,
    /// The index of the first rule.
    pub first_rule: u32,
    /// Any number: see [`Veil`](crate::veil::Veil).
    pub veil: u64,
    /// 1 if incoming packets that no rule matches are blocked.
    pub block_ingress: u8,
    /// 1 if outgoing packets that no rule matches are blocked.
    pub block_egress: u8,
    /// 1 if malformed packets are blocked.
    pub block_malformed: u8,
    /// 1 if the essentials pass where no rule names them.
    pub essentials: u8,
    /// Fills up to a multiple of eight bytes.
    pub padding: [u8; 4],
}

const _: () = assert!(size_of::<Config>() == 6 * 72 + 10 * 8 + 4 * 4 + 8 + 8);

/// The arrays that hold the content of all slots.
///
/// In an eBPF program they are maps; in `explain` and in tests they are slices.
pub trait Tables {
    /// The node at `index`; `None` beyond the array's end.
    fn node_v4(&self, index: u32) -> Option<&NodeV4>;
    /// The node at `index`; `None` beyond the array's end.
    fn node_v6(&self, index: u32) -> Option<&NodeV6>;
    /// The mask at `index`; `None` beyond the array's end.
    fn mask(&self, index: u32) -> Option<u64>;
    /// The rule at `index`; `None` beyond the array's end.
    fn rule(&self, index: u32) -> Option<Rule>;
}

/// Where in the arrays the content of a slot begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// In the array of IPv4 nodes.
    pub node_v4: u32,
    /// In the array of IPv6 nodes.
    pub node_v6: u32,
    /// In the array of masks.
    pub mask: u32,
    /// In the array of rules.
    pub rule: u32,
}

impl Config {
    /// The same policy, with its content moved from the arrays' beginning to `origin`.
    #[must_use]
    pub fn moved_to(mut self, origin: Origin) -> Self {
        for field in [
            &mut self.source_v4,
            &mut self.destination_v4,
            &mut self.source_port,
            &mut self.destination_port,
        ] {
            field.move_by(origin.node_v4, origin.mask);
        }
        for field in [&mut self.source_v6, &mut self.destination_v6] {
            field.move_by(origin.node_v6, origin.mask);
        }
        self.first_protocol += origin.mask;
        self.first_icmp_type += origin.mask;
        self.first_icmp_code += origin.mask;
        self.first_rule += origin.rule;
        self
    }
}

impl Field {
    fn move_by(&mut self, nodes: u32, masks: u32) {
        for level in &mut self.tree.levels {
            level.first += nodes;
        }
        self.first_mask += masks;
    }
}

#[cfg(not(target_arch = "bpf"))]
mod pod {
    // SAFETY: `#[repr(C)]`, integers with the padding spelt out, any bits are valid.
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Rule {}
}
