//! Test runs of TC programs over very many flows.
//!
//! As with [`Spread`](crate::Spread), a small program goes before the one under test, writes another address into the
//! packet on each run, and hands over by a tail call. The addresses are not listed but computed, so that a million of
//! them cost no memory, and take nothing of the CPU's cache from the program under test.

use std::{
    cell::Cell,
    io,
    net::Ipv4Addr,
    ops::Range,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use crate::{
    Error, Result,
    before::{self, CONTEXT, R0, R1, R2, R3, R4},
    bpf::{self, Instruction, ProgramType, TestOutcome, TestRun},
    packets::{self, Packet},
};

/// The TCP ports of [`shake_hands`] and [`Strangers`], of each client and of the server.
pub const PORTS: (u16, u16) = (1000, 443);

/// Has `count` clients, `first` and the ones behind it, open a connection each to `server`, which `ingress` and `egress`
/// see in this context (see [`TestRun`]): a SYN in, its answer out, an ACK in. A thousand at a time, so that the SYNs do not
/// push each other out of a table.
pub fn shake_hands(
    [ingress, egress]: [BorrowedFd<'_>; 2],
    context: &[u8],
    first: Ipv4Addr,
    server: Ipv4Addr,
    count: u32,
) -> Result {
    let inwards = Walk::from(first, Differs::Source)?.in_context(context);
    let outwards = Walk::from(first, Differs::Destination)?.in_context(context);
    let (client_port, server_port) = PORTS;
    let from_server = packets::ethernet().ipv4(server, first).tcp(server_port, client_port);
    let (syn, ack) = (
        to_server(first, server).syn().build(),
        to_server(first, server).ack().build(),
    );
    let answer = from_server.syn().ack().build();
    for begin in (0..count).step_by(1000) {
        let numbers = begin..count.min(begin + 1000);
        inwards.run(ingress, &syn, numbers.clone())?;
        outwards.run(egress, &answer, numbers.clone())?;
        inwards.run(ingress, &ack, numbers)?;
    }
    Ok(())
}

/// Clients of whom each begins a flow by a SYN, and sends nothing more: another one each time.
#[derive(Debug)]
pub struct Strangers {
    walk: Walk,
    syn: Vec<u8>,
    next: Cell<u32>,
}

impl Strangers {
    /// How many there are before the first one comes again: more than a table of half-open flows remembers.
    const ALL: u32 = 1 << 20;

    /// `first` and the ones behind it, who want to connect to `server`.
    pub fn from(first: Ipv4Addr, server: Ipv4Addr) -> Result<Self> {
        Ok(Self {
            walk: Walk::from(first, Differs::Source)?,
            syn: to_server(first, server).syn().build(),
            next: Cell::new(0),
        })
    }

    /// In this context: see [`TestRun`].
    #[must_use]
    pub fn in_context(mut self, context: &[u8]) -> Self {
        self.walk = self.walk.in_context(context);
        self
    }

    /// Runs `program` once for each of the next `count` strangers, of whom there are a million.
    pub fn run(&self, program: BorrowedFd<'_>, count: u32) -> Result<TestOutcome> {
        let next = self.next.get();
        let first = if next + count > Self::ALL { 0 } else { next };
        self.next.set(first + count);
        self.walk.run(program, &self.syn, first..first + count)
    }
}

fn to_server(client: Ipv4Addr, server: Ipv4Addr) -> Packet {
    packets::ethernet().ipv4(client, server).tcp(PORTS.0, PORTS.1)
}

/// Which address of an IPv4 packet differs from run to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differs {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

impl Differs {
    /// Behind an Ethernet header without VLAN tags.
    fn offset(self) -> i16 {
        match self {
            Self::Source => 14 + 12,
            Self::Destination => 14 + 16,
        }
    }
}

/// The program that goes before the one under test: one address after the other.
#[derive(Debug)]
pub struct Walk {
    before: Before,
}

impl Walk {
    /// Over addresses from `first` on.
    pub fn from(first: Ipv4Addr, differs: Differs) -> Result<Self> {
        Before::load(|state, next_program| program(state, next_program, first, differs, &in_turn()))
            .map(|before| Self { before })
    }

    /// In this context: see [`TestRun`].
    #[must_use]
    pub fn in_context(mut self, context: &[u8]) -> Self {
        context.clone_into(&mut self.before.context);
        self
    }

    /// Runs `program` once for each of the addresses with these numbers, on `frame` with that address in it. 0 is the
    /// first address.
    pub fn run(&self, program: BorrowedFd<'_>, frame: &[u8], numbers: Range<u32>) -> Result<TestOutcome> {
        // A run that a signal has ended begins again. It goes on with the next address, and beyond the last one nothing
        // is run, so that each is met once.
        self.before.set_state([numbers.start, numbers.end])?;
        self.before.run(program, frame, numbers.end - numbers.start)
    }
}

/// The program that goes before the one under test: addresses drawn at random.
#[derive(Debug)]
pub struct Draw {
    before: Before,
    seed: Cell<u32>,
}

impl Draw {
    /// From `count` addresses, `first` and the ones behind it; at most 2^31 - 1.
    pub fn from(first: Ipv4Addr, count: u32, differs: Differs) -> Result<Self> {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        Before::load(|state, next_program| program(state, next_program, first, differs, &at_random(count))).map(
            |before| Self {
                before,
                seed: Cell::new(1),
            },
        )
    }

    /// In this context: see [`TestRun`].
    #[must_use]
    pub fn in_context(mut self, context: &[u8]) -> Self {
        context.clone_into(&mut self.before.context);
        self
    }

    /// Runs `program` so often, on `frame` with such an address in it.
    pub fn run(&self, program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<TestOutcome> {
        // Others each time, or the cache would know them.
        let seed = self.seed.replace(self.seed.get().wrapping_mul(69_069).wrapping_add(1));
        self.before.set_state([seed, 0])?;
        self.before.run(program, frame, repeat)
    }
}

/// A program and its maps.
#[derive(Debug)]
struct Before {
    program: OwnedFd,
    next_program: OwnedFd,
    state: OwnedFd,
    context: Vec<u8>,
}

impl Before {
    fn load(code: impl FnOnce(&OwnedFd, &OwnedFd) -> Vec<Instruction>) -> Result<Self> {
        let load = || {
            let (state, next_program) = (bpf::create_array(8, 1)?, bpf::create_program_array(1)?);
            let program = bpf::load(ProgramType::SchedCls, &code(&state, &next_program))?;
            // SAFETY: the kernel has just returned this descriptor to us alone.
            let program = unsafe { OwnedFd::from_raw_fd(program) };
            Ok(Self {
                program,
                next_program,
                state,
                context: Vec::new(),
            })
        };
        load().map_err(|error: io::Error| Error::system("making the program that changes addresses", error))
    }

    fn set_state(&self, [first, second]: [u32; 2]) -> Result {
        let mut value = [0; 8];
        value[..4].copy_from_slice(&first.to_ne_bytes());
        value[4..].copy_from_slice(&second.to_ne_bytes());
        bpf::update_element(self.state.as_fd(), 0, &value)
            .map_err(|error| Error::system("setting where the program that changes addresses begins", error))
    }

    fn run(&self, program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<TestOutcome> {
        before::put_behind(&self.next_program, program)?;
        let run = TestRun {
            context: &self.context,
            ..TestRun::repeated(frame, repeat)
        };
        bpf::test_run(self.program.as_fd(), run)
    }
}

/// Registers that calls keep.
const NUMBER: u8 = 7;
const END: u8 = 8;

/// `TC_ACT_SHOT`.
const DROP: i32 = 2;
/// `data` and `data_end` in `struct __sk_buff`.
const DATA: i16 = 76;
const DATA_END: i16 = 80;

/// Counts in the state, at `R0`, up to its end.
fn in_turn() -> Vec<Instruction> {
    use Instruction as I;
    vec![
        I::load_word(NUMBER, R0, 0),
        I::load_word(END, R0, 4),
        I::jump_if_greater(END, NUMBER, 2),
        I::mov_immediate(R0, DROP),
        I::exit(),
        I::mov(R1, NUMBER),
        I::add_immediate(R1, 1),
        I::store_word(R0, 0, R1),
    ]
}

/// Draws by a linear congruential generator in the state, at `R0`, of which the high bits are the better ones.
fn at_random(count: i32) -> Vec<Instruction> {
    use Instruction as I;
    vec![
        I::load_word(NUMBER, R0, 0),
        I::multiply_immediate(NUMBER, 1_664_525),
        I::add_immediate(NUMBER, 1_013_904_223),
        I::store_word(R0, 0, NUMBER),
        I::load_word(NUMBER, R0, 0),
        I::multiply_immediate(NUMBER, count),
        I::shift_right_immediate(NUMBER, 32),
    ]
}

fn program(
    state: &OwnedFd,
    next_program: &OwnedFd,
    first: Ipv4Addr,
    differs: Differs,
    number: &[Instruction],
) -> Vec<Instruction> {
    use Instruction as I;
    let offset = differs.offset();
    let mut code = before::begin(state);
    code.extend(number);
    // Into the packet, if it is long enough.
    code.extend([
        I::add_immediate(NUMBER, first.to_bits().cast_signed()),
        I::to_big_endian_word(NUMBER),
        I::load_word(R2, CONTEXT, DATA),
        I::load_word(R3, CONTEXT, DATA_END),
        I::mov(R4, R2),
        I::add_immediate(R4, i32::from(offset + 4)),
        I::jump_if_greater(R4, R3, 1),
        I::store_word(R2, offset, NUMBER),
    ]);
    code.extend(before::hand_over(next_program));
    code
}
