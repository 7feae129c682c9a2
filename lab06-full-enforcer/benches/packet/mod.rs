//! What a decision costs a packet, by the number of rules, in test runs: the same packet again and again, and another one
//! each time.

mod flows;
mod hooks;
mod labs;
mod others;
mod sets;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::{Result, ensure};
use lab01_count_packets::text::grouped;
use testbed::{
    Drawn, Host, Link,
    bpf::{ProgramType, TestRun, empty_program, test_run},
    figures::{self, Figures, Row},
};

use crate::{
    loaded::Loaded,
    random::Dice,
    shapes::{self, Shape},
};
pub use flows::{FOLLOWED, by_flows};
pub use hooks::by_hooks;
pub use labs::by_labs;
use others::Others;
pub use sets::by_sets;

/// How often a program runs in a round.
const RUNS: u32 = 100_000;

/// How many different packets there are.
const PACKETS: usize = 1 << 16;

/// What `ClassBench` calls a shape.
pub fn name(shape: Shape) -> &'static str {
    match shape {
        Shape::Acl => "acl",
        Shape::Fw => "fw",
        Shape::Ipc => "ipc",
    }
}

/// Of so many rules as many as the tables hold: firewalls leave so much open that it is fewer.
pub fn at_most(shape: Shape, rules: usize) -> usize {
    match shape {
        Shape::Fw => rules.min(50_000),
        Shape::Acl | Shape::Ipc => rules,
    }
}

/// Policies of so many rules in each shape.
const RULES: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];

/// A policy in force, and packets that meet it.
struct Case {
    shape: Shape,
    rules: usize,
    name: String,
    loaded: Loaded,
    others: Others,
    fixed: Vec<u8>,
    drawn: Drawn,
}

/// Ways to match rules, each with what another packet each time costs by it.
pub struct Curve {
    /// What it is.
    pub name: &'static str,
    /// The number of rules, and nanoseconds above an empty program.
    pub points: Vec<(usize, i64)>,
}

/// By the number of rules, in three shapes; and the curves of one shape.
pub fn by_rules(rounds: u8) -> Result<(Figures, Figures, Vec<Curve>)> {
    let (link, context) = place()?;
    let empty = empty_program(ProgramType::SchedCls)?;
    let mut cases = Vec::new();
    for shape in Shape::ALL {
        for rules in RULES {
            cases.push(Case::new(shape, at_most(shape, rules))?);
        }
    }
    let compared: Vec<&Case> = cases.iter().filter(|case| case.shape == COMPARED).collect();
    let mut rows = vec![compared[0].parsing(&empty, &context)];
    for case in &cases {
        rows.push(case.fixed(&empty, &context));
        rows.push(case.spread(&empty, &context));
    }
    let mut other_rows = Vec::new();
    for case in &compared {
        other_rows.push(case.other(ENFORCER, &empty, &context, (case.loaded.ingress(), RUNS)));
        other_rows.push(case.other(TRIES, &empty, &context, (case.others.tries(), RUNS)));
        // So that each takes a fifth of a second at most.
        let runs = (200_000_000 / (10 * case.rules + 100)).min(RUNS as usize) as u32;
        other_rows.push(case.other(LINEAR, &empty, &context, (case.others.linear(), runs)));
    }
    // A test run's packet is of an interface of the namespace in which it runs.
    let inside = link.left.host.enter()?;
    let figures = figures::measure(&mut rows, rounds)?;
    let others = figures::measure(&mut other_rows, rounds)?;
    drop(inside);
    drop((rows, other_rows));
    for case in &cases {
        let met = case.loaded.met()?;
        ensure!(met > 1, "{}: {met} rules were met", case.name);
    }
    let curve = |(place, name): (usize, &'static str)| {
        let of_it = others.rows.iter().skip(place).step_by(WAYS.len());
        Curve {
            name,
            points: std::iter::zip(RULES, of_it.map(|row| row.above_floor_ns)).collect(),
        }
    };
    let curves = WAYS.into_iter().enumerate().map(curve).collect();
    Ok((figures, others, curves))
}

