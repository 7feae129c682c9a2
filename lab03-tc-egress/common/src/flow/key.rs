//! What the packets of a flow have in common, in both directions.

use lab01_count_packets_common::headers::Address;

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: Address,
    /// Its port, in host order. Of an echo request: its identifier at the side that asks, 0 at the other.
    pub port: u16,
}

/// The key of a flow: the same for the packets of both directions.
///
/// Of the two ends, the lower one in an arbitrary order comes first, so that one look-up finds the flow from either side;
/// which of them began is in the [flow](super::table::Flow).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The lower end's address.
    pub low: Address,
    /// The other end's address.
    pub high: Address,
    /// The lower end's port in the low half, the other end's in the high half, in host order.
    pub ports: u32,
    /// The protocol in the low byte, 4 or 6 for the version of IP in the next one.
    pub protocol: u32,
    /// What tells networks apart that use the same addresses: here the VLAN ids.
    pub zone: u32,
    /// Fills up to a multiple of eight bytes.
    pub padding: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 48);

impl FlowKey {
    /// The key of a packet from `source` to `destination`, and whether `source` is the lower end.
    #[inline(always)]
    pub fn new(ip_version: u8, protocol: u8, source: Endpoint, destination: Endpoint, zone: u32) -> (Self, bool) {
        // ANCHOR: key
        let from_low = is_lower(source, destination);
        let (low, high) = if from_low {
            (source, destination)
        } else {
            (destination, source)
        };
        let key = Self {
            low: low.address,
            high: high.address,
            ports: u32::from(low.port) | u32::from(high.port) << 16,
            protocol: u32::from(protocol) | u32::from(ip_version) << 8,
            zone,
            padding: 0,
        };
        // ANCHOR_END: key
        (key, from_low)
    }

    /// The protocol.
    pub fn protocol(&self) -> u8 {
        self.protocol as u8
    }

    /// 4 or 6.
    pub fn ip_version(&self) -> u8 {
        (self.protocol >> 8) as u8
    }

    /// The two ends, the lower one first.
    pub fn ends(&self) -> (Endpoint, Endpoint) {
        let end = |address, port| Endpoint { address, port };
        (
            end(self.low, self.ports as u16),
            end(self.high, (self.ports >> 16) as u16),
        )
    }

    /// A hash of it, keyed with two random numbers, so that nobody can aim at a bucket of the table.
    #[inline(always)]
    pub fn hash(&self, [first, second]: [u64; 2]) -> u64 {
        // ANCHOR: hash
        let ([low, low_rest], [high, high_rest]) = (self.low.words(), self.high.words());
        let mut hash = mix(first, u64::from(self.ports) | u64::from(self.protocol) << 32);
        hash = mix(hash, u64::from(self.zone));
        if self.ip_version() == 6 {
            hash = mix(hash, low);
            hash = mix(hash, low_rest);
            hash = mix(hash, high);
            hash = mix(hash, high_rest);
        } else {
            // A round each, though both would fit into one word: after one round for both, neighbouring addresses fill
            // the buckets unevenly with some keys.
            hash = mix(mix(hash, low), high);
        }
        (hash ^ second).wrapping_mul(0xd6e8_feb8_6659_fd93)
        // ANCHOR_END: hash
    }
}

/// A round of hashing. The multiplier is the golden ratio's, odd and without a pattern. Its low bits depend on little, so the high ones are
/// folded in before the next round.
#[inline(always)]
pub fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 32
}

#[inline(always)]
fn is_lower(one: Endpoint, other: Endpoint) -> bool {
    let ([a0, a1], [b0, b1]) = (one.address.words(), other.address.words());
    if a0 != b0 {
        return a0 < b0;
    }
    if a1 != b1 {
        return a1 < b1;
    }
    one.port <= other.port
}

// SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for FlowKey {}
