//! Which hook of an interface decides about what comes in: XDP where frames come from a driver that has it, else TC ingress.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
};

use aya::programs::{Xdp, xdp::XdpLink};
use clap::ValueEnum;
use lab01_count_packets::{
    attach::{AttachError, XdpMode, attach_xdp},
    interface::Interface,
};
use lab06_full_enforcer_common::key::Hook;

/// Which hook of the interfaces is to decide about what comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Wire {
    /// XDP where the driver has it and is none of veth, whose frames mostly come from sockets; else TC.
    #[default]
    Auto,
    /// XDP: in the driver if it can, else behind it.
    Xdp,
    /// TC.
    Tc,
}

impl Wire {
    /// The hook of an interface, as far as it is known before it is tried.
    pub fn hook(self, interface: &Interface) -> &'static str {
        match self {
            Self::Xdp => Hook::XdpIngress.name(),
            Self::Auto if self.tries_xdp(interface) => "xdp-ingress or tc-ingress",
            Self::Auto | Self::Tc => Hook::TcIngress.name(),
        }
    }

    /// Whether XDP may be what decides at an interface.
    pub fn tries_xdp(self, interface: &Interface) -> bool {
        match self {
            Self::Auto => comes_from_a_driver(interface),
            Self::Xdp => true,
            Self::Tc => false,
        }
    }
}

/// An XDP program on an interface, which is detached when this is dropped.
pub struct OnWire {
    /// How it is attached.
    pub mode: XdpMode,
    _link: XdpLink,
}

// ANCHOR: attach
/// Attaches the program if XDP is to decide, for which it is loaded; `None` if TC is.
pub async fn attach(program: &mut Xdp, interface: &Interface, wire: Wire) -> Result<Option<OnWire>, AttachError> {
    if !wire.tries_xdp(interface) {
        return Ok(None);
    }
    let mode = if wire == Wire::Auto {
        XdpMode::Native
    } else {
        XdpMode::Auto
    };
    match attach_xdp(program, interface, mode).await {
        Ok(attached) => Ok(program.take_link(attached.link).ok().map(|link| OnWire {
            mode: attached.mode,
            _link: link,
        })),
        Err(reason @ (AttachError::Refused { .. } | AttachError::Occupied { .. })) if wire == Wire::Auto => {
            log::debug!("TC decides about what comes in by {}: {reason}", interface.name);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
// ANCHOR_END: attach

/// Whether XDP is worth a try: on a veth, what sockets have sent would first have to be made what a driver has.
pub fn comes_from_a_driver(interface: &Interface) -> bool {
    driver(&interface.name).map_or(true, |driver| driver != "veth")
}

/// What the driver of an interface calls itself (`ethtool -i`).
fn driver(interface: &str) -> io::Result<String> {
    // `struct ethtool_drvinfo` of `include/uapi/linux/ethtool.h`: the command, and behind it 32 bytes for the name.
    const GET_DRIVER_INFO: u32 = 3;
    let mut info = [0_u32; 49];
    info[0] = GET_DRIVER_INFO;
    let mut request = request(interface);
    request.ifr_ifru.ifru_data = info.as_mut_ptr().cast();
    // SAFETY: the structure lives until the call returns, and is as long as the kernel takes it for.
    unsafe { ask(libc::SIOCETHTOOL, &mut request) }?;
    let name: Vec<u8> = info[1..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = String::from_utf8_lossy(&name);
    Ok(name.trim_end_matches('\0').to_owned())
}

/// Whether the packets of an interface have Ethernet headers, as those of tunnels have not (`tun`, `WireGuard`).
pub fn has_ethernet(interface: &Interface) -> io::Result<bool> {
    let mut request = request(&interface.name);
    // SAFETY: no pointer is passed.
    unsafe { ask(libc::SIOCGIFHWADDR, &mut request) }?;
    // SAFETY: this member of the union is the one that was answered.
    let hardware = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok(matches!(hardware, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK))
}

/// A request about an interface.
fn request(interface: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// Asks the kernel, which answers in the request.
///
/// # Safety
///
/// If the request has a pointer, it is to what the command reads and writes.
unsafe fn ask(command: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the request lives until the call returns; of what it points to, the caller has said so.
    if unsafe { libc::ioctl(socket.as_raw_fd(), command, ptr::from_mut(request)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