/// The shape whose rules are matched in other ways, too.
const COMPARED: Shape = Shape::Acl;

const ENFORCER: &str = "the enforcer";
const TRIES: &str = "two tries and a hash";
const LINEAR: &str = "rule after rule";
/// In the order of their rows.
const WAYS: [&str; 3] = [ENFORCER, TRIES, LINEAR];

/// A namespace for test runs, and a context by which their packets are of an interface there that is not `lo`, of which
/// everything is essential.
fn place() -> Result<(Link, Vec<u8>)> {
    let here = Host::new("here")?;
    let link = here.join(&Host::new("there")?)?;
    let context = context(link.left.index);
    Ok((link, context))
}

/// A `struct __sk_buff` with the index of an interface, which is in the field `ifindex`.
fn context(interface: u32) -> Vec<u8> {
    let mut context = vec![0; 44];
    context[40..].copy_from_slice(&interface.to_ne_bytes());
    context
}

/// A `struct xdp_md` of a frame of an interface, whose index is in the field `ingress_ifindex`: `data`, `data_end`,
/// `data_meta`, and behind it `rx_queue_index` and `egress_ifindex`.
fn xdp_context(frame: &[u8], interface: u32) -> Vec<u8> {
    let fields = [0, frame.len() as u32, 0, interface, 0, 0];
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

impl Case {
    fn new(shape: Shape, rules: usize) -> Result<Self> {
        let mut dice = Dice::new(6);
        let policy = shapes::policy(shape, rules, &mut dice);
        let frames: Vec<Vec<u8>> = (0..PACKETS).map(|_| shapes::frame(&policy, &mut dice)).collect();
        let longest = frames.iter().max_by_key(|frame| frame.len()).expect("there are some");
        Ok(Self {
            shape,
            rules,
            name: format!("{}, {} rules", name(shape), grouped(rules as u64)),
            loaded: Loaded::with(&policy)?,
            others: Others::with(&policy)?,
            fixed: frames[0].clone(),
            drawn: Drawn::among(&frames, longest.clone())?,
        })
    }

    /// A packet that is only parsed, at TC ingress.
    fn parsing<'a>(&'a self, empty: &'a OwnedFd, context: &'a [u8]) -> Row<'a> {
        let measure = |program| repeat(program, &self.fixed, context);
        Row::new(
            "a program that only parses",
            move || measure(empty.as_fd()),
            move || measure(self.others.parse()),
        )
    }

    /// The same packet again and again, at TC ingress.
    fn fixed<'a>(&'a self, empty: &'a OwnedFd, context: &'a [u8]) -> Row<'a> {
        let measure = |program| repeat(program, &self.fixed, context);
        Row::new(
            format!("{}: fixed", self.name),
            move || measure(empty.as_fd()),
            move || measure(self.loaded.ingress()),
        )
    }

    /// Another packet each time, at TC ingress.
    fn spread<'a>(&'a self, empty: &'a OwnedFd, context: &'a [u8]) -> Row<'a> {
        let measure = |program| Ok(self.drawn.run(program, context, RUNS)?.duration_ns);
        Row::new(
            format!("{}: spread", self.name),
            move || measure(empty.as_fd()),
            move || measure(self.loaded.ingress()),
        )
    }

    /// Another packet each time, matched in this way.
    fn other<'a>(
        &'a self,
        way: &str,
        empty: &'a OwnedFd,
        context: &'a [u8],
        (program, runs): (BorrowedFd<'a>, u32),
    ) -> Row<'a> {
        Row::new(
            format!("{}: {way}", self.name),
            move || Ok(self.drawn.run(empty.as_fd(), context, RUNS)?.duration_ns),
            move || Ok(self.drawn.run(program, context, runs)?.duration_ns),
        )
    }
}

fn repeat(program: BorrowedFd<'_>, frame: &[u8], context: &[u8]) -> testbed::Result<u32> {
    let run = TestRun {
        context,
        ..TestRun::repeated(frame, RUNS)
    };
    Ok(test_run(program, run)?.duration_ns)
}
