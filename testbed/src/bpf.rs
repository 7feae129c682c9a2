//! The few uses of bpf(2) that a testbed has: test runs of any program, and the smallest programs there are.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

use crate::{Cgroup, End, Error, Result};

/// The program types that the testbed knows (`enum bpf_prog_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramType {
    /// TC ingress and egress.
    SchedCls,
    /// XDP.
    Xdp,
    /// cgroup ingress and egress; as ingress.
    CgroupSkb,
    /// The system call `connect` over IPv4, of a cgroup's processes.
    CgroupConnect4,
}

impl ProgramType {
    fn number(self) -> u32 {
        match self {
            Self::SchedCls => 3,
            Self::Xdp => 6,
            Self::CgroupSkb => 8,
            Self::CgroupConnect4 => 18,
        }
    }

    /// Where a program is going to be attached (`enum bpf_attach_type`), of the types for which the kernel asks when it is loaded.
    fn attach_type(self) -> u32 {
        match self {
            Self::Xdp => ATTACH_XDP,
            Self::CgroupConnect4 => ATTACH_CGROUP_CONNECT4,
            Self::SchedCls | Self::CgroupSkb => 0,
        }
    }

    /// The return code by which a program of this type lets a packet, or a call, pass: `TC_ACT_OK`, `XDP_PASS`, 1.
    pub fn pass(self) -> u32 {
        match self {
            Self::SchedCls => 0,
            Self::Xdp => 2,
            Self::CgroupSkb | Self::CgroupConnect4 => 1,
        }
    }
}

/// Loads a program that does nothing but let every packet pass: what a hook costs without a program's own work.
pub fn empty_program(program_type: ProgramType) -> Result<OwnedFd> {
    program_returning(program_type, program_type.pass())
}

/// Loads a program that does nothing but return `code`.
pub fn program_returning(program_type: ProgramType, code: u32) -> Result<OwnedFd> {
    // `mov64 r0, imm; exit` (RFC 9669, section 4).
    let instructions = [Instruction::mov_immediate(0, code.cast_signed()), Instruction::exit()];
    let fd = load(program_type, &instructions)
        .map_err(|error| Error::system(format!("loading a {program_type:?} program that returns {code}"), error))?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program; returns its descriptor.
pub(crate) fn load(program_type: ProgramType, instructions: &[Instruction]) -> io::Result<i32> {
    let mut attributes = ProgLoad {
        prog_type: program_type.number(),
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: program_type.attach_type(),
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &mut attributes)
}

/// An array map of `entries` values of `value_size` bytes.
pub(crate) fn create_array(value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    create_map(MAP_TYPE_ARRAY, value_size, entries)
}

/// A map of programs to call.
pub(crate) fn create_program_array(entries: u32) -> io::Result<OwnedFd> {
    create_map(MAP_TYPE_PROG_ARRAY, 4, entries)
}

fn create_map(map_type: u32, value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate {
        map_type,
        key_size: 4,
        value_size,
        max_entries,
    };
    let fd = bpf(MAP_CREATE, &mut attributes)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the value at `index` of an array of any kind; `value` is as long as its values are.
pub(crate) fn update_element(map: BorrowedFd<'_>, index: u32, value: &[u8]) -> io::Result<()> {
    let mut attributes = MapUpdate {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: (&raw const index) as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut attributes).map(|_| ())
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// Behind it.
    Generic,
}

/// An XDP program that lets everything pass, attached by [`End::pass_xdp`] where a veth needs one.
#[derive(Debug)]
pub struct PassProgram {
    fd: OwnedFd,
}

impl PassProgram {
    /// Loads it.
    pub fn load() -> Result<Self> {
        empty_program(ProgramType::Xdp).map(|fd| Self { fd })
    }

    /// Attaches it until the returned link is dropped.
    pub fn attach(&self, end: &End, mode: XdpMode) -> Result<XdpLink> {
        attach_xdp(self.fd.as_fd(), end, mode)
    }
}

/// An XDP program attached to an interface; dropping this detaches it.
#[derive(Debug)]
pub struct XdpLink {
    _fd: OwnedFd,
}

/// Attaches any loaded XDP program to an interface of a host.
pub fn attach_xdp(program: BorrowedFd<'_>, end: &End, mode: XdpMode) -> Result<XdpLink> {
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: end.index,
        attach_type: ATTACH_XDP,
        // XDP_FLAGS_SKB_MODE and XDP_FLAGS_DRV_MODE of linux/if_link.h.
        flags: match mode {
            XdpMode::Generic => 1 << 1,
            XdpMode::Native => 1 << 2,
        },
    };
    // The index means an interface in the namespace of the calling thread.
    let fd = end.host.run(|| bpf(LINK_CREATE, &mut attributes)).map_err(|error| {
        Error::system(
            format!(
                "attaching an XDP program to {} of host {}",
                end.interface,
                end.host.name()
            ),
            error,
        )
    })?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(XdpLink { _fd: fd })
}

/// A TC program attached to what comes in by an interface; dropping this detaches it.
#[derive(Debug)]
pub struct TcxLink {
    _fd: OwnedFd,
}

/// Attaches a program of [`ProgramType::SchedCls`] to the ingress of an interface of a host, by TCX (Linux 6.6).
pub fn attach_tcx(program: BorrowedFd<'_>, end: &End) -> Result<TcxLink> {
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: end.index,
        attach_type: ATTACH_TCX_INGRESS,
        flags: 0,
    };
    // The index means an interface in the namespace of the calling thread.
    let fd = end
        .host
        .run(|| bpf(LINK_CREATE, &mut attributes))
        .map_err(|error| Error::system(format!("attaching a TC program to {}", end.interface), error))?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(TcxLink { _fd: fd })
}

