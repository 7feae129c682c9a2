//! From one host to another, all the way across a veth pair: frames as a card would bring them, and what ordinary sockets
//! send. One CPU sends and receives, as veth receives on the CPU that sends.
//!
//! Beside the enforcer stand a program that drops everything, no program at all, and nftables at its earliest hook, if it is
//! installed.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::Context as _;
use enforcer_policy::{
    Policy,
    model::{Action, Address, DefaultVerdict, Mode, Prefix, Rule, Set},
};
use testbed::{
    Error, Host, Link, Result,
    bpf::{ProgramType, TcxLink, XdpLink, XdpMode, attach_tcx, attach_xdp, empty_program, program_returning},
    figures::{self, Figures, Row},
    spread::numbers,
    stay_on_cpu,
};

use crate::{loaded::Loaded, packet::FOLLOWED};

/// How many frames are sent for one measurement.
const FRAMES: usize = 60_000;
/// How many different frames there are.
const DIFFERENT: usize = 8192;
/// `TC_ACT_SHOT`, `XDP_DROP`.
const DROP: u32 = 2;
const DROP_AT_XDP: u32 = 1;
/// Where nobody reads what comes.
const PORT: u16 = 4000;

/// What decides at the receiver.
#[derive(Clone, Copy)]
enum Means<'a> {
    Nothing,
    Xdp(BorrowedFd<'a>),
    Tc(BorrowedFd<'a>),
    Nftables(&'a str),
}

/// Detaches what is attached when it is dropped.
enum Attached {
    Nothing,
    Xdp(#[expect(dead_code, reason = "kept for what dropping it does")] XdpLink),
    Tc(#[expect(dead_code, reason = "kept for what dropping it does")] TcxLink),
}

/// Dropped, beside a program that drops all; accepted, beside no program.
pub fn measure(rounds: u8) -> anyhow::Result<[Figures; 3]> {
    let road = Road::build()?;
    let drop_all = program_returning(ProgramType::SchedCls, DROP)?;
    let drop_all_at_xdp = program_returning(ProgramType::Xdp, DROP_AT_XDP)?;
    let empty_at_xdp = empty_program(ProgramType::Xdp)?;
    let lists: Vec<List> = [(1_000, "1,000"), (100_000, "100,000")]
        .into_iter()
        .map(|(count, told)| List::of(count, told))
        .collect::<anyhow::Result<_>>()?;
    let interface = &road.link.right.interface;
    let rulesets: Vec<String> = lists.iter().map(|list| ruleset(interface, &list.prefixes)).collect();
    let (mut dropped, mut accepted, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    for (list, ruleset) in lists.iter().zip(&rulesets) {
        let (at_tc, at_xdp) = (Means::Tc(drop_all.as_fd()), Means::Xdp(drop_all_at_xdp.as_fd()));
        let mut means = vec![
            ("the enforcer at TC", Means::Tc(list.loaded.ingress()), at_tc),
            ("the enforcer at XDP", Means::Xdp(list.loaded.xdp()), at_xdp),
        ];
        if has_nft() {
            means.push(("nftables", Means::Nftables(ruleset), at_tc));
        }
        for (who, means, dropping_all) in means {
            let name = format!("{who}, a set of {} prefixes", list.told);
            dropped.push(road.frames_row(&name, list.frames(&road), dropping_all, means));
            accepted.push(road.frames_row(&name, road.other_frames(), Means::Nothing, means));
            sent.push(road.sockets_row(&name, Means::Nothing, means));
        }
    }
    let name = "an empty program at XDP";
    let means = Means::Xdp(empty_at_xdp.as_fd());
    accepted.push(road.frames_row(name, road.other_frames(), Means::Nothing, means));
    sent.push(road.sockets_row(name, Means::Nothing, means));
    Ok([
        figures::measure(&mut dropped, rounds)?.above("drops all"),
        figures::measure(&mut accepted, rounds)?.above("nothing"),
        figures::measure(&mut sent, rounds)?.above("nothing"),
    ])
}

/// The first address of 198.18.0.0/15, of which no list has any.
const OUTSIDE: u32 = 0xc612_0000;

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

    /// From addresses of the list.
    fn frames(&self, road: &Road) -> Vec<Vec<u8>> {
        road.frames(|number| self.inside[number as usize % self.inside.len()])
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
    policy.defaults.ingress = DefaultVerdict::Allow;
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

/// Two hosts, of which one sends.
struct Road {
    sender: Host,
    receiver: Host,
    link: Link,
    /// In the sender.
    socket: UdpSocket,
    target: SocketAddr,
    _sink: UdpSocket,
}

impl Road {
    fn build() -> anyhow::Result<Self> {
        let (sender, receiver) = (Host::new("sender")?, Host::new("receiver")?);
        let link = sender.join(&receiver)?;
        let target = SocketAddr::from((link.right.ipv4, PORT));
        let sink = receiver.run(|| UdpSocket::bind(("0.0.0.0", PORT)));
        let socket = sender.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect(target)?;
            std::io::Result::Ok(socket)
        });
        Ok(Self {
            sender,
            receiver,
            link,
            socket: socket.context("the sender's socket cannot be opened")?,
            target,
            _sink: sink.context("the receiver's socket cannot be opened")?,
        })
    }

    fn frames(&self, source: impl Fn(u64) -> u32) -> Vec<Vec<u8>> {
        let frame = |number: u64| {
            let packet = self.link.left.frame_to(&self.link.right);
            packet
                .ipv4(Ipv4Addr::from(source(number)), self.link.right.ipv4)
                .udp(1000, PORT)
                .payload([0; 18])
                .build()
        };
        numbers(7).map(frame).take(DIFFERENT).collect()
    }

    /// From addresses that no list has.
    fn other_frames(&self) -> Vec<Vec<u8>> {
        self.frames(|number| OUTSIDE | number as u32 & 0xffff)
    }

    fn frames_row<'a>(&'a self, name: &str, frames: Vec<Vec<u8>>, floor: Means<'a>, means: Means<'a>) -> Row<'a> {
        let again = frames.clone();
        Row::new(
            name,
            move || self.send_frames(&frames, floor),
            move || self.send_frames(&again, means),
        )
    }

    fn sockets_row<'a>(&'a self, name: &str, floor: Means<'a>, means: Means<'a>) -> Row<'a> {
        Row::new(
            name,
            move || self.send_by_socket(floor),
            move || self.send_by_socket(means),
        )
    }

    /// Nanoseconds a frame.
    fn send_frames(&self, frames: &[Vec<u8>], means: Means<'_>) -> Result<u32> {
        let injector = self
            .sender
            .injector(&self.link.left.interface)?
            .bypass_traffic_control()?;
        self.timed(means, || {
            injector.send_all(frames.iter().cycle().take(FRAMES)).map(drop)
        })
    }

    /// Nanoseconds a datagram of an ordinary socket.
    fn send_by_socket(&self, means: Means<'_>) -> Result<u32> {
        self.timed(means, || {
            for _ in 0..FRAMES {
                let sent = self.socket.send(&[0; 18]);
                sent.map_err(|error| Error::system(format!("sending to {}", self.target), error))?;
            }
            Ok(())
        })
    }

    fn timed(&self, means: Means<'_>, send: impl FnOnce() -> Result<()> + Send) -> Result<u32> {
        let _attached = match means {
            Means::Nothing => Attached::Nothing,
            Means::Xdp(program) => Attached::Xdp(attach_xdp(program, &self.link.right, XdpMode::Native)?),
            Means::Tc(program) => Attached::Tc(attach_tcx(program, &self.link.right)?),
            Means::Nftables(ruleset) => {
                self.nft(ruleset)?;
                Attached::Nothing
            }
        };
        // A thread of its own, as it stays on one CPU for good.
        let elapsed = std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                stay_on_cpu(0)?;
                let start = Instant::now();
                send()?;
                Ok(start.elapsed())
            });
            sending.join().expect("sending does not panic")
        });
        if matches!(means, Means::Nftables(_)) {
            self.nft("flush ruleset\n")?;
        }
        elapsed.map(|elapsed| (elapsed.as_nanos() / FRAMES as u128) as u32)
    }

    fn nft(&self, ruleset: &str) -> Result {
        let failed = |error| Error::system("running nft", error);
        let mut command = self.receiver.command("nft");
        let mut child = command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(ruleset.as_bytes()).map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        if status.success() {
            Ok(())
        } else {
            Err(failed(std::io::Error::other("it refused the ruleset")))
        }
    }
}

/// Whether nftables can be measured here.
fn has_nft() -> bool {
    let mut command = Command::new("nft");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn ruleset(interface: &str, prefixes: &[Prefix]) -> String {
    let elements: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    format!(
        "flush ruleset\n\
         table netdev firewall {{\n\
         set blocked {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }} }}\n\
         chain ingress {{\n\
         type filter hook ingress device \"{interface}\" priority 0; policy accept;\n\
         ip saddr @blocked drop\n\
         }}\n\
         }}\n",
        elements.join(", ")
    )
}
