//! The same addresses in four kinds of table, and a program for each that looks an address up once; beside them programs
//! that look nothing up and do one other thing.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapError, lpm_trie::Key},
    programs::Xdp,
};
use lab01_count_packets::load;
use lab02_xdp_firewall::mapped::MappedArray;
use lab02_xdp_firewall_common::{
    firewall::Config,
    prefix_set::build::{Content, Prefix},
};

/// The eBPF object of `ebpf/src/bin/lookups.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab02-lookups"));

/// What a program does beside parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Parse,
    /// Calls a function of its own.
    Call,
    /// Reads the clock.
    Clock,
    /// Takes a lock and gives it back.
    Lock,
    /// Looks into the kernel's `LPM_TRIE`.
    LpmTrie,
    /// Looks into the tree of intervals.
    Tree,
    /// Looks into the kernel's `HASH`.
    Hash,
    /// Looks into the table of single addresses.
    Exact,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Call => "call",
            Self::Clock => "clock",
            Self::Lock => "lock",
            Self::LpmTrie => "lpm_trie",
            Self::Tree => "tree",
            Self::Hash => "hash",
            Self::Exact => "exact",
        }
    }

    /// Whether it looks into a table, and so drops what is listed there.
    pub fn has_table(self) -> bool {
        matches!(self, Self::LpmTrie | Self::Tree | Self::Hash | Self::Exact)
    }
}

/// A program whose table, if it has one, is filled.
pub struct Lookup {
    ebpf: Ebpf,
    program: &'static str,
}

impl Lookup {
    /// Of this kind, with `prefixes` in its table if it has one; for `Hash` and `Exact` these are single addresses.
    pub fn prepare(kind: Kind, prefixes: &[Prefix]) -> Result<Self> {
        let mut content = Content::default();
        let block = content.add(prefixes, 1);
        let entries = prefixes.len().max(1) as u32;
        let sizes = [
            ("PREFIXES", entries),
            ("ADDRESSES", entries),
            ("NODES", content.nodes_v4.len().max(1) as u32),
            ("BUCKETS", content.buckets_v4.len().max(1) as u32),
        ];
        let mut ebpf = load::load_object(OBJECT, &sizes)?;
        let program: &mut Xdp = load::program(&mut ebpf, kind.program(), "XDP")?;
        program
            .load()
            .map_err(|error| load::explain_program(kind.program(), error))?;
        let addresses = prefixes.iter().filter_map(|prefix| match prefix.address() {
            std::net::IpAddr::V4(address) => Some((address, prefix.len())),
            std::net::IpAddr::V6(_) => None,
        });
        match kind {
            Kind::Parse | Kind::Call | Kind::Clock | Kind::Lock => {}
            Kind::LpmTrie => fill_trie(&mut take(&mut ebpf, "PREFIXES")?, addresses)?,
            Kind::Hash => fill_hash(&mut take(&mut ebpf, "ADDRESSES")?, addresses)?,
            Kind::Tree | Kind::Exact => {
                MappedArray::new(&take(&mut ebpf, "NODES")?)?.write(0, &content.nodes_v4);
                MappedArray::new(&take(&mut ebpf, "BUCKETS")?)?.write(0, &content.buckets_v4);
                let mut config: Array<_, Config> = take(&mut ebpf, "CONFIG")?;
                config.set(
                    0,
                    Config {
                        block,
                        ..Config::default()
                    },
                    0,
                )?;
            }
        }
        Ok(Self {
            ebpf,
            program: kind.program(),
        })
    }

    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        let program = self.ebpf.program(self.program);
        let program: &Xdp = program
            .and_then(|program| program.try_into().ok())
            .expect("it is loaded");
        program.fd().expect("it is loaded").as_fd()
    }
}

type Trie = LpmTrie<aya::maps::MapData, [u8; 4], u8>;
type Table = HashMap<aya::maps::MapData, [u8; 4], u8>;

fn fill_trie(trie: &mut Trie, prefixes: impl Iterator<Item = (Ipv4Addr, u8)>) -> Result<(), MapError> {
    for (address, len) in prefixes {
        trie.insert(&Key::new(u32::from(len), address.octets()), 1, 0)?;
    }
    Ok(())
}

fn fill_hash(table: &mut Table, addresses: impl Iterator<Item = (Ipv4Addr, u8)>) -> Result<(), MapError> {
    for (address, _) in addresses {
        table.insert(address.octets(), 1, 0)?;
    }
    Ok(())
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