/// A program attached to a cgroup without a link; dropping this detaches it.
#[derive(Debug)]
pub struct ExclusiveProgram {
    program: OwnedFd,
    cgroup: OwnedFd,
}

/// Attaches a program of [`ProgramType::CgroupSkb`] to a cgroup's ingress as the old interface does (`BPF_PROG_ATTACH`
/// without flags): neither there nor below it another program is admitted.
pub fn attach_exclusively(program: &OwnedFd, cgroup: &Cgroup) -> Result<ExclusiveProgram> {
    let attach = || {
        let attached = ExclusiveProgram {
            program: program.try_clone()?,
            cgroup: cgroup.open().map_err(io::Error::other)?.into(),
        };
        bpf(PROG_ATTACH, &mut attached.attributes())?;
        Ok(attached)
    };
    attach().map_err(|error: io::Error| Error::system(format!("attaching to {}", cgroup.path().display()), error))
}

impl ExclusiveProgram {
    fn attributes(&self) -> ProgAttach {
        ProgAttach {
            target_fd: self.cgroup.as_raw_fd().cast_unsigned(),
            attach_bpf_fd: self.program.as_raw_fd().cast_unsigned(),
            attach_type: ATTACH_CGROUP_INGRESS,
            attach_flags: 0,
        }
    }
}

impl Drop for ExclusiveProgram {
    fn drop(&mut self) {
        // If the cgroup is gone, so is what was attached to it.
        let _ = bpf(PROG_DETACH, &mut self.attributes());
    }
}

/// What [`test_run`] runs a program on.
#[derive(Clone, Copy, Debug)]
pub struct TestRun<'a> {
    /// The packet, from its Ethernet header on for every type of program, 14 bytes at least. (A `cgroup_skb` program
    /// is shown it from the IP header on, as always; the `EtherType` tells the kernel what follows.)
    pub data: &'a [u8],
    /// How often to run it; [`TestOutcome::duration_ns`] is the average. 0 is once.
    pub repeat: u32,
    /// The context, a `struct xdp_md` or `struct __sk_buff`, as far as it is not to be all zero.
    pub context: &'a [u8],
}

impl<'a> TestRun<'a> {
    /// One run on a packet.
    pub fn once(data: &'a [u8]) -> Self {
        Self {
            data,
            repeat: 1,
            context: &[],
        }
    }

    /// `repeat` runs on a packet, for timing.
    pub fn repeated(data: &'a [u8], repeat: u32) -> Self {
        Self {
            repeat,
            ..Self::once(data)
        }
    }
}

/// What a test run has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestOutcome {
    /// The program's (last) return code.
    pub retval: u32,
    /// The average time of a run in nanoseconds, as the kernel measures it.
    pub duration_ns: u32,
    /// The packet afterwards. The Ethernet header of a `cgroup_skb` program's packet, which it does not see, comes back
    /// as zeros.
    pub data_out: Vec<u8>,
    /// The context afterwards, as much of it as was given.
    pub context_out: Vec<u8>,
}

/// No context is longer than this: `struct __sk_buff`, the longest one, has 192 bytes.
const LARGEST_CONTEXT: usize = 256;

/// Runs a loaded XDP, TC or `cgroup_skb` program on a packet, without any interface (`BPF_PROG_TEST_RUN`).
///
/// Maps that the program writes to are written to. Fails with EINVAL for packets shorter than an Ethernet header.
pub fn test_run(program: BorrowedFd<'_>, run: TestRun<'_>) -> Result<TestOutcome> {
    // Room for programs that put headers in front.
    let mut data_out = vec![0_u8; run.data.len() + 512];
    let mut attributes = ProgTestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: run.data.len() as u32,
        data_size_out: data_out.len() as u32,
        data_in: run.data.as_ptr() as u64,
        data_out: data_out.as_mut_ptr() as u64,
        repeat: run.repeat,
        ..ProgTestRun::default()
    };
    // All of it, or the kernel complains that there is no room.
    let mut context_out = vec![0_u8; run.context.len().max(LARGEST_CONTEXT)];
    if !run.context.is_empty() {
        attributes.ctx_size_out = context_out.len() as u32;
        attributes.ctx_out = context_out.as_mut_ptr() as u64;
        attributes.ctx_size_in = run.context.len() as u32;
        attributes.ctx_in = run.context.as_ptr() as u64;
    }
    loop {
        match bpf(PROG_TEST_RUN, &mut attributes) {
            Ok(_) => break,
            // A signal ends a long run early.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::system("running a program on a packet", error)),
        }
    }
    data_out.truncate(attributes.data_size_out as usize);
    context_out.truncate(run.context.len());
    Ok(TestOutcome {
        retval: attributes.retval,
        duration_ns: attributes.duration,
        data_out,
        context_out,
    })
}

