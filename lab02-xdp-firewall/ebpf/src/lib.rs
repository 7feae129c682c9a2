//! What lab02's program is made of, for later labs to use: buckets that several CPUs share. Defines no maps; it takes
//! them.

#![no_std]
// Nothing in a program may panic: there is nobody to catch it, and the verifier would have to follow the message.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    btf_maps::Array,
    helpers::generated::{bpf_spin_lock as lock, bpf_spin_unlock as unlock},
};
use lab02_xdp_firewall_common::bucket::Bucket;

/// The kernel's spin lock: it knows the type by this name, and its place in a map's value by BTF.
/// <https://docs.kernel.org/bpf/map_array.html> and `include/uapi/linux/bpf.h`.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the kernel looks for this name in the program's BTF")]
pub struct bpf_spin_lock {
    val: u32,
}

pub use bpf_spin_lock as SpinLock;

/// A token bucket that one CPU at a time takes from.
///
/// A compare-and-swap would do without a lock, but eBPF has it only from Linux 5.12 on.
#[repr(C)]
pub struct SharedBucket {
    lock: bpf_spin_lock,
    padding: u32,
    full_at_ns: u64,
}

impl SharedBucket {
    /// Runs `change` on the bucket while no other CPU does. `change` calls no helper and no function: the verifier allows
    /// none while a lock is held.
    ///
    /// # Safety
    ///
    /// `shared` is a map's value.
    // ANCHOR: locked
    #[inline(always)]
    pub unsafe fn locked<R>(shared: *mut Self, change: impl FnOnce(&mut Bucket) -> R) -> R {
        // SAFETY: the caller's pointer is valid, and the lock is held while the bucket is read and written.
        unsafe {
            lock((&raw mut (*shared).lock).cast());
            let mut bucket = Bucket {
                full_at_ns: (*shared).full_at_ns,
            };
            let result = change(&mut bucket);
            (*shared).full_at_ns = bucket.full_at_ns;
            unlock((&raw mut (*shared).lock).cast());
            result
        }
    }
    // ANCHOR_END: locked
}

/// Takes tokens that take `cost_ns` to come from the bucket at `index`; false if there are not enough.
///
/// `now_ns` is taken before the lock is: no helper may be called while it is held.
#[inline(always)]
pub fn take_tokens<const N: usize>(
    buckets: &Array<SharedBucket, N>,
    index: u32,
    now_ns: u64,
    cost_ns: u64,
    burst_ns: u64,
) -> bool {
    let Some(shared) = buckets.get_ptr_mut(index) else {
        return true;
    };
    // SAFETY: the value lies in the map for as long as the map does.
    unsafe { SharedBucket::locked(shared, |bucket| bucket.take(now_ns, cost_ns, burst_ns)) }
}
