//! What a set of prefixes costs, by its size.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Result, ensure};
use enforcer_policy::model::Prefix;
use testbed::{
    Drawn,
    bpf::{ProgramType, empty_program},
    figures::{self, Figures, Row},
    packets,
};

use super::{PACKETS, RUNS, place, repeat};
use crate::{
    loaded::Loaded,
    random::Dice,
    road::{blocking, prefixes},
};

/// Sets of so many prefixes of IPv4.
const SIZES: [(usize, &str); 3] = [(1_000, "1,000"), (100_000, "100,000"), (1_000_000, "1,000,000")];

/// Packets from a set that is blocked: the same one, and another one each time.
pub fn by_sets(rounds: u8) -> Result<Figures> {
    let (link, context) = place()?;
    let empty = empty_program(ProgramType::SchedCls)?;
    let lists: Vec<List> = SIZES.into_iter().map(List::of).collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for list in &lists {
        rows.push(list.fixed(&empty, &context));
        rows.push(list.spread(&empty, &context));
    }
    let _inside = link.left.host.enter()?;
    let figures = figures::measure(&mut rows, rounds)?;
    for list in &lists {
        ensure!(list.loaded.met()? == 1, "{} prefixes: no packet was blocked", list.told);
    }
    Ok(figures)
}

struct List {
    told: &'static str,
    loaded: Loaded,
    frame: Vec<u8>,
    drawn: Drawn,
}

impl List {
    fn of((count, told): (usize, &'static str)) -> Result<Self> {
        let prefixes = prefixes(count);
        let mut dice = Dice::new(8);
        let frames: Vec<Vec<u8>> = (0..PACKETS).map(|_| frame(&prefixes, &mut dice)).collect();
        Ok(Self {
            told,
            loaded: Loaded::with(&blocking(prefixes))?,
            frame: frames[0].clone(),
            drawn: Drawn::among(&frames, frames[0].clone())?,
        })
    }

    fn fixed<'a>(&'a self, empty: &'a OwnedFd, context: &'a [u8]) -> Row<'a> {
        Row::new(
            format!("{} prefixes: fixed", self.told),
            move || repeat(empty.as_fd(), &self.frame, context),
            move || repeat(self.loaded.ingress(), &self.frame, context),
        )
    }

    fn spread<'a>(&'a self, empty: &'a OwnedFd, context: &'a [u8]) -> Row<'a> {
        let measure = |program| Ok(self.drawn.run(program, context, RUNS)?.duration_ns);
        Row::new(
            format!("{} prefixes: spread", self.told),
            move || measure(empty.as_fd()),
            move || measure(self.loaded.ingress()),
        )
    }
}

/// From the first address of one of the prefixes.
fn frame(prefixes: &[Prefix], dice: &mut Dice) -> Vec<u8> {
    let source = match prefixes[dice.below(prefixes.len())].address() {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let packet = packets::ethernet().ipv4(source, "192.0.2.2");
    packet.udp(1000, 53).payload([0; 18]).build()
}
