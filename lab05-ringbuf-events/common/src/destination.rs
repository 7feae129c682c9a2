//! Whether what a process sends, or wants to connect to, is wanted: by destination address and port.

use lab02_xdp_firewall_common::{
    firewall::{Config, Reason, Tables},
    ports::{self, Class, Use},
    prefix_set::PrefixSet,
    transport::{TCP, UDP},
};

use crate::tuple::FiveTuple;

/// Judges a destination by the tables that lab02 judges sources by: who may send nothing here is sent nothing either,
/// and a port that is closed here is not called elsewhere.
#[inline(always)]
pub fn judge<T: Tables>(tuple: &FiveTuple, tables: &T, config: &Config) -> Reason {
    // ANCHOR: judge
    if is_in(&config.block, tuple, tables) {
        return Reason::Address;
    }
    let has_ports = matches!(tuple.protocol, TCP | UDP);
    let uses = if has_ports && config.port_bits != 0 {
        tables
            .port_word(config.first_port + u32::from(tuple.destination_port))
            .unwrap_or(0)
    } else {
        0
    };
    let class = Class::of(tuple.protocol);
    if uses & ports::bit(Use::BlockDestination, class) != 0 {
        Reason::Port
    } else if uses & ports::bit(Use::AllowDestination, class) != 0 || is_in(&config.allow, tuple, tables) {
        Reason::Allowed
    } else if config.drop_by_default == 0 {
        Reason::PassedByDefault
    } else {
        Reason::DroppedByDefault
    }
    // ANCHOR_END: judge
}

/// Whether a set holds the destination. A function of its own, as it is asked twice and wants stack each time.
#[inline(never)]
fn is_in<T: Tables>(set: &PrefixSet, tuple: &FiveTuple, tables: &T) -> bool {
    if tuple.ip_version == 4 {
        !set.is_empty_v4() && set.contains_v4(tables, tuple.destination.ipv4())
    } else {
        !set.is_empty_v6() && set.contains_v6(tables, &tuple.destination.ipv6())
    }
}
