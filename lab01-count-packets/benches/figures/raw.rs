//! bpf(2) as it is, for the few instructions that the benchmark brings along itself.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Instruction {
    pub code: u8,
    /// Destination in the low half, source in the high one.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// A program array with room for one program.
pub fn program_array() -> io::Result<OwnedFd> {
    let mut create = MapCreate {
        map_type: 3, // BPF_MAP_TYPE_PROG_ARRAY
        key_size: 4,
        value_size: 4,
        max_entries: 1,
    };
    owned(bpf(MAP_CREATE, &mut create)?)
}

/// Puts a program into a program array.
pub fn set_program(array: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0_u32, program.as_raw_fd());
    let mut update = MapUpdate {
        map_fd: array.as_raw_fd().cast_unsigned(),
        _padding: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut update).map(drop)
}

/// Loads an XDP program.
pub fn load_xdp(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = ProgLoad {
        prog_type: 6, // BPF_PROG_TYPE_XDP
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        // BPF_XDP, as aya has it: a program array takes only programs that agree in this (kernel/bpf/core.c,
        // `bpf_prog_map_compatible`).
        expected_attach_type: 37,
        ..ProgLoad::default()
    };
    owned(bpf(PROG_LOAD, &mut load)?)
}

/// Loads an XDP program that does nothing but let every packet pass.
pub fn load_empty_xdp() -> io::Result<OwnedFd> {
    let pass = Instruction {
        code: 0xb7, // r0 = XDP_PASS
        registers: 0,
        offset: 0,
        immediate: 2,
    };
    let exit = Instruction {
        code: 0x95,
        immediate: 0,
        ..pass
    };
    load_xdp(&[pass, exit])
}

// `enum bpf_cmd`, and the first fields of `union bpf_attr` for each command; the kernel takes the others as zero.
const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes live until the call returns, with their length, and so does what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it ends a chain of calls that can fail")]
fn owned(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
