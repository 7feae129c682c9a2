//! The addresses that links are given: deterministic, and from the ranges reserved for documentation.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The addresses of one link or one switch, by number.
///
/// | subnet | IPv4 (RFC 5737, then 10.0.0.0/8) | IPv6 (RFC 3849) | MAC (locally administered) |
/// |---|---|---|---|
/// | 0 | 192.0.2.0/24 | `2001:db8:0:1::/64` | `02:00:00:00:00:HOST` |
/// | 1 | 198.51.100.0/24 | `2001:db8:0:2::/64` | `02:00:00:00:01:HOST` |
/// | 2 | 203.0.113.0/24 | `2001:db8:0:3::/64` | `02:00:00:00:02:HOST` |
/// | 3, 4, … | 10.0.0.0/24, 10.0.1.0/24, … | `2001:db8:0:4::/64`, … | `02:00:00:00:03:HOST`, … |
///
/// The hosts of a subnet are numbered from 1 in the order in which they are connected: 192.0.2.1, 192.0.2.2, ….
/// [`Host::join`](crate::Host::join) takes the first subnet that neither host is in yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet(pub u16);

impl Subnet {
    /// The IPv4 prefix length of every subnet.
    pub const IPV4_PREFIX_LENGTH: u8 = 24;
    /// The IPv6 prefix length of every subnet.
    pub const IPV6_PREFIX_LENGTH: u8 = 64;

    /// The IPv4 address of host number `host`.
    pub fn ipv4(self, host: u8) -> Ipv4Addr {
        match self.0 {
            0 => Ipv4Addr::new(192, 0, 2, host),
            1 => Ipv4Addr::new(198, 51, 100, host),
            2 => Ipv4Addr::new(203, 0, 113, host),
            further => {
                let [high, low] = (further - 3).to_be_bytes();
                Ipv4Addr::new(10, high, low, host)
            }
        }
    }

    /// The IPv6 address of host number `host`.
    pub fn ipv6(self, host: u8) -> Ipv6Addr {
        // 65,535 + 1 would wrap to subnet 0's; there are never that many links.
        Ipv6Addr::new(0x2001, 0xdb8, 0, self.0.wrapping_add(1), 0, 0, 0, host.into())
    }

    /// The MAC address of host number `host`.
    pub fn mac(self, host: u8) -> [u8; 6] {
        let [high, low] = self.0.to_be_bytes();
        [2, 0, 0, high, low, host]
    }
}

#[cfg(test)]
mod tests {
    use super::Subnet;

    #[test]
    fn subnets_are_documentation_ranges_first_and_private_ones_then() {
        let ipv4 = [0, 1, 2, 3, 4, 259].map(|number| Subnet(number).ipv4(7).to_string());
        assert_eq!(
            ipv4,
            [
                "192.0.2.7",
                "198.51.100.7",
                "203.0.113.7",
                "10.0.0.7",
                "10.0.1.7",
                "10.1.0.7"
            ]
        );
        assert_eq!(Subnet(0).ipv6(1).to_string(), "2001:db8:0:1::1");
        assert_eq!(Subnet(2).ipv6(0x2a).to_string(), "2001:db8:0:3::2a");
        assert_eq!(Subnet(0x102).mac(3), [2, 0, 0, 1, 2, 3]);
    }
}
