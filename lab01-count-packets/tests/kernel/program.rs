//! The XDP program, loaded and attached to nothing: packets come through test runs.

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsFd as _};

use aya::{
    Ebpf,
    programs::{ProgramFd, Xdp},
};
use lab01_count_packets::{
    OBJECT,
    counts::{Counts, Snapshot},
    load,
    report::protocol_name,
};
use lab01_count_packets_common::{
    counter::{Counter, Protocol},
    headers::{Headers, Malformed},
};
use testbed::bpf::{self, TestRun};

/// `enum xdp_action` of linux/bpf.h.
const XDP_PASS: u32 = 2;

/// The program, loaded.
pub struct Program {
    // Keeps the program and those maps alive that `counts` does not hold.
    _ebpf: Ebpf,
    fd: ProgramFd,
    counts: Counts,
}

impl Program {
    /// Loads it with room for 10,240 sources, as the command does.
    pub fn load() -> Self {
        Self::load_with_room_for(10_240)
    }

    /// Loads it with room for so many sources of either version.
    pub fn load_with_room_for(sources: u32) -> Self {
        let capacities = [("PACKETS_BY_IPV4_SOURCE", sources), ("PACKETS_BY_IPV6_SOURCE", sources)];
        let mut ebpf = load::load_object(OBJECT, &capacities).unwrap();
        let counts = Counts::take(&mut ebpf).unwrap();
        let program: &mut Xdp = load::program(&mut ebpf, "count_packets", "XDP").unwrap();
        program.load().unwrap();
        let fd = program.fd().unwrap().try_clone().unwrap();
        Self {
            _ebpf: ebpf,
            fd,
            counts,
        }
    }

    /// Runs it once on a frame, which has to pass unchanged.
    pub fn run(&self, frame: &[u8]) {
        let outcome = bpf::test_run(self.fd.as_fd(), TestRun::once(frame))
            .unwrap_or_else(|error| panic!("{error}: {} bytes {frame:02x?}", frame.len()));
        assert_eq!(outcome.retval, XDP_PASS, "{frame:02x?}");
        assert_eq!(outcome.data_out, frame);
    }

    /// What is refused to be run is an error, not a panic.
    pub fn try_run(&self, frame: &[u8]) -> testbed::Result<u32> {
        bpf::test_run(self.fd.as_fd(), TestRun::once(frame)).map(|outcome| outcome.retval)
    }

    /// What it has counted since it was loaded.
    pub fn counted(&self) -> Counted {
        Counted::from(self.counts.snapshot().unwrap())
    }

    /// What it counts for this frame alone.
    pub fn counted_for(&self, frame: &[u8]) -> Counted {
        let before = self.counted();
        self.run(frame);
        self.counted().since(&before)
    }
}

/// Counters by what people call them; those that are zero are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub sources: BTreeMap<IpAddr, Counter>,
    pub protocols: BTreeMap<String, Counter>,
    pub malformed: BTreeMap<&'static str, Counter>,
    pub untracked: Counter,
}

impl From<Snapshot> for Counted {
    fn from(snapshot: Snapshot) -> Self {
        let protocols = snapshot.protocols.into_iter();
        let malformed = snapshot.malformed.into_iter();
        Self {
            sources: snapshot.sources.into_iter().collect(),
            protocols: protocols
                .map(|(protocol, counter)| (protocol_name(protocol), counter))
                .collect(),
            malformed: malformed.map(|(reason, counter)| (reason.name(), counter)).collect(),
            untracked: snapshot.untracked,
        }
    }
}

impl Counted {
    /// What has to be counted for these frames: the parser's view on the host, where there is room for every source.
    pub fn on_host<F: AsRef<[u8]>>(frames: impl IntoIterator<Item = F>) -> Self {
        let mut counted = Self::default();
        for frame in frames {
            counted.add(frame.as_ref());
        }
        counted
    }

    fn add(&mut self, frame: &[u8]) {
        let bytes = frame.len() as u64;
        match Headers::parse(frame) {
            Ok(headers) => {
                let protocol = protocol_name(Protocol::of(&headers));
                self.protocols.entry(protocol).or_default().add(bytes);
                if let Some(source) = source_of(&headers) {
                    self.sources.entry(source).or_default().add(bytes);
                }
            }
            Err(malformed) => self.malformed.entry(malformed.name()).or_default().add(bytes),
        }
    }

    /// One packet of `bytes` bytes, well-formed.
    pub fn one(source: Option<&str>, protocol: &str, bytes: usize) -> Self {
        let counter = one_packet(bytes);
        Self {
            sources: source
                .map(|source| (source.parse().unwrap(), counter))
                .into_iter()
                .collect(),
            protocols: BTreeMap::from([(protocol.to_owned(), counter)]),
            ..Self::default()
        }
    }

    /// One packet of `bytes` bytes, refused.
    pub fn one_malformed(reason: Malformed, bytes: usize) -> Self {
        Self {
            malformed: BTreeMap::from([(reason.name(), one_packet(bytes))]),
            ..Self::default()
        }
    }

    fn since(mut self, before: &Self) -> Self {
        subtract(&mut self.sources, &before.sources);
        subtract(&mut self.protocols, &before.protocols);
        subtract(&mut self.malformed, &before.malformed);
        self.untracked = difference(self.untracked, before.untracked);
        self
    }
}

/// The source address that packets are counted by; `None` for what is not IP.
pub fn source_of(headers: &Headers) -> Option<IpAddr> {
    match headers.ip_version {
        4 => Some(IpAddr::from(headers.source.ipv4())),
        6 => Some(IpAddr::from(headers.source.ipv6())),
        _ => None,
    }
}

fn one_packet(bytes: usize) -> Counter {
    Counter {
        packets: 1,
        bytes: bytes as u64,
    }
}

fn subtract<K: Ord>(counters: &mut BTreeMap<K, Counter>, before: &BTreeMap<K, Counter>) {
    for (key, counter) in before {
        if let Some(now) = counters.get_mut(key) {
            *now = difference(*now, *counter);
        }
    }
    counters.retain(|_, counter| *counter != Counter::ZERO);
}

fn difference(now: Counter, before: Counter) -> Counter {
    Counter {
        packets: now.packets - before.packets,
        bytes: now.bytes - before.bytes,
    }
}
