//! What the firewall costs a packet, and how the ways to look an address up compare: `cargo xtask bench lab02`.

mod end_to_end;
mod lookups;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Result, ensure};
use aya::{Ebpf, programs::Xdp};
use lab01_count_packets::{load, outcome};
use lab02_xdp_firewall::{
    OBJECT,
    policy::Policy,
    tables::{FirewallTables, map_sizes},
    value::{PortRange, Rate},
};
use lab02_xdp_firewall_common::prefix_set::build::Prefix;
use testbed::{
    Spread,
    bpf::{ProgramType, TestRun, empty_program, test_run},
    figures::{self, Durations, Figures, Options, Row},
    nftables, packets,
    spread::numbers,
};

use end_to_end::{Dropper, Road};
use lookups::{Kind, Lookup};

fn main() -> ExitCode {
    let about =
        "Measures what the firewall costs a packet, and beside it one look-up in each kind of table, in nanoseconds";
    let options = Options::from_command_line(about);
    outcome::exit_code(run(&options))
}

fn run(options: &Options) -> Result<()> {
    let cases = cases();
    let mut prepared = cases.iter().map(Case::prepare).collect::<Result<Vec<_>>>()?;
    let lookups = compared()?;
    let empty = empty_program(ProgramType::Xdp)?;
    let mut rows: Vec<Row<'_>> = prepared.iter().map(|case| case.row(&empty)).collect();
    rows.extend(lookups.iter().map(|compared| compared.row(&empty)));
    let (of_cases, of_lookups) = rows.split_at_mut(cases.len());
    let firewall = figures::measure(of_cases, options.rounds)?;
    let alone = figures::measure(of_lookups, options.rounds)?;
    drop(rows);
    let roads = measure_roads(options.rounds)?.above("drops all");
    let loading = Durations {
        rows: prepared
            .iter_mut()
            .map(Prepared::loading)
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect(),
    };
    options
        .show(&[
            ("The firewall:", &firewall),
            ("One thing at a time, in a program that parses the frame:", &alone),
            (
                "From host to host, dropped there, beside a program that drops all:",
                &roads,
            ),
            (
                "From a list of 100,000 in memory to the new policy in force, medians of 7:",
                &loading,
            ),
        ])
        .map_err(Into::into)
}

/// What it costs to drop frames that cross a veth pair, beside a program that drops all and beside nftables.
fn measure_roads(rounds: u8) -> Result<Figures> {
    let policies = [1_000, 100_000].map(|count| Policy {
        block: prefixes_v4(count),
        ..OPEN
    });
    let sources = policies.each_ref().map(|policy| inside_v4(&policy.block));
    let firewalls = policies.each_ref().map(Loaded::with);
    let road = Road::build()?;
    let mut rows = Vec::new();
    for ((policy, sources), (firewall, [by_xdp, by_nft])) in policies.iter().zip(&sources).zip(firewalls.iter().zip([
        ["firewall, 1,000 prefixes", "nftables ingress, 1,000 prefixes"],
        ["firewall, 100,000 prefixes", "nftables ingress, 100,000 prefixes"],
    ])) {
        let firewall = firewall.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        rows.push(road.row(by_xdp, sources, Dropper::Xdp(firewall.program()))?);
        if nftables::is_installed() {
            rows.push(road.row(by_nft, sources, Dropper::Nftables(&policy.block))?);
        }
    }
    Ok(figures::measure(&mut rows, rounds)?)
}

/// How often a program runs in a round.
const RUNS: u32 = 100_000;

/// A policy and the packets that meet it.
struct Case {
    name: &'static str,
    policy: Policy,
    packets: Packets,
}

enum Packets {
    /// One and the same.
    Fixed(Vec<u8>),
    /// Of these sources by turns, in random order.
    SpreadV4(Vec<[u8; 4]>),
    SpreadV6(Vec<[u8; 16]>),
}

const OPEN: Policy = Policy::NO_RULES;

