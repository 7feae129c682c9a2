//! The group of the process that made a socket, kept with the socket: no helper tells it of a packet.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock},
    helpers::{
        bpf_get_current_uid_gid,
        generated::{bpf_sk_fullsock, bpf_sk_storage_get},
    },
};
use lab06_full_enforcer_common::key::NO_GROUP;

/// Storage of four bytes with each socket (`BPF_MAP_TYPE_SK_STORAGE`, Linux 5.2). Other than aya's, with `BPF_F_CLONE`: the
/// sockets of accepted connections have what the listening one has.
#[repr(C)]
pub struct SocketGroups {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u32,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields only tell the loader what map to make, and are never followed.
unsafe impl Sync for SocketGroups {}

impl Default for SocketGroups {
    fn default() -> Self {
        Self::new()
    }
}

impl SocketGroups {
    /// What the loader makes the map by.
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// Keeps the group of the process that is running, unless one is kept already.
    ///
    /// # Safety
    ///
    /// `socket` has to be the kernel's, or the context of a program that is called when a socket is made.
    #[inline(always)]
    pub unsafe fn keep(&self, socket: *mut bpf_sock) {
        let mut group = (bpf_get_current_uid_gid() >> 32) as u32;
        if socket.is_null() {
            return;
        }
        // SAFETY: the value is as long as the map's, and the socket is one.
        unsafe {
            bpf_sk_storage_get(
                self.as_ptr(),
                socket.cast(),
                (&raw mut group).cast(),
                u64::from(BPF_SK_STORAGE_GET_F_CREATE),
            )
        };
    }

    /// The group that is kept with a socket, or [`NO_GROUP`].
    ///
    /// # Safety
    ///
    /// `socket` has to be that of a packet, or null.
    #[inline(always)]
    pub unsafe fn of(&self, socket: *mut bpf_sock) -> u64 {
        if socket.is_null() {
            return NO_GROUP;
        }
        // SAFETY: it is there. Older verifiers want to know that it is a full one.
        let socket = unsafe { bpf_sk_fullsock(socket) };
        if socket.is_null() {
            return NO_GROUP;
        }
        // SAFETY: as above, and nothing is made.
        let group = unsafe { bpf_sk_storage_get(self.as_ptr(), socket.cast(), ptr::null_mut(), 0) }.cast::<u32>();
        if group.is_null() {
            return NO_GROUP;
        }
        // SAFETY: the value is there as long as the program runs.
        u64::from(unsafe { *group })
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        (&raw const *self).cast_mut().cast()
    }
}
