//! Policies, packets, flows and identities that meet: few addresses, ports and names, so that most packets match some
//! rule. For property tests here and wherever a classifier is compared with [`crate::decide()`].
//!
//! Every policy is one that [`crate::read()`] takes without an error; warnings it may have.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::{BoxedStrategy, Just, Strategy, any},
    prop_oneof, sample,
};

use crate::{
    decide::{Content, Flow, Identity, Ip, Originator, Packet, Transport},
    model::{
        Action, Address, DEFAULT_PRIORITY, DefaultVerdict, Defaults, Direction, Mac, MalformedVerdict, Mode, Order,
        Per, Policy, Prefix, Protocol, Range, Rate, RateLimit, Rule, RuleMode, Set, State,
    },
};

/// The names that sets have here.
const SETS: [&str; 3] = ["abuse", "partners", "empty"];
/// The interfaces that packets come and go by.
pub const INTERFACES: [&str; 3] = ["eth0", "eth1", "lo"];
/// The cgroups that sockets are in, and rules name.
pub const CGROUPS: [&str; 5] = ["", "batch.slice", "batch.slice/job.scope", "batch.slice-2", "web.slice"];

/// Ports that packets have and rules name.
fn port() -> impl Strategy<Value = u16> + Clone {
    prop_oneof![
        12 => sample::select(vec![22, 53, 67, 68, 80, 443, 546, 547, 8000, 8080, 8999, 40_000, 65_535]),
        1 => 1..=u16::MAX,
    ]
}

/// Addresses that packets have.
fn address() -> BoxedStrategy<IpAddr> {
    prop_oneof![
        4 => (0..4_u8).prop_map(|host| IpAddr::from([192, 0, 2, host])),
        2 => (0..3_u8, 0..2_u8).prop_map(|(net, host)| IpAddr::from([198, 51, net, host])),
        1 => any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        4 => (0..2_u16, 0..3_u16).prop_map(|(net, host)| IpAddr::from([0x2001, 0xdb8, net, 0, 0, 0, 0, host])),
        1 => (0..3_u16).prop_map(|host| IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, host])),
        1 => (0..4_u8).prop_map(|host| IpAddr::V6(std::net::Ipv4Addr::from([192, 0, 2, host]).to_ipv6_mapped())),
        1 => any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
    ]
    .boxed()
}

/// Prefixes that hold some of those addresses.
pub fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), 0..=128_u8, any::<bool>()).prop_map(|(address, length, single)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        // Mostly those that a person would write.
        let length = match (single, address) {
            (true, _) => longest,
            (false, IpAddr::V4(_)) => [0, 8, 16, 24, 24, 30, 31][usize::from(length) % 7],
            (false, IpAddr::V6(_)) => [0, 16, 32, 48, 48, 64, 127][usize::from(length) % 7],
        };
        Prefix::new(address, length).expect("it is no longer than the address")
    })
}

fn range<T>(number: impl Strategy<Value = T> + Clone + 'static) -> impl Strategy<Value = Range<T>>
where
    T: Copy + Ord + std::fmt::Debug,
{
    (number.clone(), number, any::<bool>()).prop_map(|(one, other, single)| {
        if single {
            Range::single(one)
        } else {
            Range {
                first: one.min(other),
                last: one.max(other),
            }
        }
    })
}

/// Users and groups that sockets have and rules name.
fn id() -> impl Strategy<Value = u32> + Clone {
    sample::select(vec![0, 1000, 1001, 2000, 2999])
}

fn icmp_number() -> impl Strategy<Value = u8> + Clone {
    sample::select(vec![0, 1, 3, 8, 11, 128, 129, 130, 133, 134, 135, 136, 137, 143, 255])
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        4 => Just(Protocol::TCP),
        4 => Just(Protocol::UDP),
        2 => Just(Protocol::ICMP),
        2 => Just(Protocol::ICMPV6),
        1 => Just(Protocol::SCTP),
        1 => any::<u8>().prop_map(Protocol),
    ]
}

fn addresses() -> impl Strategy<Value = Vec<Address>> {
    let one = || {
        prop_oneof![
            3 => prefix().prop_map(Address::Prefix),
            1 => sample::select(SETS.to_vec()).prop_map(|name| Address::Set(name.to_owned())),
        ]
    };
    prop_oneof![
        3 => Just(Vec::new()),
        2 => one().prop_map(|one| vec![one]),
        1 => vec(one(), 2..4),
    ]
}

