//! From one host to another, all the way across a veth pair: frames as a card would bring them, and what ordinary sockets
//! send. One CPU sends and receives, as veth receives on the CPU that sends.
//!
//! Beside the enforcer stand a program that drops everything, no program at all, and nftables at its earliest hook, if it is
//! installed.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, ensure};
use enforcer_policy::{
    Policy,
    model::{Action, Address, Mode, Prefix, Rule, Set},
};
use testbed::{
    Error, Host, Link, Result,
    bpf::{ProgramType, TcxLink, XdpLink, XdpMode, attach_tcx, attach_xdp, empty_program, program_returning},
    figures::{self, Figures, Row},
    nftables,
    spread::numbers,
};

use crate::{loaded::Loaded, packet::FOLLOWED, timed::quartile_ns};

/// How many frames, or datagrams, are timed at once.
const BATCH: u32 = 500;
/// How many different frames there are.
const DIFFERENT: usize = 8_192;
/// `TC_ACT_SHOT`, `XDP_DROP`.
const DROP: u32 = 2;
const DROP_AT_XDP: u32 = 1;
/// Where nobody reads what comes.
const PORT: u16 = 4000;

/// What decides at the receiver.
enum Means<'a> {
    Nothing,
    Xdp(BorrowedFd<'a>),
    Tc(BorrowedFd<'a>),
    Nftables(&'a [Prefix]),
}

/// Detaches what is attached when it is dropped.
enum Attached {
    Nothing,
    Xdp(#[expect(dead_code, reason = "kept for what dropping it does")] XdpLink),
    Tc(#[expect(dead_code, reason = "kept for what dropping it does")] TcxLink),
}

/// Dropped, beside a program that drops all; accepted, and sent by sockets, beside no program.
pub fn measure(rounds: u8) -> anyhow::Result<[Figures; 3]> {
    let drop_all = program_returning(ProgramType::SchedCls, DROP)?;
    let drop_all_at_xdp = program_returning(ProgramType::Xdp, DROP_AT_XDP)?;
    let empty_at_xdp = empty_program(ProgramType::Xdp)?;
    let open = Road::with(&Means::Nothing)?;
    let empty = Road::with(&Means::Xdp(empty_at_xdp.as_fd()))?;
    let closed = Road::with(&Means::Tc(drop_all.as_fd()))?;
    let closed_at_xdp = Road::with(&Means::Xdp(drop_all_at_xdp.as_fd()))?;
    let lists = [List::of(1_000, "1,000")?, List::of(100_000, "100,000")?];
    let mut guarded = Vec::new();
    for list in &lists {
        let mut means = vec![
            ("the enforcer at TC", Means::Tc(list.loaded.ingress()), &closed),
            ("the enforcer at XDP", Means::Xdp(list.loaded.xdp()), &closed_at_xdp),
        ];
        if nftables::is_installed() {
            means.push(("nftables", Means::Nftables(&list.prefixes), &closed));
        }
        for (who, means, closed) in means {
            let name = format!("{who}, a set of {} prefixes", list.told);
            guarded.push((name, Road::with(&means)?, closed, list));
        }
    }
    let (mut dropped, mut accepted, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    for (name, road, closed, list) in &guarded {
        let listed = |number| list.inside[number as usize % list.inside.len()];
        dropped.push(Row::new(name, closed.frames_from(listed)?, road.frames_from(listed)?));
        accepted.push(Row::new(name, open.frames_from(unlisted)?, road.frames_from(unlisted)?));
        sent.push(Row::new(name, || open.send(), || road.send()));
    }
    let name = "an empty program at XDP";
    accepted.push(Row::new(
        name,
        open.frames_from(unlisted)?,
        empty.frames_from(unlisted)?,
    ));
    sent.push(Row::new(name, || open.send(), || empty.send()));
    let figures = [
        figures::measure(&mut dropped, rounds)?.above("drops all"),
        figures::measure(&mut accepted, rounds)?.above("nothing"),
        figures::measure(&mut sent, rounds)?.above("nothing"),
    ];
    for list in &lists {
        ensure!(
            list.loaded.met()? == 1,
            "nothing from a set of {} prefixes was dropped",
            list.told
        );
    }
    Ok(figures)
}

/// 198.18.0.1, which is in no list: the same each time, so that all frames are of one flow.
fn unlisted(_number: u64) -> u32 {
    0xc612_0001
}

/// A set of prefixes that are blocked, and the programs with it.
struct List {
    told: &'static str,
    prefixes: Vec<Prefix>,
    inside: Vec<u32>,
    loaded: Loaded,
}

impl List {
    fn of(count: usize, told: &'static str) -> anyhow::Result<Self> {
        let prefixes = prefixes(count);
        let inside = prefixes.iter().filter_map(|prefix| match prefix.address() {
            std::net::IpAddr::V4(address) => Some(address.to_bits()),
            std::net::IpAddr::V6(_) => None,
        });
        Ok(Self {
            told,
            inside: inside.collect(),
            loaded: Loaded::following(FOLLOWED, &blocking(prefixes.clone()))?,
            prefixes,
        })
    }
}

/// Prefixes of 17 to 28 bits, as lists of networks have them, below 192.0.0.0.
pub fn prefixes(count: usize) -> Vec<Prefix> {
    let lengths = numbers(2).map(|number| 17 + (number % 12) as u8);
    let addresses = numbers(3).map(|number| Ipv4Addr::from(number as u32 % 0xc000_0000));
    let prefixes = addresses
        .zip(lengths)
        .filter_map(|(address, len)| Prefix::new(address.into(), len));
    // The hosts of the testbed are in 10.0.0.0/8.
    let elsewhere =
        |prefix: &Prefix| !matches!(prefix.address(), std::net::IpAddr::V4(address) if address.octets()[0] == 10);
    prefixes.filter(elsewhere).take(count).collect()
}

/// A policy that blocks what comes from a set of these prefixes, and allows the rest.
pub fn blocking(prefixes: Vec<Prefix>) -> Policy {
    let mut policy = Policy::allow_all("list");
    policy.mode = Mode::Block;
    let set = Set {
        prefixes,
        ..Set::default()
    };
    policy.sets.insert("listed".into(), set);
    let mut rule = Rule::new("no-listed", Action::Block);
    rule.source = vec![Address::Set("listed".into())];
    policy.rules = vec![rule];
    policy
}

/// Two hosts, of which one sends, and something decides at the other.
struct Road {
    sender: Host,
    link: Link,
    /// In the sender.
    socket: UdpSocket,
    target: SocketAddr,
    _sink: UdpSocket,
    _attached: Attached,
}

impl Road {
    fn with(means: &Means<'_>) -> anyhow::Result<Self> {
        let (sender, receiver) = (Host::new("sender")?, Host::new("receiver")?);
        let link = sender.join(&receiver)?;
        let target = SocketAddr::from((link.right.ipv4, PORT));
        let sink = receiver.run(|| UdpSocket::bind(("0.0.0.0", PORT)));
        let socket = sender.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect(target)?;
            std::io::Result::Ok(socket)
        });
        let attached = match means {
            Means::Nothing => Attached::Nothing,
            Means::Xdp(program) => Attached::Xdp(attach_xdp(*program, &link.right, XdpMode::Native)?),
            Means::Tc(program) => Attached::Tc(attach_tcx(*program, &link.right)?),
            Means::Nftables(prefixes) => {
                nftables::apply(&receiver, &nftables::dropping(&link.right.interface, prefixes))?;
                Attached::Nothing
            }
        };
        Ok(Self {
            sender,
            link,
            socket: socket.context("the sender's socket cannot be opened")?,
            target,
            _sink: sink.context("the receiver's socket cannot be opened")?,
            _attached: attached,
        })
    }

    /// What sends frames as a card would bring them, from such addresses, and returns nanoseconds a frame.
    fn frames_from(&self, source: impl Fn(u64) -> u32) -> Result<impl FnMut() -> Result<u32> + '_> {
        let frame = |number: u64| {
            let packet = self.link.left.frame_to(&self.link.right);
            packet
                .ipv4(Ipv4Addr::from(source(number)), self.link.right.ipv4)
                .udp(1000, PORT)
                .payload([0; 18])
                .build()
        };
        let frames: Vec<Vec<u8>> = numbers(7).map(frame).take(DIFFERENT).collect();
        let injector = self.sender.injector(&self.link.left.interface)?;
        let injector = injector.bypass_traffic_control()?;
        Ok(move || {
            let mut frames = frames.iter().cycle();
            quartile_ns(BATCH, || {
                injector.send_all(frames.by_ref().take(BATCH as usize)).map(drop)
            })
        })
    }

    /// Sends by an ordinary socket; returns nanoseconds a datagram.
    fn send(&self) -> Result<u32> {
        quartile_ns(BATCH, || {
            for _ in 0..BATCH {
                let sent = self.socket.send(&[0; 18]);
                sent.map_err(|error| Error::system(format!("sending to {}", self.target), error))?;
            }
            Ok(())
        })
    }
}
