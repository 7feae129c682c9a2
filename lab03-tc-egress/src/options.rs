//! Rules, rates and bursts as people write them.
//!
//! Every error says what is wrong with the text and how it should look.

use std::{fmt, str::FromStr};

use lab02_xdp_firewall::value::{PortRange, Rate, WrittenPrefix};
use lab02_xdp_firewall_common::{ports::Class, prefix_set::build::Prefix};
use lab03_tc_egress_common::shaper::MIN_RATE;

/// A rule that denies destinations: a prefix, ports, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyRule {
    /// As it was written.
    pub text: String,
    /// The destinations; all if there is none.
    pub prefix: Option<WrittenPrefix>,
    /// The ports; all, and packets without ports, if there are none.
    pub ports: Option<PortRange>,
}

impl FromStr for DenyRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (prefix, ports) = match text.split_once(',') {
            Some((prefix, ports)) => (Some(prefix), Some(ports)),
            // Every address has a dot or a colon, and no port has.
            None if text.contains(['.', ':']) => (Some(text), None),
            None => (None, Some(text)),
        };
        let in_rule =
            |error: String| format!("{error}; a rule is PREFIX, PORTS or PREFIX,PORTS: 203.0.113.0/24,tcp/25");
        Ok(Self {
            text: text.to_owned(),
            prefix: prefix.map(str::parse).transpose().map_err(in_rule)?,
            ports: ports.map(str::parse).transpose().map_err(in_rule)?,
        })
    }
}

/// A rate, and the destinations that it is for: all if there is no prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeOption {
    /// As it was written.
    pub text: String,
    /// The destinations.
    pub prefix: Option<WrittenPrefix>,
    /// Bytes of the IP layer a second.
    pub bytes_per_second: u64,
}

impl FromStr for ShapeOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (prefix, rate) = prefix_and(text)?;
        let bytes_per_second = match rate.parse() {
            Ok(Rate::Bytes(bytes @ MIN_RATE..)) => bytes,
            Ok(Rate::Bytes(_)) => return Err(format!("{rate} is below the lowest rate, 8kbit")),
            _ => {
                return Err(format!(
                    "{rate:?} is no rate; write 500kbit, 10mbit or 1gbit, at most 100gbit"
                ));
            }
        };
        Ok(Self {
            text: text.to_owned(),
            prefix,
            bytes_per_second,
        })
    }
}

/// How much may be sent at once after a pause, and by which rate: by all that have no burst of their own if there is no
/// prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BurstOption {
    /// That of the rate.
    pub prefix: Option<WrittenPrefix>,
    /// Bytes of the IP layer.
    pub bytes: u64,
}

/// The least burst: one super-packet of segmentation offload, which the kernel hands over whole.
pub const MIN_BURST: u64 = 65_536;
/// The largest: a minute of 10 gbit/s.
const MAX_BURST: u64 = 75_000_000_000;

impl FromStr for BurstOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (prefix, size) = prefix_and(text)?;
        // A number without a unit is read as packets.
        let Ok(Rate::Packets(bytes) | Rate::Bytes(bytes)) = size.parse() else {
            return Err(format!(
                "{size:?} is no burst; write 100mbit, or bytes: 131072; at most 100gbit"
            ));
        };
        match bytes {
            MIN_BURST..=MAX_BURST => Ok(Self { prefix, bytes }),
            ..MIN_BURST => Err(format!(
                "a burst of {bytes} bytes is less than one packet of segmentation offload; at least {MIN_BURST}"
            )),
            _ => Err(format!("a burst of {bytes} bytes is no limit; at most {MAX_BURST}")),
        }
    }
}

/// `PREFIX=REST`, or `REST` alone.
fn prefix_and(text: &str) -> Result<(Option<WrittenPrefix>, &str), String> {
    match text.split_once('=') {
        Some((prefix, rest)) => Ok((Some(prefix.parse()?), rest)),
        None => Ok((None, text)),
    }
}

/// What people call the destinations of a prefix, or of none.
pub struct Destinations(pub Option<Prefix>);

impl fmt::Display for Destinations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(prefix) => prefix.fmt(f),
            None => f.write_str("all"),
        }
    }
}

/// The bits of classes of protocols, as the kernel side has them.
pub fn class_bits(classes: &[Class]) -> u8 {
    classes.iter().fold(0, |bits, class| bits | 1 << *class as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_prefixes_ports_or_both() {
        for (text, has_prefix, has_ports) in [
            ("203.0.113.0/24", true, false),
            ("2001:db8::/32", true, false),
            ("tcp/25", false, true),
            ("8000-8999", false, true),
            ("203.0.113.7,udp/53", true, true),
            ("2001:db8::1,443", true, true),
        ] {
            let rule: DenyRule = text.parse().unwrap();
            assert_eq!(
                (rule.prefix.is_some(), rule.ports.is_some()),
                (has_prefix, has_ports),
                "{text}"
            );
        }
        for text in [
            "",
            ",",
            "203.0.113.0/24,",
            ",tcp/25",
            "203.0.113.0/33",
            "tcp/0",
            "example.org",
            "1.2.3.4 tcp/25",
        ] {
            let error = text.parse::<DenyRule>().unwrap_err();
            assert!(error.ends_with("203.0.113.0/24,tcp/25"), "{text}: {error}");
        }
    }

    #[test]
    fn rates_have_a_unit_and_bursts_hold_a_super_packet() {
        let shape: ShapeOption = "203.0.113.0/24=10mbit".parse().unwrap();
        assert_eq!(
            (
                shape.prefix.unwrap().prefix.to_string().as_str(),
                shape.bytes_per_second
            ),
            ("203.0.113.0/24", 1_250_000)
        );
        assert_eq!("1gbit".parse::<ShapeOption>().unwrap().bytes_per_second, 125_000_000);
        for text in [
            "",
            "1000",
            "fast",
            "7kbit",
            "8bit",
            "10.0.0.0/8=",
            "banana=1mbit",
            "1mbit=10.0.0.0/8",
            "=1mbit",
            "200gbit",
        ] {
            assert!(text.parse::<ShapeOption>().is_err(), "{text}");
        }
        assert_eq!("100mbit".parse::<BurstOption>().unwrap().bytes, 12_500_000);
        assert_eq!("65536".parse::<BurstOption>().unwrap().bytes, 65_536);
        assert!("::/0=1mbit".parse::<BurstOption>().unwrap().prefix.is_some());
        for text in ["", "0", "65535", "500kbit", "much", "-1", "800gbit"] {
            assert!(text.parse::<BurstOption>().is_err(), "{text}");
        }
    }
}
