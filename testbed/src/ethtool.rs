//! The one thing that the old ethtool ioctl is still the simplest way to: switching offloads off.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd as _;

use crate::{End, Error, Result};

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `ETHTOOL_STXCSUM`, `ETHTOOL_STSO`, `ETHTOOL_SGSO` and `ETHTOOL_SGRO` of linux/ethtool.h.
const OFFLOADS: [(&str, u32); 4] = [
    ("transmit checksums", 0x17),
    ("TCP segmentation", 0x1f),
    ("generic segmentation", 0x24),
    ("generic receive", 0x2c),
];

/// Has the kernel finish checksums and segments before it hands packets to the interface.
pub(crate) fn switch_offloads_off(end: &End) -> Result<()> {
    end.host.run(|| {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| Error::system("opening a socket for ethtool", errno))?;
        for (offload, command) in OFFLOADS {
            let mut value = EthtoolValue { command, data: 0 };
            // SAFETY: all-zero bytes are a valid ifreq.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(end.interface.bytes()) {
                *to = from.cast_signed();
            }
            request.ifr_ifru.ifru_data = (&raw mut value).cast();
            // SAFETY: the request and the value that it points to live until the call returns.
            if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
                return Err(Error::last_os(format!("switching {offload} offload off")));
            }
        }
        Ok(())
    })
}