fn cases() -> Vec<Case> {
    let block = |block: Vec<Prefix>| Policy { block, ..OPEN };
    let ports: Vec<PortRange> = vec!["tcp/8000-8999".parse().expect("a range")];
    let mut cases = vec![
        Case {
            name: "no rule",
            policy: OPEN,
            packets: Packets::Fixed(frame_v4(OUTSIDE)),
        },
        Case {
            name: "ports",
            policy: Policy {
                block_ports: ports.clone(),
                ..OPEN
            },
            packets: Packets::Fixed(frame_v4(OUTSIDE)),
        },
        Case {
            name: "rate limit, one source",
            policy: Policy {
                limit: Some((Rate::Packets(1_000_000_000), 1_000_000)),
                ..OPEN
            },
            packets: Packets::Fixed(frame_v4(OUTSIDE)),
        },
    ];
    for (count, hit, miss, spread, singles) in [
        (
            10,
            "10 prefixes: hit",
            "10 prefixes: miss",
            "10 prefixes: spread hits",
            "10 addresses: spread hits",
        ),
        (
            1_000,
            "1,000 prefixes: hit",
            "1,000 prefixes: miss",
            "1,000 prefixes: spread hits",
            "1,000 addresses: spread hits",
        ),
        (
            100_000,
            "100,000 prefixes: hit",
            "100,000 prefixes: miss",
            "100,000 prefixes: spread hits",
            "100,000 addresses: spread hits",
        ),
    ] {
        let prefixes = prefixes_v4(count);
        let inside = inside_v4(&prefixes);
        cases.push(Case {
            name: hit,
            policy: block(prefixes.clone()),
            packets: Packets::Fixed(frame_v4(inside[0])),
        });
        cases.push(Case {
            name: miss,
            policy: block(prefixes.clone()),
            packets: Packets::Fixed(frame_v4(OUTSIDE)),
        });
        cases.push(Case {
            name: spread,
            policy: block(prefixes),
            packets: Packets::SpreadV4(inside),
        });
        let addresses = addresses_v4(count);
        let policy = block(
            addresses
                .iter()
                .map(|address| Prefix::single(Ipv4Addr::from(*address).into()))
                .collect(),
        );
        cases.push(Case {
            name: singles,
            policy,
            packets: Packets::SpreadV4(addresses),
        });
    }
    let prefixes = prefixes_v6(100_000);
    let inside = inside_v6(&prefixes);
    cases.push(Case {
        name: "100,000 IPv6 prefixes: spread hits",
        policy: block(prefixes),
        packets: Packets::SpreadV6(inside.clone()),
    });
    let singles = inside
        .iter()
        .map(|address| Prefix::single(Ipv6Addr::from(*address).into()))
        .collect();
    cases.push(Case {
        name: "100,000 IPv6 addresses: spread hits",
        policy: block(singles),
        packets: Packets::SpreadV6(inside),
    });
    cases
}

/// A program that does no more than one look-up, or one other thing, and the spread of sources that it meets.
struct Compared {
    name: String,
    lookup: Lookup,
    spread: Spread,
    frame: Vec<u8>,
}

/// Single things to do side by side, and the kinds of table with the same entries.
fn compared() -> Result<Vec<Compared>> {
    let mut all = Vec::new();
    for (kind, name) in [
        (Kind::Parse, "parsing alone"),
        (Kind::Call, "a call"),
        (Kind::Clock, "the clock"),
        (Kind::Lock, "a lock, taken and given back"),
    ] {
        all.push(Compared::new(name.into(), kind, &[], &addresses_v4(1000))?);
    }
    for (count, told) in [(10, "10"), (1_000, "1,000"), (100_000, "100,000")] {
        let prefixes = prefixes_v4(count);
        let inside = inside_v4(&prefixes);
        for (kind, table) in [(Kind::LpmTrie, "LPM_TRIE"), (Kind::Tree, "the tree")] {
            all.push(Compared::new(
                format!("{told} prefixes in {table}"),
                kind,
                &prefixes,
                &inside,
            )?);
        }
        let addresses = addresses_v4(count);
        let singles: Vec<_> = addresses
            .iter()
            .map(|address| Prefix::single(Ipv4Addr::from(*address).into()))
            .collect();
        for (kind, table) in [(Kind::Hash, "HASH"), (Kind::Exact, "the table")] {
            all.push(Compared::new(
                format!("{told} addresses in {table}"),
                kind,
                &singles,
                &addresses,
            )?);
        }
    }
    Ok(all)
}

impl Compared {
    fn new(name: String, kind: Kind, prefixes: &[Prefix], sources: &[[u8; 4]]) -> Result<Self> {
        let lookup = Lookup::prepare(kind, prefixes)?;
        // What finds nothing is fast: each has to drop what is listed, and that only.
        for (source, is_listed) in [(sources[sources.len() - 1], kind.has_table()), (OUTSIDE, false)] {
            let verdict = test_run(lookup.program(), TestRun::once(&frame_v4(source)))?.retval;
            // XDP_DROP and XDP_PASS of linux/bpf.h.
            let expected = if is_listed { 1 } else { 2 };
            ensure!(verdict == expected, "{name}: {source:?} met the verdict {verdict}");
        }
        Ok(Self {
            name,
            lookup,
            spread: Spread::over_ipv4(sources)?,
            frame: frame_v4(OUTSIDE),
        })
    }

    fn row<'a>(&'a self, empty: &'a OwnedFd) -> Row<'a> {
        let measure = |program: BorrowedFd<'_>| {
            self.spread.before(program)?;
            Ok(test_run(self.spread.program(), TestRun::repeated(&self.frame, RUNS))?.duration_ns)
        };
        Row::new(
            self.name.clone(),
            move || measure(empty.as_fd()),
            move || measure(self.lookup.program()),
        )
    }
}

/// An address that no prefix of the lists holds.
const OUTSIDE: [u8; 4] = [192, 0, 2, 7];

fn addresses_v4(count: usize) -> Vec<[u8; 4]> {
    let random = numbers(1).map(|number| (number as u32).to_be_bytes());
    random
        .filter(|address| address[..3] != OUTSIDE[..3])
        .take(count)
        .collect()
}

