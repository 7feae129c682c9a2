//! Test runs over many packets that differ in their source address, for benchmarks.
//!
//! `BPF_PROG_TEST_RUN` runs a program on one packet as often as it is told, which flatters every cache: the second run
//! finds all it needs where the first left it. A [`Spread`] is a small XDP program that goes before the one under test:
//! it writes the next of many addresses into the packet and hands over by a tail call. What it costs itself is measured
//! with an empty program behind it.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use crate::{
    Error, Result,
    before::{self, CONTEXT, FRAME, R0, R1, R2, R3, R4},
    bpf::{self, Instruction, ProgramType},
};

/// How many addresses are drawn before they repeat: a power of two, and more than a branch predictor remembers.
const DRAWN: u32 = 1 << 16;

/// A reproducible stream of random numbers (splitmix64), for benchmarks.
pub fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    })
}

/// The program that goes before the one under test, and its maps.
#[derive(Debug)]
pub struct Spread {
    program: OwnedFd,
    next_program: OwnedFd,
    // Kept: the program refers to them, and so does a reader.
    _addresses: OwnedFd,
    _position: OwnedFd,
}

impl Spread {
    /// Over these IPv4 source addresses, in random order, of packets whose IPv4 header is at offset 14.
    pub fn over_ipv4(addresses: &[[u8; 4]]) -> Result<Self> {
        Self::new(addresses, 14 + 12)
    }

    /// Over these IPv6 source addresses, in random order, of packets whose IPv6 header is at offset 14.
    pub fn over_ipv6(addresses: &[[u8; 16]]) -> Result<Self> {
        Self::new(addresses, 14 + 8)
    }

    /// The program to run: it ends as the one behind it does.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Puts `program` behind it. An XDP program loaded with the attach type `BPF_XDP`, as aya does.
    pub fn before(&self, program: BorrowedFd<'_>) -> Result<()> {
        before::put_behind(&self.next_program, program)
    }

    fn new<const N: usize>(addresses: &[[u8; N]], offset: i16) -> Result<Self> {
        let failed = |error: io::Error| Error::system("making the program that spreads addresses", error);
        let table = bpf::create_array(N as u32, DRAWN).map_err(failed)?;
        for (index, number) in (0..DRAWN).zip(numbers(1)) {
            let address = addresses
                .get(number as usize % addresses.len().max(1))
                .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
            bpf::update_element(table.as_fd(), index, address).map_err(failed)?;
        }
        let position = bpf::create_array(4, 1).map_err(failed)?;
        let next_program = bpf::create_program_array(1).map_err(failed)?;
        let instructions = program(
            &table,
            &position,
            &next_program,
            offset,
            i16::try_from(N).unwrap_or(i16::MAX),
        );
        let program = bpf::load(ProgramType::Xdp, &instructions).map_err(failed)?;
        // SAFETY: the kernel has just returned this descriptor to us alone.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        Ok(Self {
            program,
            next_program,
            _addresses: table,
            _position: position,
        })
    }
}

/// Registers that calls keep.
const POSITION: u8 = 7;
const ADDRESS: u8 = 8;

fn program(addresses: &OwnedFd, position: &OwnedFd, next_program: &OwnedFd, offset: i16, len: i16) -> Vec<Instruction> {
    use Instruction as I;
    // The position, which then moves on.
    let mut code = before::begin(position);
    code.extend([I::load_word(POSITION, R0, 0), I::add_immediate(POSITION, 1)]);
    code.extend([
        I::and_immediate(POSITION, DRAWN.cast_signed() - 1),
        I::store_word(R0, 0, POSITION),
    ]);
    // The address there.
    code.push(I::store_word(FRAME, -4, POSITION));
    code.extend(before::look_up(addresses));
    code.push(I::mov(ADDRESS, R0));
    // Into the packet, if it is long enough.
    code.extend([
        I::load_word(R2, CONTEXT, 0),
        I::load_word(R3, CONTEXT, 4),
        I::mov(R4, R2),
    ]);
    code.extend([
        I::add_immediate(R4, i32::from(offset + len)),
        I::jump_if_greater(R4, R3, len / 4 * 2),
    ]);
    for word in (0..len).step_by(4) {
        code.extend([I::load_word(R1, ADDRESS, word), I::store_word(R2, offset + word, R1)]);
    }
    code.extend(before::hand_over(next_program));
    code
}
