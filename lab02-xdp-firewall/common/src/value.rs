//! Prefixes, ports, rates and MAC addresses as people write them.
//!
//! Every error says what is wrong with the text and how it should look.

use alloc::{format, string::String, vec, vec::Vec};
use core::{net::IpAddr, ops::RangeInclusive, str::FromStr};

use crate::{ports::Class, prefix_set::build::Prefix};

/// A prefix as it was written, which may have had host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenPrefix {
    /// With the host bits cleared.
    pub prefix: Prefix,
    /// The address that was written, if it had host bits.
    pub host_bits_of: Option<IpAddr>,
}

impl FromStr for WrittenPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{address:?} is no IP address; write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32"))?;
        let Some(len) = len else {
            return Ok(Self {
                prefix: Prefix::single(address),
                host_bits_of: None,
            });
        };
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = parse_decimal::<u8>(len)
            .and_then(|len| Prefix::new(address, len))
            .ok_or_else(|| format!("/{len} is no prefix length of {address}; it is a number from 0 to {longest}"))?;
        let host_bits_of = (prefix.address() != address).then_some(address);
        Ok(Self { prefix, host_bits_of })
    }
}

/// Ports, and of which protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// From the first to the last.
    pub ports: RangeInclusive<u16>,
    /// All of them if none was named.
    pub classes: Vec<Class>,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (classes, ports) = match text.split_once('/') {
            None => (Class::ALL.to_vec(), text),
            Some(("tcp", ports)) => (vec![Class::Tcp], ports),
            Some(("udp", ports)) => (vec![Class::Udp], ports),
            Some((protocol, _)) => {
                return Err(format!(
                    "{protocol:?} is no protocol with ports here; write tcp/80, udp/53 or 8000-8999"
                ));
            }
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (parse_port(first)?, parse_port(last)?);
        if first > last {
            return Err(format!("the range {first}-{last} is empty; write the lower port first"));
        }
        Ok(Self {
            ports: first..=last,
            classes,
        })
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match parse_decimal::<u64>(text) {
        Some(0) => Err("port 0 is reserved and never on the wire; ports are 1 to 65535".into()),
        Some(port) => u16::try_from(port).map_err(|_| format!("{port} is no port; ports are 1 to 65535")),
        None => Err(format!("{text:?} is no port; write 80, tcp/80, udp/53 or 8000-8999")),
    }
}

/// A number of decimal digits alone: no sign, no spaces.
pub fn parse_decimal<T: FromStr>(text: &str) -> Option<T> {
    let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_decimal.then(|| text.parse().ok()).flatten()
}

/// A rate, of packets or of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rate {
    /// Packets a second.
    Packets(u64),
    /// Bytes of the IP layer a second.
    Bytes(u64),
}

/// The units of rates, with what they are in bits a second.
const BIT_UNITS: [(&str, u64); 4] = [
    ("kbit", 1_000),
    ("mbit", 1_000_000),
    ("gbit", 1_000_000_000),
    ("bit", 1),
];

/// The highest rate of packets: one a nanosecond.
const MAX_PACKETS: u64 = 1_000_000_000;
/// The highest rate of bits: above it a small packet takes no whole number of nanoseconds.
const MAX_BITS: u64 = 100_000_000_000;

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mistaken = || format!("{text:?} is no rate; write 1000 (packets a second), 500kbit, 10mbit or 1gbit");
        let lower = text.to_ascii_lowercase();
        let unit = BIT_UNITS
            .into_iter()
            .find_map(|(name, bits)| Some((lower.strip_suffix(name)?, bits)));
        let Some((number, bits)) = unit else {
            let packets = parse_decimal(&lower).ok_or_else(mistaken)?;
            return match packets {
                1..=MAX_PACKETS => Ok(Self::Packets(packets)),
                0 => Err("a rate of 0 lets nothing pass; use --default drop to drop all".into()),
                _ => Err(format!(
                    "{packets} packets a second is beyond what can be counted; at most {MAX_PACKETS}"
                )),
            };
        };
        let number: u64 = parse_decimal(number).ok_or_else(mistaken)?;
        match number.checked_mul(bits) {
            Some(bits @ 8..=MAX_BITS) => Ok(Self::Bytes(bits / 8)),
            Some(0..=7) => Err("a rate below 8bit is less than a byte a second; use --default drop to drop all".into()),
            _ => Err(format!("{text} is beyond what can be counted; at most 100gbit")),
        }
    }
}

