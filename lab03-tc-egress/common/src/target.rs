//! Where a packet goes: a prefix, and ports.

use lab01_count_packets_common::headers::Address;
use lab02_xdp_firewall_common::ports::Class;

/// A prefix of destinations and a range of destination ports. All zeroes are everything.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The prefix, with the bits behind its length 0.
    pub prefix: Address,
    /// Ones for the bits of the prefix.
    pub mask: Address,
    /// The first port, in host order.
    pub first_port: u16,
    /// The last port, in host order.
    pub last_port: u16,
    /// 4 or 6; 0 for both, without a prefix.
    pub ip_version: u8,
    /// A bit for each [`Class`] of protocols; 0 if ports do not matter.
    pub classes: u8,
    /// Fills up to a multiple of eight bytes.
    pub padding: [u8; 2],
}

const _: () = assert!(size_of::<Target>() == 40);

/// The destination of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// 4 or 6.
    pub ip_version: u8,
    /// The address.
    pub address: Address,
    /// The port and its protocol's class, in a packet that has ports.
    pub port: Option<(Class, u16)>,
}

impl Target {
    // ANCHOR: matches
    /// Whether a packet to `destination` goes here. One without ports matches no port.
    #[inline(always)]
    pub fn matches(&self, destination: &Destination) -> bool {
        if self.ip_version != 0 {
            if self.ip_version != destination.ip_version {
                return false;
            }
            let ([p0, p1], [m0, m1]) = (self.prefix.words(), self.mask.words());
            let [a0, a1] = destination.address.words();
            if ((a0 & m0) ^ p0) | ((a1 & m1) ^ p1) != 0 {
                return false;
            }
        }
        if self.classes == 0 {
            return true;
        }
        let Some((class, port)) = destination.port else {
            return false;
        };
        self.classes & (1 << class as u8) != 0 && (self.first_port..=self.last_port).contains(&port)
    }
    // ANCHOR_END: matches
}

// SAFETY: `#[repr(C)]`, integers with the padding spelt out, any bits are valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Target {}