/// Prefixes of 17 to 28 bits, as lists of networks have them.
fn prefixes_v4(count: usize) -> Vec<Prefix> {
    let lengths = numbers(2).map(|number| 17 + (number % 12) as u8);
    let addresses = numbers(3).map(|number| Ipv4Addr::from(number as u32));
    let prefixes = addresses
        .zip(lengths)
        .filter_map(|(address, len)| Prefix::new(address.into(), len));
    prefixes
        .filter(|prefix| !prefix.contains(Ipv4Addr::from(OUTSIDE).into()))
        .take(count)
        .collect()
}

fn inside_v4(prefixes: &[Prefix]) -> Vec<[u8; 4]> {
    let addresses = prefixes.iter().filter_map(|prefix| match prefix.address() {
        IpAddr::V4(address) => Some(address.octets()),
        IpAddr::V6(_) => None,
    });
    addresses.collect()
}

/// Prefixes of 32 to 64 bits.
fn prefixes_v6(count: usize) -> Vec<Prefix> {
    let lengths = numbers(4).map(|number| 32 + (number % 33) as u8);
    let addresses = numbers(5).map(|number| Ipv6Addr::from(u128::from(number >> 3 | 1 << 61) << 64));
    addresses
        .zip(lengths)
        .filter_map(|(address, len)| Prefix::new(address.into(), len))
        .take(count)
        .collect()
}

fn inside_v6(prefixes: &[Prefix]) -> Vec<[u8; 16]> {
    let addresses = prefixes.iter().filter_map(|prefix| match prefix.address() {
        IpAddr::V6(address) => Some(address.octets()),
        IpAddr::V4(_) => None,
    });
    addresses.collect()
}

fn frame_v4(source: [u8; 4]) -> Vec<u8> {
    packets::ethernet()
        .ipv4(Ipv4Addr::from(source), "198.51.100.1")
        .udp(1000, 53)
        .payload([0; 18])
        .build()
}

fn frame_v6() -> Vec<u8> {
    packets::ethernet()
        .ipv6("2001:db8::7", "2001:db8::1")
        .udp(1000, 53)
        .payload([0; 18])
        .build()
}

/// The firewall in the kernel, with a policy in force.
struct Loaded {
    ebpf: Ebpf,
    tables: FirewallTables,
}

impl Loaded {
    fn with(policy: &Policy) -> Result<Self> {
        let max_entries = policy.block.len().max(1) as u32;
        let mut ebpf = load::load_object(OBJECT, &map_sizes(max_entries))?;
        let program: &mut Xdp = load::program(&mut ebpf, "firewall", "XDP")?;
        program
            .load()
            .map_err(|error| load::explain_program("firewall", error))?;
        let mut tables = FirewallTables::take(&mut ebpf, max_entries)?;
        tables.apply(policy)?;
        Ok(Self { ebpf, tables })
    }

    fn program(&self) -> BorrowedFd<'_> {
        let program: &Xdp = self
            .ebpf
            .program("firewall")
            .and_then(|program| program.try_into().ok())
            .expect("it is loaded");
        program.fd().expect("it is loaded").as_fd()
    }
}

/// A case whose policy is in force in a program of its own.
struct Prepared<'a> {
    name: &'static str,
    policy: &'a Policy,
    loaded: Loaded,
    frame: Vec<u8>,
    spread: Option<Spread>,
}

impl Case {
    fn prepare(&self) -> Result<Prepared<'_>> {
        let (frame, spread) = match &self.packets {
            Packets::Fixed(frame) => (frame.clone(), None),
            Packets::SpreadV4(addresses) => (frame_v4(OUTSIDE), Some(Spread::over_ipv4(addresses)?)),
            Packets::SpreadV6(addresses) => (frame_v6(), Some(Spread::over_ipv6(addresses)?)),
        };
        Ok(Prepared {
            name: self.name,
            policy: &self.policy,
            loaded: Loaded::with(&self.policy)?,
            frame,
            spread,
        })
    }
}

impl Prepared<'_> {
    fn row<'b>(&'b self, empty: &'b OwnedFd) -> Row<'b> {
        Row::new(
            self.name,
            || self.measure(empty.as_fd()),
            || self.measure(self.loaded.program()),
        )
    }

    fn measure(&self, program: BorrowedFd<'_>) -> testbed::Result<u32> {
        let first = match &self.spread {
            None => program,
            Some(spread) => {
                spread.before(program)?;
                spread.program()
            }
        };
        Ok(test_run(first, TestRun::repeated(&self.frame, RUNS))?.duration_ns)
    }

    /// How long a policy of many entries takes from the list in memory to being in force.
    fn loading(&mut self) -> Result<Option<(String, f64)>> {
        // Once a list: how it is met by packets makes no difference.
        if self.policy.block.len() < 100_000 || self.spread.is_none() {
            return Ok(None);
        }
        let mut times_ms: Vec<f64> = Vec::new();
        for _ in 0..7 {
            let start = Instant::now();
            self.loaded.tables.apply(self.policy)?;
            times_ms.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        times_ms.sort_by(f64::total_cmp);
        let list = self.name.trim_end_matches(": spread hits");
        Ok(Some((list.to_owned(), times_ms[3])))
    }
}
