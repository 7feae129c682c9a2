//! The places in a cgroup's traffic where programs run.

/// Where a program runs.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// `cgroup_skb`: IP packets that the cgroup's sockets send.
    Egress = 0,
    /// `cgroup_skb`: IP packets that the cgroup's sockets are to get.
    Ingress = 1,
    /// `cgroup_sock_addr`: `connect` of an IPv4 socket.
    Connect4 = 2,
    /// `cgroup_sock_addr`: `connect` of an IPv6 socket, also to an IPv4-mapped address.
    Connect6 = 3,
    /// `cgroup_sock_addr`: `sendto` and `sendmsg` of an unconnected IPv4 UDP socket, or to an IPv4-mapped address.
    SendMsg4 = 4,
    /// `cgroup_sock_addr`: `sendto` and `sendmsg` of an unconnected IPv6 UDP socket.
    SendMsg6 = 5,
}

/// How many hooks there are.
pub const HOOKS: usize = 6;

impl Hook {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; HOOKS] = [
        Self::Egress,
        Self::Ingress,
        Self::Connect4,
        Self::Connect6,
        Self::SendMsg4,
        Self::SendMsg6,
    ];

    /// The index of its counters.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// What people, sections of objects and programs call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::SendMsg4 => "sendmsg4",
            Self::SendMsg6 => "sendmsg6",
        }
    }
}

impl core::fmt::Display for Hook {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
