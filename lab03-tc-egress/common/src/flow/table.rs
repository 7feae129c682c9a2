//! A table of flows in a plain array: buckets of sixteen, each with a line of tags in front.
//!
//! A look-up reads one line of tags and, mostly, one flow. A flow that finds its bucket full takes the place of the one
//! that would have been forgotten soonest, and that is counted: the kernel's LRU maps make room too, but nobody learns
//! how often. There are twice as many places as flows are wanted, so that the buckets, which fill by chance, seldom
//! overflow before the table is full.

use core::hint::black_box;

use super::{
    key::{Endpoint, FlowKey},
    state::State,
};

/// How many flows a bucket holds: as many as there are tags in a cache line.
pub const WAYS: usize = 16;

/// What is remembered of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// What its packets have in common.
    pub key: FlowKey,
    /// The number of its [`State`].
    pub state: u8,
    /// 1 if the originator is the lower end of the key, 0 if it is the other.
    pub originator_is_low: u8,
    /// For programs that decide by a policy that changes: the policy's generation when this was decided.
    pub generation: u16,
    /// 1 if the place was that of a flow whose time was not over when this one got it, be it the same one.
    pub was_taken: u32,
    /// When it will be forgotten unless a packet comes, in nanoseconds since boot.
    pub expires_ns: u64,
    /// Packets from the originator, and from the responder.
    pub packets: [u64; 2],
    /// Bytes of their frames.
    pub bytes: [u64; 2],
    /// For programs that decide by rules: the rule that let it in. Else 0.
    pub rule: u64,
}

const _: () = assert!(size_of::<Flow>() == 104);

impl Flow {
    /// Where it stands; `None` if this is no flow.
    pub fn state(&self) -> Option<State> {
        State::from_number(self.state)
    }

    /// The originator and the responder.
    pub fn ends(&self) -> (Endpoint, Endpoint) {
        let (low, high) = self.key.ends();
        if self.originator_is_low != 0 {
            (low, high)
        } else {
            (high, low)
        }
    }
}

/// Flows whose hashes lead here.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// A part of the hash of each flow; 0 for a free place.
    pub tags: [u32; WAYS],
    /// The flows.
    pub flows: [Flow; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64 + WAYS * 104);

impl Bucket {
    /// Without a flow.
    pub const EMPTY: Self = Self {
        tags: [0; WAYS],
        flows: [Flow {
            key: FlowKey {
                low: lab01_count_packets_common::headers::Address::from_ipv4([0; 4]),
                high: lab01_count_packets_common::headers::Address::from_ipv4([0; 4]),
                ports: 0,
                protocol: 0,
                zone: 0,
                padding: 0,
            },
            state: 0,
            originator_is_low: 0,
            generation: 0,
            was_taken: 0,
            expires_ns: 0,
            packets: [0; 2],
            bytes: [0; 2],
            rule: 0,
        }; WAYS],
    };
}

/// The array of buckets. In an eBPF program it is a map; in tests it is memory.
pub trait Buckets {
    /// The bucket at `index`; null beyond the array's end. It stays valid for as long as the array does.
    fn bucket(&self, index: u32) -> *mut Bucket;

    /// The place with this tag in the bucket at `index`, from `home` on; [`WAYS`] or more if there is none. A program with
    /// little room for what the verifier follows can have this done by a function of its own.
    #[inline(always)]
    fn slot(&self, index: u32, home: usize, tag: u32) -> usize
    where
        Self: Sized,
    {
        slot_in(self, index, home, tag)
    }

    /// [`claim_in`], [`release_in`]: likewise.
    #[inline(always)]
    fn claim(&self, place: Place, expires_ns: u64, now_ns: u64) -> u32
    where
        Self: Sized,
    {
        claim_in(self, place, expires_ns, now_ns)
    }

    /// See [`Buckets::claim`].
    #[inline(always)]
    fn release(&self, place: Place)
    where
        Self: Sized,
    {
        release_in(self, place);
    }

    /// A lock that several buckets share.
    type Lock;

    /// Takes the lock of the bucket at `index`, so that nobody else changes it; null, and nothing taken, if it has none.
    ///
    /// In an eBPF program a spin lock is held from here to [`Buckets::unlock`], and nothing is called meanwhile: neither a
    /// helper nor, as the verifier of Linux 5.10 has it, a function. A closure may become one, so none is taken.
    fn lock(&self, index: u32) -> *mut Self::Lock;

    /// Gives a lock back.
    ///
    /// # Safety
    ///
    /// It was taken here, and is not null.
    unsafe fn unlock(&self, lock: *mut Self::Lock);
}

/// Where in the table a flow is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The index of the bucket.
    pub bucket: u32,
    /// The place in it that is looked at first.
    pub home: usize,
    /// What stands for the flow in the line in front.
    pub tag: u32,
}

