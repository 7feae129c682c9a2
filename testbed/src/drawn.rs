//! Test runs of TC programs over very many different packets.
//!
//! As with [`Spread`](crate::Spread), a small program goes before the one under test and hands over by a tail call. Here it
//! writes all that differs between two packets of IPv4: protocol, addresses, and the eight bytes behind the header, in
//! which ports are.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use crate::{
    Error, Result,
    before::{self, CONTEXT, FRAME, R0, R1, R2, R3, R4},
    bpf::{self, Instruction, ProgramType, TestOutcome, TestRun},
    spread::numbers,
};

/// How many packets are drawn before they repeat: a power of two, and more than a branch predictor remembers.
const DRAWN: u32 = 1 << 16;

/// What is written: from the time to live of an IPv4 header behind 14 bytes of Ethernet on, by words.
const FIRST: i16 = 14 + 8;
const WORDS: i16 = 5;
const BYTES: usize = 4 * WORDS as usize;

/// The program that goes before the one under test: another packet each time.
#[derive(Debug)]
pub struct Drawn {
    frame: Vec<u8>,
    program: OwnedFd,
    next_program: OwnedFd,
    // Kept: the program refers to them, and so does a reader.
    _packets: OwnedFd,
    _position: OwnedFd,
}

impl Drawn {
    /// Out of these frames, which have IPv4 headers without options behind 14 bytes of Ethernet, and 42 bytes at least. All
    /// but protocol, addresses and ports is that of `frame`.
    pub fn among(frames: &[Vec<u8>], frame: Vec<u8>) -> Result<Self> {
        let failed = |error: io::Error| Error::system("making the program that draws packets", error);
        let packets = bpf::create_array(BYTES as u32, DRAWN).map_err(failed)?;
        for (index, number) in (0..DRAWN).zip(numbers(1)) {
            let drawn = frames.get(number as usize % frames.len().max(1));
            let bytes = drawn.and_then(|frame| frame.get(FIRST as usize..FIRST as usize + BYTES));
            let bytes = bytes.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
            bpf::update_element(packets.as_fd(), index, bytes).map_err(failed)?;
        }
        let position = bpf::create_array(4, 1).map_err(failed)?;
        let next_program = bpf::create_program_array(1).map_err(failed)?;
        let program = bpf::load(ProgramType::SchedCls, &code(&packets, &position, &next_program)).map_err(failed)?;
        Ok(Self {
            frame,
            // SAFETY: the kernel has just returned this descriptor to us alone.
            program: unsafe { OwnedFd::from_raw_fd(program) },
            next_program,
            _packets: packets,
            _position: position,
        })
    }

    /// Runs `program` so often with this context (see [`TestRun`]), on another packet each time.
    pub fn run(&self, program: BorrowedFd<'_>, context: &[u8], repeat: u32) -> Result<TestOutcome> {
        before::put_behind(&self.next_program, program)?;
        let run = TestRun {
            context,
            ..TestRun::repeated(&self.frame, repeat)
        };
        bpf::test_run(self.program.as_fd(), run)
    }
}

/// Registers that calls keep.
const POSITION: u8 = 7;
const PACKET: u8 = 8;

/// `data` and `data_end` in `struct __sk_buff`.
const DATA: i16 = 76;
const DATA_END: i16 = 80;

fn code(packets: &OwnedFd, position: &OwnedFd, next_program: &OwnedFd) -> Vec<Instruction> {
    use Instruction as I;
    // The position, which then moves on.
    let mut code = before::begin(position);
    code.extend([
        I::load_word(POSITION, R0, 0),
        I::add_immediate(POSITION, 1),
        I::and_immediate(POSITION, DRAWN.cast_signed() - 1),
        I::store_word(R0, 0, POSITION),
    ]);
    // The packet there.
    code.push(I::store_word(FRAME, -4, POSITION));
    code.extend(before::look_up(packets));
    code.push(I::mov(PACKET, R0));
    // Into the one in hand, if that is long enough.
    code.extend([
        I::load_word(R2, CONTEXT, DATA),
        I::load_word(R3, CONTEXT, DATA_END),
        I::mov(R4, R2),
        I::add_immediate(R4, i32::from(FIRST + 4 * WORDS)),
        I::jump_if_greater(R4, R3, 2 * WORDS),
    ]);
    for word in (0..4 * WORDS).step_by(4) {
        code.extend([I::load_word(R1, PACKET, word), I::store_word(R2, FIRST + word, R1)]);
    }
    code.extend(before::hand_over(next_program));
    code
}
