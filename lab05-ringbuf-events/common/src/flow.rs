//! What a socket sends and receives, and whose it is.

use lab02_xdp_firewall_common::transport::TCP;

use crate::tuple::FiveTuple;

/// A flow: one socket and one peer. A connected socket has one of them, another one for each peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The kernel's cookie of the socket: unique for as long as the machine runs.
    pub cookie: u64,
    /// The source is the socket's own side, whichever way a packet goes.
    pub tuple: FiveTuple,
}

const _: () = assert!(size_of::<FlowKey>() == 48);

/// What a flow's packets were. Bytes are those of the IP layer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Packets received.
    pub packets_in: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// When the first packet was seen, in nanoseconds since boot.
    pub first_ns: u64,
    /// When the last one was.
    pub last_ns: u64,
    /// A [`Opened`].
    pub opened: u64,
}

const _: () = assert!(size_of::<FlowCounters>() == 56);

/// Which side began.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It had begun before it was watched.
    Unknown = 0,
    /// The peer.
    ByPeer = 1,
    /// This side.
    Here = 2,
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

impl Opened {
    // ANCHOR: opened
    /// What the first packet that was seen of a flow tells of it.
    #[inline(always)]
    pub fn of_first_packet(protocol: u8, tcp_flags: u8, is_outgoing: bool) -> Self {
        // A SYN alone opens a connection, and a SYN with an ACK answers one that the other side opens.
        let (begins, answers) = match protocol {
            TCP => (tcp_flags & (SYN | ACK) == SYN, tcp_flags & (SYN | ACK) == SYN | ACK),
            _ => (true, false),
        };
        match (begins, answers, is_outgoing) {
            (true, _, true) | (_, true, false) => Self::Here,
            (true, _, false) | (_, true, true) => Self::ByPeer,
            _ => Self::Unknown,
        }
    }
    // ANCHOR_END: opened

    /// From its number; unknown numbers are unknown.
    pub const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::ByPeer,
            2 => Self::Here,
            _ => Self::Unknown,
        }
    }
}

/// The process that made a socket, or last connected it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// When, in nanoseconds since boot.
    pub since_ns: u64,
    /// The kernel's id of its cgroup.
    pub cgroup: u64,
    /// The process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<Owner>() == 40);

#[cfg(target_os = "linux")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Owner {}
}