impl Rate {
    /// How many tokens a bucket holds if nothing else is said: what comes in a tenth of a second, and at least ten
    /// packets, or 64 KiB, so that one super-packet of segmentation offload fits.
    pub fn default_burst(self) -> u64 {
        match self {
            Self::Packets(rate) => (rate / 10).max(10),
            Self::Bytes(rate) => (rate / 10).max(65_536),
        }
    }
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octets: Option<Vec<u8>> = text
            .split([':', '-'])
            .map(|octet| {
                // `from_str_radix` alone would take a sign, too.
                let is_octet = octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
                is_octet.then(|| u8::from_str_radix(octet, 16).ok()).flatten()
            })
            .collect();
        let octets = octets.and_then(|octets| octets.try_into().ok());
        octets
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no MAC address; write it like 02:00:00:00:00:01"))
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;

    fn error<T: FromStr<Err = String>>(text: &str) -> String {
        text.parse::<T>()
            .err()
            .unwrap_or_else(|| panic!("{text:?} was accepted"))
    }

    #[test]
    fn prefixes_of_both_families_are_read() {
        for (text, written) in [
            ("203.0.113.7", "203.0.113.7/32"),
            ("203.0.113.0/24", "203.0.113.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            let prefix: WrittenPrefix = text.parse().unwrap();
            assert_eq!(
                (prefix.prefix.to_string().as_str(), prefix.host_bits_of),
                (written, None)
            );
        }
    }

    #[test]
    fn host_bits_are_cleared_and_remembered() {
        let prefix: WrittenPrefix = "203.0.113.7/24".parse().unwrap();
        assert_eq!(prefix.prefix.to_string(), "203.0.113.0/24");
        assert_eq!(prefix.host_bits_of, Some("203.0.113.7".parse().unwrap()));
    }

    #[test]
    fn what_is_no_prefix_is_told_how_to_be_one() {
        for text in [
            "",
            "banana",
            "203.0.113",
            "203.0.113.7/",
            "203.0.113.7/33",
            "2001:db8::/129",
            "1.2.3.4/-1",
            "1.2.3.4/+8",
            "1.2.3.4/ 8",
            "1.2.3.4/8/8",
            "256.1.1.1",
            "1.2.3.4/999999999999",
            "01.2.3.4",
            " 1.2.3.4",
        ] {
            let error = error::<WrittenPrefix>(text);
            assert!(
                error.contains("write 203") || error.contains("number from 0 to"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn ports_ranges_and_protocols_are_read() {
        let port: PortRange = "53".parse().unwrap();
        assert_eq!((port.ports, port.classes.len()), (53..=53, 3));
        let port: PortRange = "tcp/8000-8999".parse().unwrap();
        assert_eq!((port.ports, port.classes), (8000..=8999, vec![Class::Tcp]));
        let port: PortRange = "udp/1-65535".parse().unwrap();
        assert_eq!((port.ports, port.classes), (1..=65535, vec![Class::Udp]));
    }

    #[test]
    fn what_is_no_port_is_told_how_to_be_one() {
        for (text, part) in [
            ("0", "port 0 is reserved"),
            ("70000", "70000 is no port"),
            ("65536", "ports are 1 to 65535"),
            ("99999999999999999999999", "is no port"),
            ("9-8", "the range 9-8 is empty"),
            ("http", "is no port"),
            ("-80", "is no port"),
            ("80-", "is no port"),
            ("icmp/8", "is no protocol with ports"),
            ("tcp/", "is no port"),
            ("TCP/80", "is no protocol"),
        ] {
            let error = error::<PortRange>(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn rates_are_packets_or_bits() {
        for (text, rate) in [
            ("1000", Rate::Packets(1000)),
            ("10mbit", Rate::Bytes(1_250_000)),
            ("10Mbit", Rate::Bytes(1_250_000)),
            ("64kbit", Rate::Bytes(8000)),
            ("1gbit", Rate::Bytes(125_000_000)),
            ("8bit", Rate::Bytes(1)),
        ] {
            assert_eq!(text.parse(), Ok(rate), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_told_how_to_be_one() {
        for text in [
            "",
            "fast",
            "10mb",
            "-5",
            "1.5mbit",
            "0",
            "0mbit",
            "7bit",
            "2000000000",
            "101gbit",
            "99999999999999999999gbit",
            "mbit",
        ] {
            assert!(!error::<Rate>(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn mac_addresses_are_six_octets() {
        assert_eq!("02:00:00:00:00:0A".parse(), Ok(Mac([2, 0, 0, 0, 0, 10])));
        assert_eq!("02-00-00-00-00-0a".parse(), Ok(Mac([2, 0, 0, 0, 0, 10])));
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "0:0:0:0:0:0",
            "02:00:00:00:00:zz",
            "+2:00:00:00:00:00",
        ] {
            assert!(error::<Mac>(text).contains("02:00:00:00:00:01"), "{text}");
        }
    }
}
