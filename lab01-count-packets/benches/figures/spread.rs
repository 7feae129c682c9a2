//! Packets of many sources in test runs, which repeat one and the same packet.
//!
//! Running 10,000 packets once each would measure mostly the system call in front of each run, which leaves the caches
//! cold. So a small program in front of the one to be measured writes a random source address into the packet and then
//! tail-calls it. In front of the empty program it costs the same, and the difference is the measured program's.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};

use crate::raw::{Instruction, load_xdp, program_array, set_program};

/// The last two bytes of the source address, by their offset in an Ethernet frame without VLAN tags.
#[derive(Clone, Copy)]
pub enum SourceField {
    Ipv4 = 14 + 12 + 2,
    Ipv6 = 14 + 8 + 14,
}

/// The program that changes the source, and the array in which it finds the program to call.
pub struct SpreadSources {
    program: OwnedFd,
    next: OwnedFd,
}

impl SpreadSources {
    /// Loads it for so many sources.
    pub fn load(field: SourceField, sources: u16) -> Result<Self> {
        let next = program_array().context("a program array cannot be made")?;
        let program = load_xdp(&spread_and_call(field, sources, &next))
            .context("the program that spreads sources cannot be loaded")?;
        Ok(Self { program, next })
    }

    /// This program, made to call `program`.
    pub fn in_front_of(&self, program: BorrowedFd<'_>) -> Result<BorrowedFd<'_>> {
        set_program(&self.next, program).context("a program cannot be put into the program array")?;
        Ok(self.program.as_fd())
    }
}

fn spread_and_call(field: SourceField, sources: u16, next: &OwnedFd) -> [Instruction; 16] {
    // RFC 9669 has the opcodes.
    const MOVE: u8 = 0xbf;
    const MOVE_IMMEDIATE: u8 = 0xb7;
    const ADD_IMMEDIATE: u8 = 0x07;
    const MODULO_IMMEDIATE_32: u8 = 0x94;
    const LOAD_32: u8 = 0x61;
    const STORE_16: u8 = 0x6b;
    const LOAD_IMMEDIATE_64: u8 = 0x18;
    const JUMP_IF_GREATER: u8 = 0x2d;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const MAP_FD: u8 = 1;
    const GET_PRANDOM_U32: i32 = 7;
    const TAIL_CALL: i32 = 12;

    let field = field as i16;
    let instruction = |code, destination: u8, source: u8, offset, immediate| Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    };
    [
        instruction(MOVE, 6, 1, 0, 0),    // r6 = context
        instruction(LOAD_32, 7, 1, 0, 0), // r7 = context->data
        instruction(LOAD_32, 8, 1, 4, 0), // r8 = context->data_end
        instruction(MOVE, 2, 7, 0, 0),    //
        instruction(ADD_IMMEDIATE, 2, 0, 0, i32::from(field) + 2),
        instruction(JUMP_IF_GREATER, 2, 8, 8, 0), // a frame that ends before the field is left alone
        instruction(CALL, 0, 0, 0, GET_PRANDOM_U32),
        instruction(MODULO_IMMEDIATE_32, 0, 0, 0, sources.into()),
        instruction(STORE_16, 7, 0, field, 0), // *(u16 *)(data + field) = r0
        instruction(MOVE, 1, 6, 0, 0),
        instruction(LOAD_IMMEDIATE_64, 2, MAP_FD, 0, next.as_raw_fd()),
        instruction(0, 0, 0, 0, 0), // the upper half of the one before
        instruction(MOVE_IMMEDIATE, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, TAIL_CALL),   // returns only if it fails
        instruction(MOVE_IMMEDIATE, 0, 0, 0, 0), // XDP_ABORTED
        instruction(EXIT, 0, 0, 0, 0),
    ]
}
