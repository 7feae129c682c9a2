//! Sets of ports: for each of the 65,536, a word with a bit for each thing that is done with it.

use crate::transport::{TCP, UDP};

/// What is done with a port; each has a bit for each class of protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Packets to this port are dropped.
    BlockDestination = 0,
    /// Packets from this port are dropped.
    BlockSource = 1,
    /// Packets to this port pass, unless something blocks them.
    AllowDestination = 2,
}

/// The protocols that have ports, as far as rules tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// SCTP, DCCP and UDP-Lite: matched by rules that name no protocol.
    Other = 2,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Other];

    /// The class of a protocol that has ports.
    #[inline(always)]
    pub const fn of(protocol: u8) -> Self {
        match protocol {
            TCP => Self::Tcp,
            UDP => Self::Udp,
            _ => Self::Other,
        }
    }
}

/// The bit of a use and a class in the word of a port.
#[inline(always)]
pub const fn bit(port_use: Use, class: Class) -> u32 {
    1 << (port_use as u32 * 3 + class as u32)
}