/// Mostly nothing, sometimes one, seldom more.
fn few<T: Clone + std::fmt::Debug>(
    one: impl Strategy<Value = T> + 'static,
    absent: u32,
) -> impl Strategy<Value = Vec<T>> {
    let one = one.boxed();
    prop_oneof![
        absent => Just(Vec::new()),
        2 => one.clone().prop_map(|one| vec![one]),
        1 => vec(one, 2..4),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let rate = prop_oneof![
        (1..=1_000_000_000_u64).prop_map(Rate::Packets),
        (1..=12_500_000_000_u64).prop_map(Rate::Bytes),
    ];
    let per = sample::select(vec![Per::Rule, Per::Source, Per::Flow]);
    let limit = (rate, option::of(1..=1_u64 << 40), per).prop_map(|(rate, burst, per)| {
        Action::RateLimit(RateLimit {
            rate,
            burst: burst.unwrap_or(rate.default_burst()),
            per,
        })
    });
    prop_oneof![3 => Just(Action::Allow), 3 => Just(Action::Block), 1 => Just(Action::Log), 1 => limit]
}

fn direction() -> impl Strategy<Value = Direction> {
    sample::select(vec![Direction::Ingress, Direction::Egress])
}

fn mac() -> impl Strategy<Value = Mac> {
    (0..3_u8).prop_map(|last| Mac([2, 0, 0, 0, 0, last]))
}

fn text() -> impl Strategy<Value = String> {
    // What formats quote, escape or compute; no NUL, which no policy has.
    let nasty = sample::select(vec![
        "",
        " ",
        "null",
        "true",
        "1",
        "0x1f",
        "1e3",
        "a: b",
        "- a",
        "# no",
        "${x}",
        "%{if}",
        "\"",
        "'",
        "\\",
        "\n",
        "\r\n",
        "\t",
        "ä€😀",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "\u{7f}",
        "\u{1b}[31m",
        "@set",
        "[",
        "{",
        "<<EOF",
        "2026-01-01",
        "~",
        "&a",
        "*a",
        "!t",
    ]);
    prop_oneof![
        3 => "[a-z ]{0,20}",
        1 => vec(nasty, 1..4).prop_map(|parts| parts.concat()),
        1 => "[^\\x00]{0,8}",
    ]
}

/// A rule, without its name.
pub fn rule() -> impl Strategy<Value = Rule> {
    let plain = (
        option::weighted(0.2, text()),
        prop_oneof![2 => Just(DEFAULT_PRIORITY), 1 => 98..103_u32, 1 => any::<u32>()],
        option::weighted(0.2, Just(RuleMode::Observe)),
        option::of(direction()),
        option::of(protocol()),
        addresses(),
        addresses(),
    );
    let ports = (
        few(range(port()), 4),
        few(range(port()), 2),
        few(range(icmp_number()), 2),
        few(range(sample::select(vec![0, 1, 4])), 4),
    );
    let ends = (
        few(sample::select(INTERFACES.to_vec()).prop_map(str::to_owned), 8),
        few(mac(), 20),
        few(
            sample::select(CGROUPS.to_vec()).prop_map(|path| if path.is_empty() { "/" } else { path }.to_owned()),
            10,
        ),
        few(range(id()), 12),
        few(range(id()), 20),
        few(sample::select(State::ALL.to_vec()), 10),
        action(),
    );
    (plain, ports, ends).prop_map(|(plain, ports, ends)| {
        let (description, priority, mode, direction, protocol, source, destination) = plain;
        let (source_ports, destination_ports, icmp_type, icmp_code) = ports;
        let (interface, mac, cgroup, uid, gid, state, action) = ends;
        possible(Rule {
            name: String::new(),
            description,
            priority,
            mode,
            direction,
            protocol,
            source,
            destination,
            source_ports,
            destination_ports,
            icmp_type,
            icmp_code,
            interface,
            mac,
            cgroup,
            uid,
            gid,
            state,
            action,
        })
    })
}

/// Without keys that go not together.
fn possible(mut rule: Rule) -> Rule {
    if !rule.protocol.is_some_and(Protocol::is_icmp) {
        rule.icmp_type.clear();
        rule.icmp_code.clear();
    }
    if rule.protocol.is_some_and(|protocol| !protocol.has_ports()) {
        rule.source_ports.clear();
        rule.destination_ports.clear();
    }
    if !rule.mac.is_empty() {
        rule.direction = Some(Direction::Ingress);
    }
    if rule.names_identity() && rule.action != Action::Block {
        rule.direction = Some(Direction::Egress);
        rule.mac.clear();
    }
    rule
}

/// From one version of IP to the other goes no packet: the one of the two that is in the way is left out.
fn meetable(mut rule: Rule, sets: &BTreeMap<String, Set>) -> Rule {
    let version = |addresses: &[Address]| {
        let mut versions = addresses.iter().flat_map(|address| match address {
            Address::Prefix(prefix) => vec![prefix.address().is_ipv4()],
            Address::Set(name) => sets[name].all().map(|prefix| prefix.address().is_ipv4()).collect(),
        });
        let first = versions.next()?;
        versions.all(|version| version == first).then_some(first)
    };
    if let (Some(source), Some(destination)) = (version(&rule.source), version(&rule.destination))
        && source != destination
    {
        rule.destination.clear();
    }
    rule
}

/// A policy of up to `most` rules, which [`crate::read()`] takes without an error.
pub fn policy(most: usize) -> impl Strategy<Value = Policy> {
    let sets = btree_map(
        sample::select(SETS.to_vec()).prop_map(str::to_owned),
        vec(prefix(), 0..5).prop_map(|prefixes| Set {
            prefixes,
            ..Set::default()
        }),
        0..=SETS.len(),
    );
    let defaults = (
        sample::select(vec![DefaultVerdict::Allow, DefaultVerdict::Deny]),
        sample::select(vec![DefaultVerdict::Allow, DefaultVerdict::Deny]),
        sample::select(vec![MalformedVerdict::Drop, MalformedVerdict::Allow]),
    );
    let head = (
        "[A-Za-z0-9][A-Za-z0-9._-]{0,10}".prop_filter("names that statistics use", |name| {
            !["essential", "default", "malformed"].contains(&name.as_str())
        }),
        sample::select(vec![Mode::Observe, Mode::Block]),
        sample::select(vec![Order::Priority, Order::Specific]),
        defaults,
        proptest::bool::weighted(0.8),
    );
    (head, sets, vec(rule(), 0..=most)).prop_map(|((name, mode, order, defaults, essentials), mut sets, rules)| {
        let (ingress, egress, malformed) = defaults;
        for name in SETS {
            sets.entry(name.to_owned()).or_default();
        }
        let rules = rules
            .into_iter()
            .enumerate()
            .map(|(index, rule)| Rule {
                name: format!("r{index}"),
                ..meetable(rule, &sets)
            })
            .collect();
        Policy {
            version: 1,
            name,
            mode,
            order,
            defaults: Defaults {
                ingress,
                egress,
                malformed,
            },
            essentials,
            sets,
            rules,
        }
    })
}

/// A packet.
pub fn packet() -> impl Strategy<Value = Packet> {
    let content = prop_oneof![
        30 => ip().prop_map(Content::Ip),
        1 => Just(Content::NotIp),
        1 => Just(Content::Malformed),
    ];
    let interface = prop_oneof![6 => Just("eth0"), 2 => Just("eth1"), 1 => Just("lo")];
    (direction(), interface, option::weighted(0.7, mac()), content).prop_map(|(direction, interface, mac, content)| {
        Packet {
            direction,
            interface: interface.to_owned(),
            source_mac: mac.filter(|_| direction == Direction::Ingress),
            content,
        }
    })
}

fn ip() -> impl Strategy<Value = Ip> {
    let of_one_version = (address(), address()).prop_map(|(source, destination)| match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => (source, destination),
        (IpAddr::V4(_), IpAddr::V6(_)) => (source, IpAddr::from([192, 0, 2, 1])),
        (IpAddr::V6(_), IpAddr::V4(_)) => (source, IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
    });
    let numbers = (port(), port(), icmp_number(), sample::select(vec![0, 1, 4]));
    (of_one_version, protocol(), numbers, proptest::bool::weighted(0.1)).prop_map(
        |((source, destination), protocol, (source_port, destination_port, kind, code), later_fragment)| Ip {
            source,
            destination,
            protocol,
            transport: if later_fragment {
                Transport::None
            } else if protocol.has_ports() {
                Transport::Ports {
                    source: source_port,
                    destination: destination_port,
                }
            } else if protocol.is_icmp() {
                Transport::Icmp { kind, code }
            } else {
                Transport::None
            },
        },
    )
}

/// Whose socket.
pub fn identity() -> impl Strategy<Value = Identity> {
    let known = (sample::select(CGROUPS.to_vec()), id(), option::of(id())).prop_map(|(cgroup, uid, gid)| Identity {
        cgroup: Some(cgroup.to_owned()),
        uid: Some(uid),
        gid,
    });
    prop_oneof![1 => Just(Identity::UNKNOWN), 3 => known]
}

/// What the flow table knows about a packet; mostly nothing.
pub fn flow() -> impl Strategy<Value = Flow> {
    let originator = || (packet(), identity()).prop_map(|(packet, identity)| Box::new(Originator { packet, identity }));
    prop_oneof![
        4 => Just(Flow::New),
        1 => Just(Flow::Invalid),
        1 => originator().prop_map(Flow::Established),
        1 => originator().prop_map(Flow::Related),
    ]
}
