//! The classifier on hash tables of the host.

use std::{collections::HashMap, net::IpAddr};

use enforcer_policy::{Content, Packet, Transport, model::Direction};
use lab01_count_packets_common::headers::Address;
use lab04_cgroup_policy::compile::Compiled;
use lab04_cgroup_policy_common::{
    classifier::{self, EGRESS, Entry, INGRESS, Tables},
    key::{KeyV4, KeyV6},
};

/// Hash tables in the place of maps.
pub struct Host {
    pub compiled: Compiled,
    v4: HashMap<KeyV4, Entry>,
    v6: HashMap<KeyV6, Entry>,
}

impl Host {
    pub fn new(compiled: Compiled) -> Self {
        Self {
            v4: compiled.v4.iter().copied().collect(),
            v6: compiled.v6.iter().copied().collect(),
            compiled,
        }
    }
}

impl Tables for Host {
    fn entry_v4(&self, key: &KeyV4) -> Option<Entry> {
        self.v4.get(key).copied()
    }

    fn entry_v6(&self, key: &KeyV6) -> Option<Entry> {
        self.v6.get(key).copied()
    }
}

/// What the classifier is asked about a packet.
pub fn facts(packet: &Packet) -> classifier::Packet {
    let Content::Ip(ip) = &packet.content else {
        panic!("only IP packets reach the classifier")
    };
    let (ports, icmp_type) = match ip.transport {
        Transport::Ports { source, destination } => (Some([source, destination]), 0),
        Transport::Icmp { kind, .. } => (None, kind),
        Transport::None => (None, 0),
    };
    classifier::Packet {
        ip_version: if ip.source.is_ipv4() { 4 } else { 6 },
        protocol: ip.protocol.0,
        icmp_type,
        has_ports: ports.is_some(),
        ports: ports.unwrap_or_default(),
        source: address(ip.source),
        destination: address(ip.destination),
    }
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::from_ipv4(address.octets()),
        IpAddr::V6(address) => Address::from_ipv6(address.octets()),
    }
}

pub fn direction(packet: &Packet) -> usize {
    match packet.direction {
        Direction::Egress => EGRESS,
        Direction::Ingress => INGRESS,
    }
}
