//! What the programs shall do, in user space's terms, and its translation into what the kernel reads.

use std::{net::IpAddr, time::Duration};

use lab01_count_packets_common::headers::Address;
use lab02_xdp_firewall::value::{PortRange, Rate};
use lab02_xdp_firewall_common::{
    bucket::Limit,
    ports::{self, Use},
    prefix_set::build::Prefix,
};
use lab03_tc_egress_common::{
    decide::{Config, MAX_DENY_RULES, MAX_SHAPES},
    flow::{
        state::{IDLE_NS, State},
        table::WAYS,
    },
    shaper::Shape,
    target::Target,
};
use thiserror::Error;

use crate::options::{BurstOption, DenyRule, Destinations, MIN_BURST, ShapeOption, class_bits};

/// What the programs shall do.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether only replies and what goes to `allow_ports` come in.
    pub stateful: bool,
    /// The ports that are open all the same.
    pub allow_ports: Vec<PortRange>,
    /// For how long connections are taken up that were there before.
    pub pick_up: Duration,
    /// What may not go out: the first rule that matches is counted.
    pub deny: Vec<DenyRule>,
    /// Rates of what goes out.
    pub shapes: Vec<ShapeOption>,
    /// Bursts of those rates.
    pub bursts: Vec<BurstOption>,
    /// How many flows are remembered.
    pub max_flows: u32,
    /// How long an established TCP connection may be silent.
    pub tcp_idle: Duration,
    /// How long any other flow may be silent that has gone on after an answer.
    pub udp_idle: Duration,
    /// Whether malformed frames are dropped.
    pub drop_malformed: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            stateful: false,
            allow_ports: Vec::new(),
            pick_up: Duration::ZERO,
            deny: Vec::new(),
            shapes: Vec::new(),
            bursts: Vec::new(),
            max_flows: 65_536,
            tcp_idle: Duration::from_nanos(IDLE_NS[State::Established as usize]),
            udp_idle: Duration::from_nanos(IDLE_NS[State::Stream as usize]),
            drop_malformed: true,
        }
    }
}

/// Why a policy cannot be. Each text names the cause and the mend.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Too many rules.
    #[error("{count} rules are more than the {MAX_DENY_RULES} that can be; join prefixes, or ranges of ports")]
    TooManyRules {
        /// How many there are.
        count: usize,
    },
    /// Too many rates.
    #[error("{count} rates are more than the {MAX_SHAPES} that can be")]
    TooManyShapes {
        /// How many there are.
        count: usize,
    },
    /// Two rates for the same destinations.
    #[error("there are two rates for {destinations}; leave one of them away")]
    TwoShapes {
        /// Which destinations.
        destinations: String,
    },
    /// A burst for which there is no rate.
    #[error("there is a burst for {destinations}, and no rate; add --shape {example}")]
    BurstWithoutShape {
        /// Which destinations.
        destinations: String,
        /// How to add a rate.
        example: String,
    },
}

/// What people call rates, and each of them in bytes a second.
pub type ShapeNames = Vec<(String, u64)>;

/// A policy as the kernel reads it.
#[derive(Debug)]
pub struct Compiled {
    /// All but the tables' content.
    pub config: Config,
    /// The rules, in their order.
    pub deny: Vec<Target>,
    /// The rates, the longest prefix first.
    pub shapes: Vec<Shape>,
    /// What people call each of them, and its rate in bytes a second.
    pub shape_names: ShapeNames,
    /// Of the table of ports, a word a port; empty if none is listed.
    pub ports: Vec<u64>,
}

/// How many buckets hold so many flows: twice as many places, so that buckets, which fill by chance, do not overflow
/// much before the table is full.
pub fn buckets_for(flows: u32) -> u32 {
    (u64::from(flows) * 2).div_ceil(WAYS as u64) as u32
}

/// How many half-open flows are remembered beside so many established ones.
pub fn half_open_flows(max_flows: u32) -> u32 {
    (max_flows / 4).max(4096)
}