impl Place {
    /// The place of a flow with this hash in a table of so many buckets.
    #[inline(always)]
    pub fn of(hash: u64, buckets: u32) -> Self {
        Self {
            // The high half of a product instead of a remainder: any number of buckets will do, without a division.
            bucket: (((hash >> 32) * u64::from(buckets)) >> 32) as u32,
            home: hash as usize % WAYS,
            // Never 0, which means free.
            tag: (hash >> 4) as u32 | 1,
        }
    }
}

// ANCHOR: find
/// The flow with this key, whether its time is over or not; null if there is none.
#[inline(always)]
pub fn find<B: Buckets>(buckets: &B, place: Place, key: &FlowKey) -> *mut Flow {
    let bucket = buckets.bucket(place.bucket);
    if bucket.is_null() {
        return core::ptr::null_mut();
    }
    let home = place.home % WAYS;
    // SAFETY: the bucket is valid, and the place is inside it.
    let slot = if unsafe { (*bucket).tags[home] } == place.tag {
        home
    } else {
        buckets.slot(place.bucket, home, place.tag)
    };
    if slot >= WAYS {
        return core::ptr::null_mut();
    }
    // The comparison may have been made of a copy of which the verifier of Linux 5.10 does not know that it is one.
    let slot = black_box(slot) % WAYS;
    // SAFETY: as above. Another CPU may be writing there: what is found of a key that is half written is not this one.
    unsafe {
        let flow = &raw mut (*bucket).flows[slot];
        if difference(&raw const (*flow).key, key, 0) == 0 {
            return flow;
        }
    }
    core::ptr::null_mut()
}

/// See [`Buckets::slot`]. Of two flows with one tag, which are one pair in two thousand million of those in a bucket, the
/// later one takes the place of the earlier one.
#[inline(always)]
pub fn slot_in<B: Buckets>(buckets: &B, index: u32, home: usize, tag: u32) -> usize {
    let bucket = buckets.bucket(index);
    if bucket.is_null() {
        return WAYS;
    }
    for step in 1..WAYS {
        let slot = (home + step) % WAYS;
        // SAFETY: the bucket is valid, and the place is inside it. Another CPU may be writing there: a tag is one word.
        if unsafe { (*bucket).tags[slot] } == tag {
            return slot;
        }
    }
    WAYS
}
// ANCHOR_END: find

/// 0 if the keys are the same, but for these bits of `protocol`. Without a branch for each word, of which the verifier would
/// follow every one.
#[inline(always)]
unsafe fn difference(stored: *const FlowKey, key: &FlowKey, but_for: u32) -> u64 {
    // SAFETY: the caller's pointer is valid.
    let stored = unsafe { &*stored };
    let ([a0, a1], [b0, b1]) = (stored.low.words(), key.low.words());
    let ([c0, c1], [d0, d1]) = (stored.high.words(), key.high.words());
    let ends = (a0 ^ b0) | (a1 ^ b1) | (c0 ^ d0) | (c1 ^ d1);
    let protocol = (stored.protocol ^ key.protocol) & !but_for;
    let rest = (stored.ports ^ key.ports) | protocol | (stored.zone ^ key.zone);
    ends | u64::from(rest)
}

/// What became of a flow that was to be put into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It has a free place, its own, or that of a flow whose time was over.
    Free,
    /// It has taken the place of a flow that was to be remembered longer.
    Evicted,
    /// There is no such bucket, or it could not be locked.
    Nowhere,
}

// ANCHOR: insert
/// Puts what `flow` says into the table under `key`, in place of a flow with the same key if there is one.
///
/// # Safety
///
/// `flow` is valid. Others may be writing to it.
#[inline(always)]
pub unsafe fn insert<B: Buckets>(buckets: &B, place: Place, key: &FlowKey, flow: *const Flow, now_ns: u64) -> Inserted {
    // SAFETY: the caller's pointer is valid.
    let expires_ns = unsafe { (*flow).expires_ns };
    let claimed = buckets.claim(place, expires_ns, now_ns);
    let bucket = buckets.bucket(place.bucket);
    if claimed == NOWHERE || bucket.is_null() {
        return Inserted::Nowhere;
    }
    // SAFETY: the bucket is valid, the place is inside it, and the caller's pointer is valid. Nobody takes the place away
    // before the flow's time is over, unless the bucket is full of flows that will be remembered longer; and whoever looks
    // for another flow does not find it here, as the keys differ.
    unsafe {
        let to = &raw mut (*bucket).flows[claimed as usize % WAYS];
        let is_another = difference(&raw const (*to).key, key, CLAIMED) != 0;
        let inserted = if is_another && (*to).was_taken != 0 {
            Inserted::Evicted
        } else {
            Inserted::Free
        };
        (*to).state = (*flow).state;
        (*to).originator_is_low = (*flow).originator_is_low;
        (*to).generation = (*flow).generation;
        // One by one: an array is copied by a call of `memcpy`.
        (*to).packets[0] = (*flow).packets[0];
        (*to).packets[1] = (*flow).packets[1];
        (*to).bytes[0] = (*flow).bytes[0];
        (*to).bytes[1] = (*flow).bytes[1];
        (*to).rule = (*flow).rule;
        // Last, so that what is found by the key is whole.
        (&raw mut (*to).key).write_volatile(*key);
        inserted
    }
}

