//! For the benchmark only: what the programs have that the enforcer is compared with. Of IPv4 alone.

/// What is seen of a packet, in host order; ports are 0 where there are none.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The source address.
    pub source: u32,
    /// The destination address.
    pub destination: u32,
    /// The source port.
    pub source_port: u16,
    /// The destination port.
    pub destination_port: u16,
    /// The protocol.
    pub protocol: u8,
}

impl Seen {
    /// As numbers, which go into a function that the verifier follows once for all: addresses, ports, protocol.
    #[inline(always)]
    pub fn packed(&self) -> [u64; 3] {
        [
            u64::from(self.source) << 32 | u64::from(self.destination),
            u64::from(self.source_port) << 16 | u64::from(self.destination_port),
            u64::from(self.protocol),
        ]
    }
}

/// A rule as it is written: the first and the last value of each field, in host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Source addresses.
    pub source: [u32; 2],
    /// Destination addresses.
    pub destination: [u32; 2],
    /// Source ports.
    pub source_port: [u16; 2],
    /// Destination ports.
    pub destination_port: [u16; 2],
    /// Protocols.
    pub protocol: [u8; 2],
    /// An [`Action`](crate::table::Action).
    pub action: u8,
    /// Fills up to a multiple of eight bytes.
    pub padding: [u8; 5],
}

const _: () = assert!(size_of::<Listed>() == 32);

impl Listed {
    /// Whether it matches what [`Seen::packed`] says. The fields that differ most are asked first.
    #[inline(always)]
    pub fn matches(&self, addresses: u64, ports: u64, protocol: u64) -> bool {
        let is_in = |value: u32, [first, last]: [u32; 2]| first <= value && value <= last;
        is_in(addresses as u32, self.destination)
            && is_in((addresses >> 32) as u32, self.source)
            && is_in(ports as u32 & 0xffff, self.destination_port.map(u32::from))
            && is_in((ports >> 16) as u32 & 0xffff, self.source_port.map(u32::from))
            && is_in(protocol as u32, self.protocol.map(u32::from))
    }
}

/// What a hash table is asked for: the numbers of two prefixes (0 for none), a port and a protocol, in host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Exact {
    /// The number of the source's longest prefix.
    pub source: u32,
    /// The number of the destination's longest prefix.
    pub destination: u32,
    /// The destination port.
    pub port: u16,
    /// The protocol.
    pub protocol: u16,
}

const _: () = assert!(size_of::<Exact>() == 12);

#[cfg(not(target_arch = "bpf"))]
mod pod {
    // SAFETY: `#[repr(C)]`, integers with the padding spelt out, any bits are valid.
    unsafe impl aya::Pod for super::Listed {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Exact {}
}
