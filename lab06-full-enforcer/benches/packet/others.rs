//! Programs that are no enforcer, with the rules of a policy: see `ebpf/src/bin/compared.rs`.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
    programs::{ProgramFd, SchedClassifier},
};
use enforcer_policy::{
    Policy,
    model::{self, Address, Range},
};
use lab01_count_packets::load;
use lab02_xdp_firewall::mapped::MappedArray;
use lab06_full_enforcer_common::{
    compared::{Exact, Listed},
    table::Action,
};

/// The eBPF object of `ebpf/src/bin/compared.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab06-compared"));

/// The programs, loaded, with the rules of a policy in their tables.
pub struct Others {
    // Keeps the maps alive.
    _ebpf: Ebpf,
    parse: ProgramFd,
    linear: ProgramFd,
    tries: ProgramFd,
}

impl Others {
    /// With the rules of this policy, each of which has a prefix of IPv4 and a range of ports at most in each field.
    pub fn with(policy: &Policy) -> Result<Self> {
        let rules = policy.rules.len() as u32;
        let sizes = [
            ("LISTED", rules),
            ("SOURCES", rules),
            ("DESTINATIONS", rules),
            ("ACTIONS", rules),
        ];
        let mut ebpf = load::load_object(OBJECT, &sizes)?;
        let [parse, linear, tries] = ["parse", "linear", "tries"].map(|name| load_program(&mut ebpf, name));
        let (parse, linear, tries) = (parse?, linear?, tries?);
        let listed: Vec<Listed> = policy.rules.iter().map(listed).collect();
        MappedArray::new(&take(&mut ebpf, "LISTED")?)?.write(0, &listed);
        MappedArray::new(&take(&mut ebpf, "COUNT")?)?.write(0, &[u64::from(rules)]);
        fill_tries(&mut ebpf, policy)?;
        Ok(Self {
            _ebpf: ebpf,
            parse,
            linear,
            tries,
        })
    }

    /// Parses, and decides nothing.
    pub fn parse(&self) -> BorrowedFd<'_> {
        self.parse.as_fd()
    }

    /// Asks rule after rule.
    pub fn linear(&self) -> BorrowedFd<'_> {
        self.linear.as_fd()
    }

    /// Looks into two tries and a hash.
    pub fn tries(&self) -> BorrowedFd<'_> {
        self.tries.as_fd()
    }
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &mut SchedClassifier = load::program(ebpf, name, "TC")?;
    program.load().map_err(|error| load::explain_program(name, error))?;
    Ok(program.fd()?.try_clone()?)
}

fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the benchmark's object has no map {name}"))?;
    Ok(map.try_into()?)
}

fn listed(rule: &model::Rule) -> Listed {
    let ports = |ports: &[Range<u16>]| ports.first().map_or([0, u16::MAX], |range| [range.first, range.last]);
    Listed {
        source: addresses(&rule.source),
        destination: addresses(&rule.destination),
        source_port: ports(&rule.source_ports),
        destination_port: ports(&rule.destination_ports),
        protocol: rule.protocol.map_or([0, u8::MAX], |protocol| [protocol.0; 2]),
        action: action(rule),
        padding: [0; 5],
    }
}

fn action(rule: &model::Rule) -> u8 {
    match rule.action {
        model::Action::Allow => Action::Allow as u8,
        _ => Action::Block as u8,
    }
}

/// The first and the last address.
fn addresses(list: &[Address]) -> [u32; 2] {
    let Some((address, len)) = prefix(list) else {
        return [0, u32::MAX];
    };
    [address, address | u32::MAX.checked_shr(u32::from(len)).unwrap_or(0)]
}

fn prefix(list: &[Address]) -> Option<(u32, u8)> {
    match list.first()? {
        Address::Prefix(prefix) => match prefix.address() {
            IpAddr::V4(address) => Some((address.to_bits(), prefix.len())),
            IpAddr::V6(_) => None,
        },
        Address::Set(_) => None,
    }
}

type Trie = LpmTrie<MapData, [u8; 4], u32>;

/// Numbers the prefixes of each side, and has for each rule an entry of what it asks. Rules that overlap cannot be told
/// apart in this way: it is what such a design costs, not what it decides.
fn fill_tries(ebpf: &mut Ebpf, policy: &Policy) -> Result<()> {
    let mut sources: BTreeMap<(u32, u8), u32> = BTreeMap::new();
    let mut destinations: BTreeMap<(u32, u8), u32> = BTreeMap::new();
    let mut actions: HashMap<_, Exact, u64> = take(ebpf, "ACTIONS")?;
    for rule in &policy.rules {
        let exact = Exact {
            source: number(&mut sources, &rule.source),
            destination: number(&mut destinations, &rule.destination),
            port: rule.destination_ports.first().map_or(0, |range| range.first),
            protocol: rule.protocol.map_or(0, |protocol| u16::from(protocol.0)),
        };
        actions.insert(exact, u64::from(action(rule)), 0)?;
    }
    for (name, numbers) in [("SOURCES", sources), ("DESTINATIONS", destinations)] {
        let mut trie: Trie = take(ebpf, name)?;
        for ((address, len), number) in numbers {
            trie.insert(&Key::new(u32::from(len), address.to_be_bytes()), number, 0)?;
        }
    }
    Ok(())
}

fn number(numbers: &mut BTreeMap<(u32, u8), u32>, list: &[Address]) -> u32 {
    let next = numbers.len() as u32 + 1;
    prefix(list).map_or(0, |prefix| *numbers.entry(prefix).or_insert(next))
}
