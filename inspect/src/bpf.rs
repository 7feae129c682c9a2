//! The few calls of bpf(2) for which aya has no public function: it keeps the verifier's log of a program that was
//! accepted to itself, and the log is what this program is about.

use std::{
    ffi::CStr,
    io,
    mem::{self, size_of},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn, bpf_prog_info};

/// `BPF_LOG_STATS`: figures only.
pub const LOG_STATISTICS: u32 = 4;
/// `BPF_LOG_LEVEL1`: what the verifier found out, up to where it rejected the program.
pub const LOG_EVERYTHING: u32 = 1;

/// What a program load needs.
pub struct Load<'a> {
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: &'a str,
    /// `enum bpf_prog_type`.
    pub program_type: u32,
    /// `enum bpf_attach_type`, 0 if none.
    pub attach_type: u32,
    /// Flags.
    pub flags: u32,
    /// The instructions.
    pub instructions: &'a [bpf_insn],
    /// The licence.
    pub licence: &'a CStr,
    /// The type of the kernel that the program attaches to, 0 if none.
    pub attach_btf_id: u32,
    /// The object's types, with which `functions` and `lines` are to be read.
    pub types: Option<BorrowedFd<'a>>,
    /// `struct bpf_func_info`, and the size of one.
    pub functions: (&'a [u8], usize),
    /// `struct bpf_line_info`, and the size of one.
    pub lines: (&'a [u8], usize),
}

/// Loads a program. If there is room in `log`, the verifier writes to it what `log_level` asks for.
pub fn load_program(load: &Load, log_level: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: every field of this member is a number, so any bytes are a value of it.
    let program = unsafe { &mut attributes.__bindgen_anon_3 };
    program.prog_type = load.program_type;
    program.expected_attach_type = load.attach_type;
    program.prog_flags = load.flags;
    program.insns = load.instructions.as_ptr() as u64;
    program.insn_cnt = load.instructions.len() as u32;
    // The last byte stays zero.
    for (place, byte) in program.prog_name[..15].iter_mut().zip(load.name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    program.license = load.licence.as_ptr() as u64;
    program.attach_btf_id = load.attach_btf_id;
    if let Some(types) = load.types {
        program.prog_btf_fd = types.as_raw_fd().cast_unsigned();
        (program.func_info, program.func_info_cnt, program.func_info_rec_size) = records(load.functions);
        (program.line_info, program.line_info_cnt, program.line_info_rec_size) = records(load.lines);
    }
    if !log.is_empty() {
        program.log_level = log_level;
        program.log_buf = log.as_mut_ptr() as u64;
        program.log_size = log.len() as u32;
    }
    descriptor(call(bpf_cmd::BPF_PROG_LOAD, &mut attributes)?)
}

/// Loads an object's types.
pub fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: every field of this member is a number, so any bytes are a value of it.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = types.as_ptr() as u64;
    load.btf_size = types.len() as u32;
    descriptor(call(bpf_cmd::BPF_BTF_LOAD, &mut attributes)?)
}

/// Creates a map whose values are maps like `inner`.
pub fn create_map_of_maps(map: &aya_obj::Map, inner: BorrowedFd) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: every field of this member is a number, so any bytes are a value of it.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = map.map_type();
    create.key_size = map.key_size();
    create.value_size = map.value_size();
    create.max_entries = map.max_entries();
    create.map_flags = map.map_flags();
    create.inner_map_fd = inner.as_raw_fd().cast_unsigned();
    descriptor(call(bpf_cmd::BPF_MAP_CREATE, &mut attributes)?)
}

/// Sets the only element of an array map, which is how global data reaches a program.
pub fn set_only_element(map: BorrowedFd, value: &[u8]) -> io::Result<()> {
    let first: u32 = 0;
    let mut attributes = zeroed();
    // SAFETY: every field of this member is a number, so any bytes are a value of it.
    let update = unsafe { &mut attributes.__bindgen_anon_2 };
    update.map_fd = map.as_raw_fd().cast_unsigned();
    update.key = &raw const first as u64;
    update.__bindgen_anon_1.value = value.as_ptr() as u64;
    call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Makes a map unchangeable from user space; only then does the verifier reckon with its values.
pub fn freeze(map: BorrowedFd) -> io::Result<()> {
    let mut attributes = zeroed();
    // SAFETY: every field of this member is a number, so any bytes are a value of it.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd().cast_unsigned();
    call(bpf_cmd::BPF_MAP_FREEZE, &mut attributes).map(drop)
}

/// What the kernel knows of a loaded program.
pub fn program_info(program: BorrowedFd) -> io::Result<bpf_prog_info> {
    // SAFETY: every field is a number or an array of numbers, so zero is a value of it.
    let mut info: bpf_prog_info = unsafe { mem::zeroed() };
    let mut attributes = zeroed();
    attributes.info.bpf_fd = program.as_raw_fd().cast_unsigned();
    attributes.info.info_len = size_of::<bpf_prog_info>() as u32;
    attributes.info.info = &raw mut info as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

fn zeroed() -> bpf_attr {
    // SAFETY: every member of the union is made of numbers, so zero is a value of it.
    unsafe { mem::zeroed() }
}

/// Address, count and size of records.
fn records((bytes, size): (&[u8], usize)) -> (u64, u32, u32) {
    match bytes.len().checked_div(size) {
        Some(count) if count > 0 => (bytes.as_ptr() as u64, count as u32, size as u32),
        _ => (0, 0, 0),
    }
}

fn call(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attributes live throughout the call and their size is given; what they point to is borrowed by the
    // caller for as long.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            attributes,
            size_of::<bpf_attr>(),
        )
    };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}

fn descriptor(answer: i64) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: a command that makes a descriptor has just returned it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
