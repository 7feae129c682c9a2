//! From one host to another, all the way: what a frame costs that is sent by one host, crosses a veth pair, and is
//! dropped by the other. One CPU does both, as veth receives on the CPU that sends.
//!
//! Beside the firewall stand an XDP program that drops everything, which is the floor, and nftables at its earliest
//! hook, if it is installed.

use std::{net::Ipv4Addr, os::fd::BorrowedFd, time::Instant};

use lab02_xdp_firewall_common::prefix_set::build::Prefix;
use testbed::{
    Host, Link, Result,
    bpf::{ProgramType, XdpMode, attach_xdp, program_returning},
    figures::Row,
    nftables,
    spread::numbers,
    stay_on_cpu,
};

/// How many frames are sent for one measurement.
const FRAMES: usize = 60_000;
/// How many different frames there are.
const DIFFERENT: usize = 8192;
/// `XDP_DROP`.
const DROP: u32 = 1;

/// Two hosts, and the frames that one sends to the other.
pub struct Road {
    sender: Host,
    receiver: Host,
    link: Link,
}

/// What drops the frames at the receiver.
pub enum Dropper<'a> {
    /// An XDP program.
    Xdp(BorrowedFd<'a>),
    /// A set of nftables at the ingress hook of the interface.
    Nftables(&'a [Prefix]),
}

impl Road {
    pub fn build() -> Result<Self> {
        let (sender, receiver) = (Host::new("sender")?, Host::new("receiver")?);
        let link = sender.join(&receiver)?;
        Ok(Self { sender, receiver, link })
    }

    /// A row for `dropper`, whose floor is a program that drops everything; `sources` are those that are dropped.
    pub fn row<'a>(&'a self, name: &str, sources: &'a [[u8; 4]], dropper: Dropper<'a>) -> Result<Row<'a>> {
        let drop_all = program_returning(ProgramType::Xdp, DROP)?;
        let frames = self.frames(sources);
        let frames_again = frames.clone();
        Ok(Row::new(
            name,
            move || self.send(&frames, &Dropper::Xdp(std::os::fd::AsFd::as_fd(&drop_all))),
            move || self.send(&frames_again, &dropper),
        ))
    }

    fn frames(&self, sources: &[[u8; 4]]) -> Vec<Vec<u8>> {
        let frame = |number: u64| {
            let source = sources[number as usize % sources.len()];
            let packet = self.link.left.frame_to(&self.link.right);
            packet
                .ipv4(Ipv4Addr::from(source), self.link.right.ipv4)
                .udp(1000, 53)
                .payload([0; 18])
                .build()
        };
        numbers(7).map(frame).take(DIFFERENT).collect()
    }

    /// Nanoseconds a frame.
    fn send(&self, frames: &[Vec<u8>], dropper: &Dropper<'_>) -> Result<u32> {
        let _attached = match dropper {
            Dropper::Xdp(program) => Some(attach_xdp(*program, &self.link.right, XdpMode::Native)?),
            Dropper::Nftables(prefixes) => {
                nftables::apply(
                    &self.receiver,
                    &nftables::dropping(&self.link.right.interface, prefixes),
                )?;
                None
            }
        };
        let injector = self
            .sender
            .injector(&self.link.left.interface)?
            .bypass_traffic_control()?;
        // A thread of its own, as it stays on one CPU for good.
        let elapsed = std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                stay_on_cpu(0)?;
                let start = Instant::now();
                injector.send_all(frames.iter().cycle().take(FRAMES))?;
                Ok(start.elapsed())
            });
            sending.join().expect("sending does not panic")
        });
        if matches!(dropper, Dropper::Nftables(_)) {
            nftables::apply(&self.receiver, "flush ruleset\n")?;
        }
        elapsed.map(|elapsed| (elapsed.as_nanos() / FRAMES as u128) as u32)
    }
}