impl Policy {
    /// Translates it. `hash_key` is that of the flows' hash; `now_ns` is the time since boot.
    pub fn compile(&self, hash_key: [u64; 2], now_ns: u64) -> Result<Compiled, PolicyError> {
        let deny = self.compile_deny()?;
        let (shapes, shape_names) = self.compile_shapes()?;
        let mut idle_ns = IDLE_NS;
        idle_ns[State::Established as usize] = nanoseconds(self.tcp_idle);
        idle_ns[State::Stream as usize] = nanoseconds(self.udp_idle);
        let config = Config {
            idle_ns,
            hash_key,
            pick_up_until_ns: pick_up_until_ns(self.pick_up, now_ns),
            established_buckets: buckets_for(self.max_flows),
            half_open_buckets: buckets_for(half_open_flows(self.max_flows)),
            deny_rules: deny.len() as u32,
            shapes: shapes.len() as u32,
            stateful: u8::from(self.stateful),
            drop_malformed: u8::from(self.drop_malformed),
            can_wait: 0,
            padding: [0; 5],
        };
        Ok(Compiled {
            config,
            deny,
            shapes,
            shape_names,
            ports: self.compile_ports(),
        })
    }

    fn compile_deny(&self) -> Result<Vec<Target>, PolicyError> {
        if self.deny.len() > MAX_DENY_RULES as usize {
            return Err(PolicyError::TooManyRules { count: self.deny.len() });
        }
        Ok(self
            .deny
            .iter()
            .map(|rule| target(rule.prefix.map(|written| written.prefix), rule.ports.as_ref()))
            .collect())
    }

    fn compile_shapes(&self) -> Result<(Vec<Shape>, ShapeNames), PolicyError> {
        if self.shapes.len() > MAX_SHAPES as usize {
            return Err(PolicyError::TooManyShapes {
                count: self.shapes.len(),
            });
        }
        let mut sorted: Vec<(Option<Prefix>, u64)> = self
            .shapes
            .iter()
            .map(|shape| (shape.prefix.map(|written| written.prefix), shape.bytes_per_second))
            .collect();
        // A prefix of either family before none at all.
        sorted.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.map(|prefix| prefix.len())));
        for (index, (prefix, _)) in sorted.iter().enumerate() {
            if sorted[..index].iter().any(|(other, _)| other == prefix) {
                return Err(PolicyError::TwoShapes {
                    destinations: Destinations(*prefix).to_string(),
                });
            }
        }
        for burst in &self.bursts {
            let of = burst.prefix.map(|written| written.prefix);
            let has_rate = of.map_or(!sorted.is_empty(), |of| {
                sorted.iter().any(|(prefix, _)| *prefix == Some(of))
            });
            if !has_rate {
                return Err(PolicyError::BurstWithoutShape {
                    destinations: Destinations(of).to_string(),
                    example: of.map_or_else(|| "10mbit".into(), |of| format!("{of}=10mbit")),
                });
            }
        }
        let shapes = sorted.iter().map(|(prefix, rate)| Shape {
            target: target(*prefix, None),
            limit: Limit::new(*rate, self.burst_of(*prefix, *rate)),
        });
        let names = sorted
            .iter()
            .map(|(prefix, rate)| (Destinations(*prefix).to_string(), *rate));
        Ok((shapes.collect(), names.collect()))
    }

    /// The burst of a rate: its own, else that of all, else a tenth of a second's worth.
    fn burst_of(&self, prefix: Option<Prefix>, rate: u64) -> u64 {
        let written = |of: Option<Prefix>| {
            let mut bursts = self.bursts.iter();
            bursts.find(|burst| burst.prefix.map(|written| written.prefix) == of)
        };
        written(prefix)
            .or_else(|| written(None))
            .map_or_else(|| Rate::Bytes(rate).default_burst().max(MIN_BURST), |burst| burst.bytes)
    }

    fn compile_ports(&self) -> Vec<u64> {
        if self.allow_ports.is_empty() {
            return Vec::new();
        }
        let mut words = vec![0; 1 << 16];
        for range in &self.allow_ports {
            for port in range.ports.clone() {
                for class in &range.classes {
                    words[usize::from(port)] |= u64::from(ports::bit(Use::AllowDestination, *class));
                }
            }
        }
        words
    }
}

