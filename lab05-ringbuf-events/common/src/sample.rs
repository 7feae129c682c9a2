//! Records of the two channels that are compared, and of stacks.

/// A packet that the tracepoint `net:netif_receive_skb` told of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub time_ns: u64,
    /// The packet's length in bytes, without its Ethernet header.
    pub len: u32,
    /// The CPU.
    pub cpu: u32,
    /// The interface's name.
    pub interface: [u8; 16],
}

const _: () = assert!(size_of::<Arrival>() == 32);

/// Where the fields lie in the tracepoint's record, as the kernel's `format` file tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArrivalOffsets {
    /// `len`.
    pub len: u32,
    /// `name`: where the name lies, in the low half, and its length.
    pub name: u32,
}

/// How one channel fared, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelTally {
    /// How many records there were to send.
    pub records: u64,
    /// How many found no room.
    pub lost: u64,
    /// How long sending took, all together, in nanoseconds.
    pub spent_ns: u64,
}

/// A process called `connect(2)` on a TCP socket, and this is how it got there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackSample {
    /// Nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub time_ns: u64,
    /// The process.
    pub pid: u32,
    /// The user.
    pub uid: u32,
    /// Its stack in the kernel: a key of the map of stacks, or a negative error number.
    pub kernel_stack: i32,
    /// Its stack in its own memory, likewise.
    pub user_stack: i32,
    /// Its name.
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<StackSample>() == 40);

/// How deep a stack is followed.
pub const STACK_DEPTH: usize = 64;

#[cfg(target_os = "linux")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
    unsafe impl aya::Pod for super::Arrival {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ArrivalOffsets {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ChannelTally {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::StackSample {}
}
