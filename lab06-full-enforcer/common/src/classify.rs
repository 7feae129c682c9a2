//! Which rules match a key: a few look-ups, and what their answers have in common.
//!
//! Bounded whatever the policy: four searches of at most eight steps, and three words by index.

use lab02_xdp_firewall_common::prefix_set::tree::KeyV6;

use crate::{
    key::{Direction, Key},
    table::{Config, Field, Tables},
    veil::Veil,
};

/// Looks a key up, field by field.
#[derive(Clone, Copy)]
pub struct Classifier<'a, T> {
    /// The policy.
    pub config: &'a Config,
    /// The content of the arrays.
    pub tables: &'a T,
    /// Keeps it short for the verifier.
    pub veil: Veil,
}

impl<T: Tables> Classifier<'_, T> {
    /// The rules that match, as a mask: bit `n` for the rule that is number `n` in the order of matching.
    #[inline(always)]
    pub fn matching(&self, key: &Key, direction: Direction) -> u64 {
        // ANCHOR: matching
        self.of_direction(direction)
            & self.content_with_source(key)
            & self.content_with_destination(key)
            & self.content_with_protocol(key)
            & self.content_with_source_port(key)
            & self.content_with_destination_port(key)
            & self.content_with_icmp(key)
        // ANCHOR_END: matching
    }

    /// The rules for packets of this direction.
    #[inline(always)]
    pub fn of_direction(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Ingress => self.config.ingress,
            Direction::Egress => self.config.egress,
        }
    }

    /// The rules that are content with the source address.
    #[inline(always)]
    pub fn content_with_source(&self, key: &Key) -> u64 {
        let content = if key.ip_version == 4 {
            let address = u32::from_be_bytes(key.source.ipv4());
            self.mask_at(position_of_number(&self.config.source_v4, address, self.tables))
        } else {
            let octets = key.source.ipv6();
            self.mask_at(position_of_address_v6(&self.config.source_v6, &octets, self.tables))
        };
        self.veil.over(content)
    }

    /// The rules that are content with the destination address.
    #[inline(always)]
    pub fn content_with_destination(&self, key: &Key) -> u64 {
        let content = if key.ip_version == 4 {
            let address = u32::from_be_bytes(key.destination.ipv4());
            self.mask_at(position_of_number(&self.config.destination_v4, address, self.tables))
        } else {
            let octets = key.destination.ipv6();
            self.mask_at(position_of_address_v6(
                &self.config.destination_v6,
                &octets,
                self.tables,
            ))
        };
        self.veil.over(content)
    }

    /// The rules that are content with the protocol.
    #[inline(always)]
    pub fn content_with_protocol(&self, key: &Key) -> u64 {
        self.mask_at(self.config.first_protocol + u32::from(key.protocol))
    }

    /// The rules that are content with the source port, or with there being none.
    #[inline(always)]
    pub fn content_with_source_port(&self, key: &Key) -> u64 {
        self.of_port(&self.config.source_port, key, key.source_port)
    }

    /// The rules that are content with the destination port, or with there being none.
    #[inline(always)]
    pub fn content_with_destination_port(&self, key: &Key) -> u64 {
        self.of_port(&self.config.destination_port, key, key.destination_port)
    }

    /// The rules that are content with the ICMP type and code, or with there being none.
    #[inline(always)]
    pub fn content_with_icmp(&self, key: &Key) -> u64 {
        let content = if key.has_icmp == 0 {
            self.config.without_icmp
        } else {
            self.mask_at(self.config.first_icmp_type + u32::from(key.icmp_type))
                & self.mask_at(self.config.first_icmp_code + u32::from(key.icmp_code))
        };
        self.veil.over(content)
    }

    #[inline(always)]
    fn of_port(&self, field: &Field, key: &Key, port: u16) -> u64 {
        let content = if key.has_ports == 0 {
            self.config.without_ports
        } else {
            self.mask_at(position_of_number(field, u32::from(port), self.tables))
        };
        self.veil.over(content)
    }

    /// A mask that is not there, which a compiler rules out, is content with nothing.
    #[inline(always)]
    fn mask_at(&self, index: u32) -> u64 {
        self.veil.over(self.tables.mask(index).unwrap_or(0))
    }
}

/// Where there is no mask.
const NOWHERE: u32 = u32::MAX;

// Not inlined, so that the verifier and the stack of 512 bytes meet them one by one and not all at once.

/// The index of the mask for a number.
#[inline(never)]
fn position_of_number<T: Tables>(field: &Field, number: u32, tables: &T) -> u32 {
    match field.tree.position(|index| tables.node_v4(index), number) {
        Some(position) => field.first_mask + position,
        None => NOWHERE,
    }
}

/// The index of the mask for an address of IPv6.
#[inline(never)]
fn position_of_address_v6<T: Tables>(field: &Field, octets: &[u8; 16], tables: &T) -> u32 {
    let address = KeyV6::from_octets(octets);
    match field.tree.position(|index| tables.node_v6(index), address) {
        Some(position) => field.first_mask + position,
        None => NOWHERE,
    }
}
