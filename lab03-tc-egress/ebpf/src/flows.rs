//! Tables of flows in maps.

use aya_ebpf::{
    btf_maps::Array,
    helpers::generated::{bpf_spin_lock as lock, bpf_spin_unlock as unlock},
};
use lab02_xdp_firewall_ebpf::SpinLock;
use lab03_tc_egress_common::flow::table::{Bucket, Buckets};

/// A lock for the buckets of which it is one's.
#[repr(C)]
pub struct BucketLock {
    lock: SpinLock,
    padding: u32,
}

/// A table of flows in a map, and the locks of its buckets in another: an array that holds locks cannot be mapped into
/// user space, and the table shall be.
///
/// Several buckets share a lock; their number is a power of two.
pub struct FlowTable<const N: usize, const FLAGS: usize, const LOCKS: usize> {
    /// The buckets.
    pub buckets: &'static Array<Bucket, N, FLAGS>,
    /// Their locks.
    pub locks: &'static Array<BucketLock, LOCKS>,
}

impl<const N: usize, const FLAGS: usize, const LOCKS: usize> Buckets for FlowTable<N, FLAGS, LOCKS> {
    #[inline(always)]
    fn bucket(&self, index: u32) -> *mut Bucket {
        self.buckets.get_ptr_mut(index).unwrap_or(core::ptr::null_mut())
    }

    type Lock = BucketLock;

    #[inline(always)]
    fn lock(&self, index: u32) -> *mut BucketLock {
        let Some(held) = self.locks.get_ptr_mut(index % LOCKS as u32) else {
            return core::ptr::null_mut();
        };
        // SAFETY: the lock lies in the map for as long as the map does.
        unsafe { lock((&raw mut (*held).lock).cast()) };
        held
    }

    #[inline(always)]
    unsafe fn unlock(&self, held: *mut BucketLock) {
        // SAFETY: the caller has taken it, from the map.
        unsafe { unlock((&raw mut (*held).lock).cast()) };
    }
}
