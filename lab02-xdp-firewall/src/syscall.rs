//! bpf(2) itself, for the few commands that aya does not offer.

use std::io;

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Attributes that say nothing yet: all of them zero.
pub fn no_attributes() -> bpf_attr {
    // SAFETY: all zeroes are a valid `bpf_attr`, a union of structures of integers.
    unsafe { std::mem::zeroed() }
}

/// Calls bpf(2); returns what it returns, a descriptor for commands that make something.
///
/// # Safety
///
/// Pointers among the attributes that `command` reads point to as much memory as the kernel reads or writes there.
pub unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the attributes live through the call, and the caller sees to what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, attributes, size_of::<bpf_attr>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
