//! Finds out by trying what the kernel can do, where it does not offer its build configuration.
//!
//! Nothing is left behind: maps and programs go with their descriptors, and the qdisc is tried in a network namespace
//! that ends with the thread that made it.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

use crate::machine::Probe;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;

/// Where the qdisc `clsact` hangs, its handle, and its ingress side (`linux/pkt_sched.h`).
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
/// Priority 1, all protocols in network byte order.
const FIRST_FILTER_OF_ALL_PROTOCOLS: u32 = 1 << 16 | (libc::ETH_P_ALL as u16).to_be() as u32;
/// The loopback interface is the first one of every namespace.
const LOOPBACK_INDEX: i32 = 1;

/// Tries; `None` if we may not, or the answer says neither yes nor no.
pub fn probe(what: Probe) -> Option<bool> {
    match what {
        Probe::BpfSyscall => Some(has_bpf_syscall()),
        Probe::CgroupBpf => cgroup_bpf(),
        Probe::XdpSockets => xdp_sockets(),
        Probe::SchIngress => in_own_network(sch_ingress),
        Probe::ClsBpf => in_own_network(cls_bpf),
    }
}

fn has_bpf_syscall() -> bool {
    // The first fields of `union bpf_attr` for BPF_MAP_CREATE: type, key and value size in bytes, entries.
    let map = [BPF_MAP_TYPE_ARRAY, 4, 4, 1];
    // Where it is refused for another reason, it is there.
    !bpf(BPF_MAP_CREATE, &map).is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS))
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

fn cgroup_bpf() -> Option<bool> {
    // `r0 = 1; exit`
    let program: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
    let licence = c"GPL";
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_SKB,
        instruction_count: 2,
        instructions: program.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        log: [0; 2],
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        expected_attach_type: 0,
    };
    match bpf(BPF_PROG_LOAD, &load) {
        Ok(_descriptor) => Some(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Some(false),
        Err(_) => None,
    }
}

fn xdp_sockets() -> Option<bool> {
    // SAFETY: socket takes no pointers.
    match descriptor(libc::c_long::from(unsafe {
        libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)
    })) {
        Ok(_socket) => Some(true),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Some(false),
        Err(_) => None,
    }
}

fn sch_ingress() -> Option<bool> {
    match add_clsact() {
        Ok(()) => Some(true),
        Err(error) => is_unknown(&error).then_some(false),
    }
}

fn cls_bpf() -> Option<bool> {
    add_clsact().ok()?;
    // Without options no filter is complete: a kernel that knows the kind says so, another does not know the kind.
    match add_to_loopback(
        libc::RTM_NEWTFILTER,
        0,
        CLSACT_INGRESS,
        FIRST_FILTER_OF_ALL_PROTOCOLS,
        *b"bpf\0\0\0\0\0",
    ) {
        Ok(()) => Some(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Some(true),
        Err(error) => is_unknown(&error).then_some(false),
    }
}

fn add_clsact() -> io::Result<()> {
    add_to_loopback(libc::RTM_NEWQDISC, CLSACT_HANDLE, TC_H_CLSACT, 0, *b"clsact\0\0")
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP))
}

/// A request of rtnetlink for traffic control: header, `struct tcmsg`, and the attribute `TCA_KIND`.
#[repr(C)]
struct TrafficControl {
    header: libc::nlmsghdr,
    family: u8,
    padding: [u8; 3],
    interface: i32,
    handle: u32,
    parent: u32,
    info: u32,
    kind_length: u16,
    kind_type: u16,
    kind: [u8; 8],
}

/// What rtnetlink answers to a request that asks to be acknowledged.
#[repr(C)]
struct Acknowledgement {
    header: libc::nlmsghdr,
    /// 0, or a negative `errno`.
    error: i32,
}

fn add_to_loopback(message: u16, handle: u32, parent: u32, info: u32, kind: [u8; 8]) -> io::Result<()> {
    let length = size_of::<TrafficControl>();
    let request = TrafficControl {
        header: libc::nlmsghdr {
            nlmsg_len: length as u32,
            nlmsg_type: message,
            nlmsg_flags: (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16,
            nlmsg_seq: 1,
            nlmsg_pid: 0,
        },
        family: 0,
        padding: [0; 3],
        interface: LOOPBACK_INDEX,
        handle,
        parent,
        info,
        kind_length: 12,
        kind_type: libc::TCA_KIND,
        kind,
    };
    // SAFETY: socket takes no pointers.
    let socket = descriptor(libc::c_long::from(unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    }))?;
    // SAFETY: the request is `length` bytes long and lives throughout the call.
    if unsafe { libc::send(socket.as_raw_fd(), (&raw const request).cast(), length, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // The answer to an error repeats the request; room for both.
    let mut answer = [0_u8; 256];
    // SAFETY: the answer has room for as many bytes as are asked for.
    let received = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    let place = mem::offset_of!(Acknowledgement, error);
    let error = answer[place..]
        .first_chunk()
        .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-error))
    }
}

/// Runs `attempt` in a network namespace of its own; `None` if we may not make one.
fn in_own_network(attempt: fn() -> Option<bool>) -> Option<bool> {
    let thread = thread::spawn(move || {
        // SAFETY: unshare takes no pointers, and CLONE_NEWNET concerns the calling thread alone, which is ours.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if unshared == 0 { attempt() } else { None }
    });
    thread.join().ok().flatten()
}

/// bpf(2), with the beginning of its `union bpf_attr`; the kernel takes what is not given as zero.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes live throughout the call, their size is given, and what they point to lives in the caller.
    descriptor(unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) })
}

fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(answer) {
        // SAFETY: a call that makes a descriptor has just returned it, so nobody else owns it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_never_answers_no_to_what_its_own_privileges_forbid() {
        // Without privileges these are refused; with them this kernel either has it or says that it does not.
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        assert!(!is_unknown(&refused));
        assert!(is_unknown(&io::Error::from_raw_os_error(libc::ENOENT)));
    }

    #[test]
    fn the_request_is_laid_out_as_rtnetlink_wants_it() {
        assert_eq!(size_of::<TrafficControl>(), 16 + 20 + 12);
        assert_eq!(mem::offset_of!(TrafficControl, kind_length), 36);
    }
}
