//! Waits until every program that runs now has ended.
//!
//! A program that began before the active slot was changed may still be reading the old one. The kernel offers no call
//! that just waits for it, but updating a map of maps does (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`): it
//! returns after an RCU grace period, which all programs that ran at its beginning have left.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_cmd, bpf_map_type};

use crate::syscall::{bpf, no_attributes};

/// A map of maps that is there to be updated.
pub struct Barrier {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Barrier {
    /// Makes the two small maps.
    pub fn new() -> io::Result<Self> {
        let inner = create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, None)?;
        let outer = create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, Some(&inner))?;
        Ok(Self { outer, inner })
    }

    /// Returns once every program that was running when it was called has ended. Takes some milliseconds.
    pub fn wait(&self) -> io::Result<()> {
        let key = 0u32;
        let value = self.inner.as_raw_fd();
        let mut attributes = no_attributes();
        // SAFETY: for this command the kernel reads this member of the union.
        let element = unsafe { &mut attributes.__bindgen_anon_2 };
        element.map_fd = self.outer.as_raw_fd().cast_unsigned();
        element.key = (&raw const key) as u64;
        element.__bindgen_anon_1.value = (&raw const value) as u64;
        // SAFETY: the pointers are to locals, as long as the maps' keys and values are.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) }?;
        Ok(())
    }
}

fn create_map(map_type: bpf_map_type, inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let mut attributes = no_attributes();
    // SAFETY: for this command the kernel reads this member of the union.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = map_type as u32;
    create.key_size = 4;
    create.value_size = 4;
    create.max_entries = 1;
    create.inner_map_fd = inner.map_or(0, |inner| inner.as_raw_fd().cast_unsigned());
    // SAFETY: there is no pointer among them.
    let fd = unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
