//! Where a socket is to connect or send to, before there is a packet.

use lab01_count_packets_common::headers::Address;

/// What `connect` or `sendmsg` was asked for. There is no source yet: the kernel chooses it later.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// The address; an IPv4 address that was written as an IPv6 one (`::ffff:192.0.2.1`) is the IPv4 address.
    pub address: Address,
    /// The port, in host order; 0 for a socket without ports (`SOCK_RAW`), and where none was given.
    pub port: u16,
    /// 4 or 6.
    pub ip_version: u8,
    /// The socket's protocol number.
    pub protocol: u8,
    /// Fills up to a multiple of eight bytes.
    pub padding: [u8; 4],
}

const _: () = assert!(size_of::<Destination>() == 24);

impl Destination {
    /// Of an IPv4 address, a port in host order and a protocol number.
    #[inline(always)]
    pub const fn ipv4(octets: [u8; 4], port: u16, protocol: u8) -> Self {
        Self {
            address: Address::from_ipv4(octets),
            port,
            ip_version: 4,
            protocol,
            padding: [0; 4],
        }
    }

    /// Of an IPv6 address, a port in host order and a protocol number.
    ///
    /// An IPv4-mapped address (RFC 4291 section 2.5.5.2) becomes an IPv4 one: what such a socket sends are IPv4 packets,
    /// and a rule on them must not be walked around by the way in which an address is written.
    #[inline(always)]
    pub const fn ipv6(octets: [u8; 16], port: u16, protocol: u8) -> Self {
        // ANCHOR: mapped
        if let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] = octets {
            return Self::ipv4([a, b, c, d], port, protocol);
        }
        // ANCHOR_END: mapped
        Self {
            address: Address::from_ipv6(octets),
            port,
            ip_version: 6,
            protocol,
            padding: [0; 4],
        }
    }
}

// SAFETY: `#[repr(C)]`, integers, no padding, any bits are valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Destination {}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::Ipv6Addr;

    use super::*;

    fn ipv6(text: &str) -> Destination {
        Destination::ipv6(text.parse::<Ipv6Addr>().unwrap().octets(), 443, 6)
    }

    #[test]
    fn an_ipv4_mapped_address_is_an_ipv4_address() {
        assert_eq!(ipv6("::ffff:192.0.2.1"), Destination::ipv4([192, 0, 2, 1], 443, 6));
    }

    #[test]
    fn no_other_ipv6_address_is_one() {
        for text in [
            "::192.0.2.1",
            "64:ff9b::192.0.2.1",
            "::fffe:192.0.2.1",
            "::1",
            "1::ffff:192.0.2.1",
        ] {
            let destination = ipv6(text);
            assert_eq!(destination.ip_version, 6, "{text}");
            assert_eq!(destination.address.ipv6(), text.parse::<Ipv6Addr>().unwrap().octets());
        }
    }
}