/// Never, and not now, if for no time: the programs' clock is a few milliseconds behind.
fn pick_up_until_ns(pick_up: Duration, now_ns: u64) -> u64 {
    if pick_up.is_zero() {
        return 0;
    }
    now_ns.saturating_add(nanoseconds(pick_up))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos())
        .unwrap_or(u64::MAX / 2)
        .min(u64::MAX / 2)
}

fn target(prefix: Option<Prefix>, ports: Option<&PortRange>) -> Target {
    let mut target = Target::default();
    if let Some(prefix) = prefix {
        let all_ones = if prefix.address().is_ipv4() {
            IpAddr::from([0xff; 4])
        } else {
            IpAddr::from([0xff; 16])
        };
        let mask = Prefix::new(all_ones, prefix.len()).map_or(all_ones, |prefix| prefix.address());
        target.ip_version = if prefix.address().is_ipv4() { 4 } else { 6 };
        (target.prefix, target.mask) = (words(prefix.address()), words(mask));
    }
    if let Some(range) = ports {
        (target.first_port, target.last_port) = (*range.ports.start(), *range.ports.end());
        target.classes = class_bits(&range.classes);
    }
    target
}

fn words(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::from_ipv4(address.octets()),
        IpAddr::V6(address) => Address::from_ipv6(address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(shapes: &[&str], bursts: &[&str]) -> Result<Compiled, PolicyError> {
        let policy = Policy {
            shapes: shapes.iter().map(|text| text.parse().unwrap()).collect(),
            bursts: bursts.iter().map(|text| text.parse().unwrap()).collect(),
            ..Policy::default()
        };
        policy.compile([1, 2], 3)
    }

    #[test]
    fn the_rate_with_the_longest_prefix_comes_first() {
        let compiled = shapes(
            &["1gbit", "10.0.0.0/8=1mbit", "10.1.0.0/16=2mbit", "2001:db8::/32=3mbit"],
            &[],
        )
        .unwrap();
        let names: Vec<&str> = compiled.shape_names.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["2001:db8::/32", "10.1.0.0/16", "10.0.0.0/8", "all"]);
    }

    #[test]
    fn a_burst_is_its_own_that_of_all_or_a_tenth_of_a_second() {
        let compiled = shapes(
            &["1gbit", "10.0.0.0/8=8mbit", "10.1.0.0/16=80mbit"],
            &["10.0.0.0/8=80mbit"],
        )
        .unwrap();
        let burst_ns: Vec<u64> = compiled.shapes.iter().map(|shape| shape.limit.burst_ns).collect();
        assert_eq!(burst_ns, [100_000_000, 10_000_000_000, 100_000_000]);
        let compiled = shapes(&["1mbit"], &[]).unwrap();
        assert_eq!(compiled.shapes[0].limit, Limit::new(125_000, MIN_BURST));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let error = |rates: &[&str], bursts: &[&str]| shapes(rates, bursts).unwrap_err().to_string();
        assert_eq!(
            error(&["1mbit", "2mbit"], &[]),
            "there are two rates for all; leave one of them away"
        );
        assert_eq!(
            error(&["1mbit"], &["10.0.0.0/8=1mbit"]),
            "there is a burst for 10.0.0.0/8, and no rate; add --shape 10.0.0.0/8=10mbit"
        );
        assert_eq!(
            error(&[], &["1mbit"]),
            "there is a burst for all, and no rate; add --shape 10mbit"
        );
        let rule: DenyRule = "tcp/25".parse().unwrap();
        let policy = Policy {
            deny: vec![rule; 65],
            ..Policy::default()
        };
        assert!(
            policy
                .compile([1, 2], 3)
                .unwrap_err()
                .to_string()
                .starts_with("65 rules are more than the 64")
        );
    }
}
