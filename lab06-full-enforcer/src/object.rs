//! The enforcer's eBPF object, as this kernel takes it.

use std::borrow::Cow;

use aya::Ebpf;
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_prog_type};
use lab01_count_packets::load::{LoadError, load_object_with};
use lab02_xdp_firewall::syscall::{bpf, no_attributes};
use lab03_tc_egress::tables::has_coarse_clock;

use crate::{OBJECT, compile::Capacities, tables::map_sizes};

/// Brings its maps into the kernel, and makes its programs ready to be loaded. `cgroup_decides` says that `cgroup_skb` egress
/// decides about what sockets send, so that TC egress is left the rest.
pub fn load(capacities: &Capacities, cgroup_decides: bool) -> Result<Ebpf, LoadError> {
    let has_buffers = has_buffers();
    let object = if has_buffers {
        Cow::Borrowed(OBJECT)
    } else {
        Cow::Owned(without_buffers(OBJECT))
    };
    let globals = [
        ("CGROUP_DECIDES", u8::from(cgroup_decides)),
        ("HAS_BUFFERS", u8::from(has_buffers)),
        ("COARSE_CLOCK", u8::from(has_coarse_clock())),
    ];
    load_object_with(&object, &map_sizes(capacities), &globals)
}

/// Whether XDP programs can be handed frames of several buffers, which is what jumbo frames are: `BPF_F_XDP_HAS_FRAGS`,
/// Linux 5.18. It is tried with the smallest program there is.
pub fn has_buffers() -> bool {
    const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
    // `r0 = XDP_PASS; exit` (RFC 9669, section 4).
    let [a, b, c, d] = 2_i32.to_ne_bytes();
    let instructions = [[0xb7, 0, 0, 0, a, b, c, d], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut attributes = no_attributes();
    // SAFETY: for this command the kernel reads this member of the union.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
    load.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = instructions.len() as u32;
    load.license = c"Dual MIT/GPL".as_ptr() as u64;
    load.prog_flags = BPF_F_XDP_HAS_FRAGS;
    // SAFETY: instructions and licence live through the call, with these lengths.
    let loaded = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) };
    // SAFETY: the kernel has just made this descriptor for us alone.
    loaded.is_ok_and(|fd| unsafe { libc::close(fd) } == 0)
}

/// The object with the section `xdp.frags` called `xdp`, which is what makes the difference to the loader.
fn without_buffers(object: &[u8]) -> Vec<u8> {
    const WITH: &[u8] = b"xdp.frags\0";
    let mut object = object.to_vec();
    while let Some(at) = object.windows(WITH.len()).position(|bytes| bytes == WITH) {
        object[at + 3..at + WITH.len()].fill(0);
    }
    object
}