/// The median, over `rounds` rounds of `run`, of a run's average time in nanoseconds: steadier than one long round,
/// since a round that something disturbs does not count.
pub fn median_duration_ns(program: BorrowedFd<'_>, run: TestRun<'_>, rounds: usize) -> Result<u32> {
    let mut durations = (0..rounds.max(1))
        .map(|_| test_run(program, run).map(|outcome| outcome.duration_ns))
        .collect::<Result<Vec<_>>>()?;
    durations.sort_unstable();
    Ok(durations[durations.len() / 2])
}

/// Runs a program over and over for about `warm_up`, so that what is timed next finds warm caches and clocks.
pub fn warm_up(program: BorrowedFd<'_>, data: &[u8], warm_up: Duration) -> Result<()> {
    let start = std::time::Instant::now();
    while start.elapsed() < warm_up {
        test_run(program, TestRun::repeated(data, 10_000))?;
    }
    Ok(())
}

/// `struct bpf_insn` of linux/bpf.h; RFC 9669 has the codes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    code: u8,
    /// The destination register in the low, the source register in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: destination | source << 4,
            offset,
            immediate,
        }
    }

    pub(crate) const fn mov(to: u8, from: u8) -> Self {
        Self::new(0xbf, to, from, 0, 0)
    }

    pub(crate) const fn mov_immediate(to: u8, value: i32) -> Self {
        Self::new(0xb7, to, 0, 0, value)
    }

    pub(crate) const fn add_immediate(to: u8, value: i32) -> Self {
        Self::new(0x07, to, 0, 0, value)
    }

    pub(crate) const fn and_immediate(to: u8, value: i32) -> Self {
        Self::new(0x57, to, 0, 0, value)
    }

    pub(crate) const fn multiply_immediate(to: u8, value: i32) -> Self {
        Self::new(0x27, to, 0, 0, value)
    }

    pub(crate) const fn shift_right_immediate(to: u8, bits: i32) -> Self {
        Self::new(0x77, to, 0, 0, bits)
    }

    /// Turns the lowest four bytes from host into network order; those above become 0.
    pub(crate) const fn to_big_endian_word(to: u8) -> Self {
        Self::new(0xdc, to, 0, 0, 32)
    }

    pub(crate) const fn load_word(to: u8, from: u8, offset: i16) -> Self {
        Self::new(0x61, to, from, offset, 0)
    }

    pub(crate) const fn store_word(to: u8, offset: i16, from: u8) -> Self {
        Self::new(0x63, to, from, offset, 0)
    }

    pub(crate) const fn store_immediate(to: u8, offset: i16, value: i32) -> Self {
        Self::new(0x62, to, 0, offset, value)
    }

    /// Two instructions: the address of a map.
    pub(crate) fn load_map(to: u8, map: &OwnedFd) -> [Self; 2] {
        const PSEUDO_MAP_FD: u8 = 1;
        [
            Self::new(0x18, to, PSEUDO_MAP_FD, 0, map.as_raw_fd()),
            Self::new(0, 0, 0, 0, 0),
        ]
    }

    /// Skips `instructions` unless the register is zero.
    pub(crate) const fn jump_unless_zero(register: u8, instructions: i16) -> Self {
        Self::new(0x55, register, 0, instructions, 0)
    }

    /// Skips `instructions` if one register is greater than another.
    pub(crate) const fn jump_if_greater(register: u8, than: u8, instructions: i16) -> Self {
        Self::new(0x2d, register, than, instructions, 0)
    }

    pub(crate) const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    pub(crate) const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

/// The first fields of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The first fields of `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes what is not given as zero.
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

/// The first fields of `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct ProgAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// The first fields of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The first fields of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct ProgTestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

// `enum bpf_cmd`, `enum bpf_map_type` and `enum bpf_attach_type` of linux/bpf.h.
const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_TEST_RUN: i32 = 10;
const LINK_CREATE: i32 = 28;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const ATTACH_CGROUP_INGRESS: u32 = 0;
const ATTACH_XDP: u32 = 37;
const ATTACH_CGROUP_CONNECT4: u32 = 10;
const ATTACH_TCX_INGRESS: u32 = 46;

fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes live until the call returns, with their length; the callers see to what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
