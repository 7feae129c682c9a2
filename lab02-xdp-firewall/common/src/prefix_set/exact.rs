//! A table of single addresses: open addressing over small buckets in an array.
//!
//! A hash of the address names a bucket. The address is there, or in one of the few buckets behind it: whoever fills the
//! table makes it larger until none has to go further, so a look-up has a known worst case, whatever the addresses.

use super::{Arrays, tree::KeyV6};

/// The most buckets that a look-up reads.
pub const MAX_PROBES: u32 = 4;

/// Where one table lies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exact {
    /// The seed of its hash.
    pub seed: u64,
    /// The index of its first bucket in the array.
    pub first: u32,
    /// How many buckets it has, less one: a power of two less one.
    pub mask: u32,
    /// How many buckets a look-up has to read, at most [`MAX_PROBES`]; 0 for an empty table.
    pub probes: u32,
    /// Fills up to a multiple of eight bytes.
    pub padding: u32,
}

const _: () = assert!(size_of::<Exact>() == 24);

/// Eight IPv4 addresses in host order, free places 0: 0.0.0.0 has to stand elsewhere.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketV4 {
    /// The addresses, in no order.
    pub addresses: [u32; 8],
}

/// Four IPv6 addresses, free places `::`, which has to stand elsewhere.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketV6 {
    /// The addresses, in no order.
    pub addresses: [KeyV6; 4],
}

impl Exact {
    /// Whether there is nothing in it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.probes == 0
    }

    /// Whether it holds the IPv4 `address` (in host order).
    #[inline(always)]
    pub fn contains_v4<A: Arrays>(&self, arrays: &A, address: u32) -> bool {
        let home = self.home_v4(address);
        for probe in 0..MAX_PROBES {
            if probe >= self.probes {
                break;
            }
            let Some(bucket) = arrays.bucket_v4(self.index(home, probe)) else {
                return false;
            };
            let mut equal = 0;
            for candidate in &bucket.addresses {
                equal |= is_zero(u64::from(*candidate ^ address));
            }
            if equal != 0 {
                return address != 0;
            }
        }
        false
    }

    /// Whether it holds the IPv6 `address`.
    #[inline(always)]
    pub fn contains_v6<A: Arrays>(&self, arrays: &A, address: KeyV6) -> bool {
        let home = self.home_v6(address);
        for probe in 0..MAX_PROBES {
            if probe >= self.probes {
                break;
            }
            let Some(bucket) = arrays.bucket_v6(self.index(home, probe)) else {
                return false;
            };
            let mut equal = 0;
            for candidate in &bucket.addresses {
                let difference = (candidate.high ^ address.high) | (candidate.low ^ address.low);
                // Both halves of the difference, as `is_zero` takes 63 bits.
                equal |= is_zero(difference >> 32 | difference & 0xffff_ffff);
            }
            if equal != 0 {
                return address.high | address.low != 0;
            }
        }
        false
    }

    /// The bucket where the look-up of the IPv4 `address` starts, counted from the table's first.
    #[inline(always)]
    pub fn home_v4(&self, address: u32) -> u32 {
        self.mix(u64::from(address))
    }

    /// The bucket where the look-up of the IPv6 `address` starts, counted from the table's first.
    #[inline(always)]
    pub fn home_v6(&self, address: KeyV6) -> u32 {
        self.mix(address.high.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ address.low)
    }

    /// The index in the array of the bucket that is `probe` behind `home`.
    #[inline(always)]
    pub fn index(&self, home: u32, probe: u32) -> u32 {
        self.first + (home.wrapping_add(probe) & self.mask)
    }

    #[inline(always)]
    fn mix(&self, value: u64) -> u32 {
        let product = (value ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The high bits depend on all bits of the value, the low ones on the lowest alone.
        (product >> 32) as u32 & self.mask
    }
}

/// 1 if `value`, which is below 2^63, is zero, else 0; without a branch.
#[inline(always)]
fn is_zero(value: u64) -> u64 {
    value.wrapping_sub(1) >> 63
}

#[cfg(target_os = "linux")]
mod pod {
    use super::{BucketV4, BucketV6};

    // SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
    unsafe impl aya::Pod for BucketV4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BucketV6 {}
}
