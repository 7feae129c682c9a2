//! Switching features of a network interface off, as `ethtool -K` does.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{Error, Result, namespace::Namespace};

/// Switches those of the interface's `features` off that there are and that are on.
pub(crate) fn switch_off(namespace: &Namespace, interface: &str, features: &[&str]) -> Result<()> {
    namespace
        .run(|| Interface::open(interface)?.switch_off(features))
        .map_err(|error| Error::system(format!("switching features of {interface} off"), error))
}

/// What a card does with the packets of sockets after the kernel has sent them.
pub(crate) const OFFLOADS: [&str; 6] = [
    "tx-checksum-ip-generic",
    "tx-checksum-sctp",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-generic-segmentation",
    "rx-gro",
];

/// Keeping VLAN tags beside the packet, where an XDP program does not see them.
pub(crate) const VLAN_INSERTION: [&str; 2] = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];

struct Interface<'a> {
    name: &'a str,
    socket: OwnedFd,
}

// linux/ethtool.h
const GET_STRINGS: u32 = 0x1b;
const GET_STRING_SET_INFO: u32 = 0x37;
const SET_FEATURES: u32 = 0x3b;
const FEATURES: u32 = 4;
const STRING_LENGTH: usize = 32;

impl<'a> Interface<'a> {
    fn open(name: &'a str) -> nix::Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { name, socket })
    }

    fn switch_off(&self, features: &[&str]) -> nix::Result<()> {
        let names = self.feature_names()?;
        let blocks = names.len().div_ceil(32);
        // struct ethtool_sfeatures: command, number of blocks, and for each block of 32 features which are meant and
        // which of those are to be on.
        let mut request = vec![0_u32; 2 + 2 * blocks];
        request[0] = SET_FEATURES;
        request[1] = blocks as u32;
        for (number, name) in names.iter().enumerate() {
            if features.contains(&name.as_str()) {
                request[2 + number / 32 * 2] |= 1 << (number % 32);
            }
        }
        self.ioctl(&mut request)
    }

    fn feature_names(&self) -> nix::Result<Vec<String>> {
        // struct ethtool_sset_info: command, reserved, a mask of 64 bits of the sets asked for, the sizes of those.
        let mut info = [GET_STRING_SET_INFO, 0, 1 << FEATURES, 0, 0];
        self.ioctl(&mut info)?;
        let count = info[4] as usize;

        // struct ethtool_gstrings: command, set, size, strings.
        let mut strings = vec![0_u32; 3 + count * STRING_LENGTH / 4];
        (strings[0], strings[1], strings[2]) = (GET_STRINGS, FEATURES, count as u32);
        self.ioctl(&mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let names = bytes.chunks_exact(STRING_LENGTH);
        Ok(names
            .map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
            .collect())
    }

    fn ioctl(&self, data: &mut [u32]) -> nix::Result<()> {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
        // SAFETY: the request and the data live until the call returns; the data has the length that it says.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        // A set that was only in part possible is told by a positive number: some features cannot be switched.
        nix::errno::Errno::result(result).map(drop)
    }
}
