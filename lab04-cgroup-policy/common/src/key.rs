//! What a packet looks like in the tables of rules, and what is left of it under the mask of a tuple.

use lab01_count_packets_common::headers::Address;

/// The key of a packet, or of the rules that look alike. The same structure is a tuple's mask: all ones where rules of
/// that tuple fix a bit, zeros elsewhere.
pub trait Key: Copy {
    /// What is left of this key under `mask`, in the table of the mask's tuple and slot.
    #[must_use]
    fn under(&self, mask: &Self) -> Self;
}

/// Of IPv4.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyV4 {
    /// The source address.
    pub source: [u8; 4],
    /// The destination address.
    pub destination: [u8; 4],
    /// The source port, in host order; 0 without ports.
    pub source_port: u16,
    /// The destination port, in host order; 0 without ports.
    pub destination_port: u16,
    /// The protocol number.
    pub protocol: u8,
    /// Which tuple of the slot.
    pub tuple: u8,
    /// Which of the two policies: the one in force or the one that is being filled.
    pub slot: u8,
    /// Always 0.
    pub padding: u8,
}

/// Of IPv6.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyV6 {
    /// The source address.
    pub source: [u8; 16],
    /// The destination address.
    pub destination: [u8; 16],
    /// The source port, in host order; 0 without ports.
    pub source_port: u16,
    /// The destination port, in host order; 0 without ports.
    pub destination_port: u16,
    /// The protocol number.
    pub protocol: u8,
    /// Which tuple of the slot.
    pub tuple: u8,
    /// Which of the two policies: the one in force or the one that is being filled.
    pub slot: u8,
    /// Always 0.
    pub padding: u8,
}

const _: () = assert!(size_of::<KeyV4>() == 16 && size_of::<KeyV6>() == 40);

// SAFETY: `#[repr(C)]`, integers, no padding but a field, any bits are valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for KeyV4 {}
// SAFETY: as above.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for KeyV6 {}

impl Key for KeyV4 {
    #[inline(always)]
    fn under(&self, mask: &Self) -> Self {
        Self {
            source: and_word(self.source, mask.source),
            destination: and_word(self.destination, mask.destination),
            source_port: self.source_port & mask.source_port,
            destination_port: self.destination_port & mask.destination_port,
            protocol: self.protocol & mask.protocol,
            tuple: mask.tuple,
            slot: mask.slot,
            padding: 0,
        }
    }
}

impl Key for KeyV6 {
    #[inline(always)]
    fn under(&self, mask: &Self) -> Self {
        Self {
            source: and_words(self.source, mask.source),
            destination: and_words(self.destination, mask.destination),
            source_port: self.source_port & mask.source_port,
            destination_port: self.destination_port & mask.destination_port,
            protocol: self.protocol & mask.protocol,
            tuple: mask.tuple,
            slot: mask.slot,
            padding: 0,
        }
    }
}

#[inline(always)]
fn and_word(one: [u8; 4], other: [u8; 4]) -> [u8; 4] {
    (u32::from_ne_bytes(one) & u32::from_ne_bytes(other)).to_ne_bytes()
}

#[inline(always)]
fn and_words(one: [u8; 16], other: [u8; 16]) -> [u8; 16] {
    (u128::from_ne_bytes(one) & u128::from_ne_bytes(other)).to_ne_bytes()
}

impl KeyV4 {
    /// Of addresses, ports in host order and a protocol.
    #[inline(always)]
    pub fn new(source: Address, destination: Address, ports: [u16; 2], protocol: u8) -> Self {
        let [source_port, destination_port] = ports;
        Self {
            source: source.ipv4(),
            destination: destination.ipv4(),
            source_port,
            destination_port,
            protocol,
            tuple: 0,
            slot: 0,
            padding: 0,
        }
    }
}

impl KeyV6 {
    /// Of addresses, ports in host order and a protocol.
    #[inline(always)]
    pub fn new(source: Address, destination: Address, ports: [u16; 2], protocol: u8) -> Self {
        let [source_port, destination_port] = ports;
        Self {
            source: source.ipv6(),
            destination: destination.ipv6(),
            source_port,
            destination_port,
            protocol,
            tuple: 0,
            slot: 0,
            padding: 0,
        }
    }
}
