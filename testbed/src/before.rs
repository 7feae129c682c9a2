//! Programs that go before the one under test, change the packet on each run, and hand over by a tail call: what
//! [`Spread`](crate::Spread) and [`walk`](crate::walk) have in common.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use crate::{
    Error, Result,
    bpf::{self, Instruction},
};

/// Registers, as RFC 9669 names them: results, arguments, two that calls keep, and the frame.
pub(crate) const R0: u8 = 0;
pub(crate) const R1: u8 = 1;
pub(crate) const R2: u8 = 2;
pub(crate) const R3: u8 = 3;
pub(crate) const R4: u8 = 4;
pub(crate) const CONTEXT: u8 = 6;
pub(crate) const FRAME: u8 = 10;

/// `bpf_map_lookup_elem` and `bpf_tail_call` in `enum bpf_func_id`.
const LOOKUP: i32 = 1;
const TAIL_CALL: i32 = 12;

/// `TC_ACT_SHOT`; in XDP, where it is `XDP_PASS`, it is met as little.
const CANNOT: i32 = 2;

/// Begins a program: the context is kept, and `R0` points to the value of `state`, an array of one entry.
pub(crate) fn begin(state: &OwnedFd) -> Vec<Instruction> {
    let mut code = vec![
        Instruction::mov(CONTEXT, R1),
        Instruction::store_immediate(FRAME, -4, 0),
    ];
    code.extend(look_up(state));
    code
}

/// Has `R0` point to the value of `map` whose key stands below the frame, or ends.
pub(crate) fn look_up(map: &OwnedFd) -> Vec<Instruction> {
    use Instruction as I;
    let mut code = I::load_map(R1, map).to_vec();
    code.extend([I::mov(R2, FRAME), I::add_immediate(R2, -4), I::call(LOOKUP)]);
    code.extend([I::jump_unless_zero(R0, 2), I::mov_immediate(R0, CANNOT), I::exit()]);
    code
}

/// Goes on with the program under test.
pub(crate) fn hand_over(next_program: &OwnedFd) -> Vec<Instruction> {
    use Instruction as I;
    let mut code = vec![I::mov(R1, CONTEXT)];
    code.extend(I::load_map(R2, next_program));
    code.extend([
        I::mov_immediate(R3, 0),
        I::call(TAIL_CALL),
        I::mov_immediate(R0, CANNOT),
        I::exit(),
    ]);
    code
}

/// Makes `program` the one that a program that goes before hands over to.
pub(crate) fn put_behind(next_program: &OwnedFd, program: BorrowedFd<'_>) -> Result<()> {
    bpf::update_element(next_program.as_fd(), 0, &program.as_raw_fd().to_ne_bytes())
        .map_err(|error| Error::system("putting a program behind the one that changes addresses", error))
}
