//! Who sends the packet that TC egress sees, and whether it was decided about before.

/// What TC egress can learn of the socket that a packet belongs to (`skb->sk`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// There is no socket: the packet is forwarded, or the kernel's own (ARP, IGMP).
    Nobody = 0,
    /// A socket of IPv4 or IPv6, one of the kernel's for ICMP, neighbour discovery and resets included.
    Inet = 1,
    /// A connection that is not accepted yet (`TCP_NEW_SYN_RECV`), which stands for the listening socket.
    Request = 2,
    /// The rest of a connection (`TCP_TIME_WAIT`).
    TimeWait = 3,
    /// A socket of another family: one that sends frames as they are (`AF_PACKET`).
    Other = 4,
}

impl Sender {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Nobody, Self::Inet, Self::Request, Self::TimeWait, Self::Other];

    /// Of a socket of this family and in this state; `is_full` is what `bpf_sk_fullsock` says.
    #[inline(always)]
    pub const fn of_socket(family: u32, state: u32, is_full: bool) -> Self {
        match (is_full, family, state) {
            (true, AF_INET | AF_INET6, _) => Self::Inet,
            (false, _, TCP_NEW_SYN_RECV) => Self::Request,
            (false, _, TCP_TIME_WAIT) => Self::TimeWait,
            _ => Self::Other,
        }
    }

    // ANCHOR: decided
    /// Whether `cgroup_skb` egress at the root has decided about the packet already, so that TC egress lets it be.
    ///
    /// It runs where the packet has a full inet socket, or a request whose listener is one (`sk_to_full_sk` and
    /// `BPF_CGROUP_RUN_PROG_INET_EGRESS` in `include/linux/bpf-cgroup.h`), and nowhere else.
    #[inline(always)]
    pub const fn is_decided_in_cgroup(self) -> bool {
        matches!(self, Self::Inet | Self::Request)
    }
    // ANCHOR_END: decided
}

/// `AF_INET` and `AF_INET6` of `include/linux/socket.h`.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// `include/net/tcp_states.h`.
const TCP_TIME_WAIT: u32 = 6;
const TCP_NEW_SYN_RECV: u32 = 12;

/// A packet at a hook of the way out, as a test's program notes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// `bpf_get_socket_cookie`; 0 without a socket.
    pub cookie: u64,
    /// `bpf_skb_cgroup_id`; 0 without a socket of a cgroup.
    pub cgroup: u64,
    /// 0 for `cgroup_skb` egress, 1 for TC egress.
    pub hook: u32,
    /// The interface that it leaves by.
    pub interface: u32,
    /// `skb->ingress_ifindex`: the interface that it came in by.
    pub came_in_by: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->pkt_type`.
    pub packet_type: u32,
    /// `bpf_get_socket_uid`.
    pub uid: u32,
    /// `skb->protocol`, big-endian.
    pub ethertype_be: u32,
    /// A [`Sender`].
    pub sender: u32,
    /// `skb->sk->family`; 0 without a socket.
    pub family: u32,
    /// `skb->sk->state`; 0 without a socket.
    pub state: u32,
    /// How many bytes there are of `head`.
    pub head_len: u32,
    /// Fills up.
    pub padding: u32,
    /// The packet's first bytes, behind the Ethernet header.
    pub head: [u8; 64],
}

const _: () = assert!(size_of::<Sighting>() == 128);

#[cfg(test)]
mod tests {
    use super::Sender;

    #[test]
    fn only_full_inet_sockets_and_requests_were_decided_about() {
        let of = |family, state, is_full| Sender::of_socket(family, state, is_full);
        for (sender, expected, is_decided) in [
            (of(2, 1, true), Sender::Inet, true),
            (of(10, 7, true), Sender::Inet, true),
            (of(2, 12, false), Sender::Request, true),
            (of(10, 6, false), Sender::TimeWait, false),
            (of(17, 0, true), Sender::Other, false),
            (Sender::Nobody, Sender::Nobody, false),
        ] {
            assert_eq!((sender, sender.is_decided_in_cgroup()), (expected, is_decided));
        }
    }
}