/// What [`claim_in`] returns if there is no such bucket, or it could not be locked.
pub const NOWHERE: u32 = u32::MAX;
/// A bit of the `protocol` in the key of a flow whose place was claimed, by which nobody finds it any more.
const CLAIMED: u32 = 1 << 31;

/// Takes a place in a bucket for a flow that is to be remembered until `expires_ns`: the one with its tag if there is
/// one, a free one, or that of the flow that would be forgotten soonest. The place, or [`NOWHERE`].
///
/// A tag is nearly always a flow's own. Whose place it was, the key says, which still stands there but for `CLAIMED`:
/// this compares none, as it may be a function of its own, which could not be given that many arguments.
#[inline(always)]
pub fn claim_in<B: Buckets>(buckets: &B, place: Place, expires_ns: u64, now_ns: u64) -> u32 {
    let bucket = buckets.bucket(place.bucket);
    if bucket.is_null() {
        return NOWHERE;
    }
    let lock = buckets.lock(place.bucket);
    if lock.is_null() {
        return NOWHERE;
    }
    let (mut chosen, mut soonest_ns) = (place.home, u64::MAX);
    for step in 0..WAYS {
        let slot = (place.home + step) % WAYS;
        // SAFETY: the bucket is valid, and the place is inside it.
        let (tag, slot_expires_ns) = unsafe { ((*bucket).tags[slot], (*bucket).flows[slot].expires_ns) };
        // A free place is as good as one that was over long ago; the one with its tag is better than any.
        let slot_expires_ns = if tag == 0 || tag == place.tag {
            0
        } else {
            slot_expires_ns
        };
        if tag == place.tag || slot_expires_ns < soonest_ns {
            (chosen, soonest_ns) = (slot, slot_expires_ns);
        }
        if tag == place.tag {
            break;
        }
    }
    let chosen = chosen % WAYS;
    // SAFETY: as above, and nobody else claims a place here. The lock was taken above.
    unsafe {
        let flow = &raw mut (*bucket).flows[chosen];
        // Found by nobody until the key is written.
        (&raw mut (*flow).key.protocol).write_volatile((*flow).key.protocol | CLAIMED);
        // Said here and not by what is returned: a global function in its place has no room for the key.
        (*flow).was_taken = u32::from((*bucket).tags[chosen] != 0 && (*flow).expires_ns > now_ns);
        (*flow).expires_ns = expires_ns;
        (&raw mut (*bucket).tags[chosen]).write_volatile(place.tag);
        buckets.unlock(lock);
    }
    chosen as u32
}
// ANCHOR_END: insert

/// Takes the flow at this place out of its bucket.
#[inline(always)]
pub fn release_in<B: Buckets>(buckets: &B, place: Place) {
    let bucket = buckets.bucket(place.bucket);
    if bucket.is_null() {
        return;
    }
    let lock = buckets.lock(place.bucket);
    if lock.is_null() {
        return;
    }
    for step in 0..WAYS {
        let slot = (place.home + step) % WAYS;
        // SAFETY: the bucket is valid, the place is inside it, and nobody else claims or releases one here.
        unsafe {
            if (*bucket).tags[slot] == place.tag {
                (&raw mut (*bucket).tags[slot]).write_volatile(0);
                break;
            }
        }
    }
    // SAFETY: it was taken above.
    unsafe { buckets.unlock(lock) };
}

/// Counts a packet of a flow.
///
/// Not atomically, for which stable Rust has no word on this target. The packets of one direction of a flow nearly always
/// come on one CPU; where two CPUs count at the same moment, one of the packets can be missing in the numbers.
///
/// # Safety
///
/// `flow` is valid.
#[inline(always)]
pub unsafe fn count(flow: *mut Flow, from_originator: bool, bytes: u64) {
    // SAFETY: the caller's pointer is valid.
    unsafe {
        if from_originator {
            (*flow).packets[0] = (*flow).packets[0].wrapping_add(1);
            (*flow).bytes[0] = (*flow).bytes[0].wrapping_add(bytes);
        } else {
            (*flow).packets[1] = (*flow).packets[1].wrapping_add(1);
            (*flow).bytes[1] = (*flow).bytes[1].wrapping_add(bytes);
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
mod pod {
    // SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Bucket {}
}
