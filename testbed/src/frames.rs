//! Raw Ethernet frames, in and out (`AF_PACKET`, packet(7)).

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr, thread,
    time::{Duration, Instant},
};

use crate::{Error, Host, Result};

/// Sends Ethernet frames out of an interface of a host, as they are.
#[derive(Debug)]
pub struct Injector {
    socket: OwnedFd,
}

impl Injector {
    /// Bytes of frames that may be on their way to the receiver; more make the sender wait.
    ///
    /// A frame is on the sender's account (with some 700 bytes on top) until the receiver has dealt with it. This is
    /// far less than what a veth queues (256 frames with native XDP), so that none is lost on the way however many are
    /// sent at once.
    const SEND_BUFFER: i32 = 48 * 1024;

    /// How long a full queue of the interface is waited for.
    const PATIENCE: Duration = Duration::from_secs(10);

    pub(crate) fn open(host: &Host, interface: &str) -> Result<Self> {
        // Protocol 0: a socket for sending only.
        let socket = open(host, interface, 0, "opening a raw socket for sending")?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, Self::SEND_BUFFER)?;
        Ok(Self { socket })
    }

    /// Goes past the traffic control of the interface, and so past programs on its egress hooks.
    pub fn bypass_traffic_control(self) -> Result<Self> {
        set_option(&self.socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        Ok(self)
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.send_all([frame]).map(drop)
    }

    /// Sends frames as fast as the receiver takes them; returns how many.
    pub fn send_all<F: AsRef<[u8]>>(&self, frames: impl IntoIterator<Item = F>) -> Result<u64> {
        let mut sent = 0;
        let mut frames = frames.into_iter();
        loop {
            let batch: Vec<F> = frames.by_ref().take(64).collect();
            if batch.is_empty() {
                return Ok(sent);
            }
            self.send_batch(&batch)?;
            sent += batch.len() as u64;
        }
    }

    fn send_batch<F: AsRef<[u8]>>(&self, frames: &[F]) -> Result<()> {
        let mut vectors: Vec<_> = frames
            .iter()
            .map(|frame| libc::iovec {
                iov_base: frame.as_ref().as_ptr().cast_mut().cast(),
                iov_len: frame.as_ref().len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: all-zero bytes are a valid mmsghdr.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut rest = messages.as_mut_slice();
        let mut last_sent = Instant::now();
        while !rest.is_empty() {
            // SAFETY: the messages, their vectors and the frames live until the call returns, which only reads frames.
            let count = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
            match usize::try_from(count) {
                Ok(count) => {
                    rest = &mut rest[count..];
                    last_sent = Instant::now();
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    // The queue of the interface is full, which Linux 5.10 tells, and the frame was not sent.
                    error if error.raw_os_error() == Some(libc::ENOBUFS) && last_sent.elapsed() < Self::PATIENCE => {
                        thread::sleep(Duration::from_millis(1));
                    }
                    error => return Err(Error::system("sending a raw frame", error)),
                },
            }
        }
        Ok(())
    }
}

type Filter = Box<dyn Fn(&[u8]) -> bool + Send>;

/// What arrives at an interface of a host, as it was on the wire.
///
/// Frames that arrive while nobody asks are kept, up to some thousands.
pub struct Capture {
    socket: OwnedFd,
    wanted: Filter,
    buffer: Vec<u8>,
}

impl Capture {
    const RECEIVE_BUFFER: i32 = 32 * 1024 * 1024;

    pub(crate) fn open(host: &Host, interface: &str) -> Result<Self> {
        let socket = open(host, interface, ETH_P_ALL, "opening a raw socket for capturing")?;
        // FORCE: root may go over net.core.rmem_max.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, Self::RECEIVE_BUFFER)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        Ok(Self {
            socket,
            wanted: Box::new(|_| true),
            // The largest packet that offloads can make of several.
            buffer: vec![0; 256 * 1024],
        })
    }

    /// Leaves out the frames for which `wanted` is false.
    #[must_use]
    pub fn only(mut self, wanted: impl Fn(&[u8]) -> bool + Send + 'static) -> Self {
        self.wanted = Box::new(wanted);
        self
    }

    /// The next frame, or `None` when none has come in time.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if !self.wait(left)? {
                return Ok(None);
            }
            if let Some(frame) = self.receive()?
                && (self.wanted)(&frame)
            {
                return Ok(Some(frame));
            }
        }
    }

    /// All frames until none has come for `silence`.
    pub fn all(&mut self, silence: Duration) -> Result<Vec<Vec<u8>>> {
        std::iter::from_fn(|| self.next(silence).transpose()).collect()
    }

    fn wait(&self, timeout: Duration) -> Result<bool> {
        let mut ready = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up, so that the last wait is not a busy loop.
        let milliseconds = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, which lives until the call returns.
        match unsafe { libc::poll(&raw mut ready, 1, milliseconds) } {
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(true),
                error => Err(Error::system("waiting for a frame", error)),
            },
            count => Ok(count > 0),
        }
    }

    /// A frame that is there, unless it is one that the host sends itself.
    fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        let mut vector = libc::iovec {
            iov_base: self.buffer.as_mut_ptr().cast(),
            iov_len: self.buffer.len(),
        };
        let mut control = [0_u64; 16];
        // SAFETY: all-zero bytes are a valid sockaddr_ll, and a valid msghdr.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as u32;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: everything that the message points to lives until the call returns, with the lengths given.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(length) = usize::try_from(length) else {
            return match io::Error::last_os_error() {
                error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
                error => Err(Error::system("receiving a frame", error)),
            };
        };
        if from.sll_pkttype == libc::PACKET_OUTGOING {
            return Ok(None);
        }
        let mut frame = self.buffer[..length].to_vec();
        if let Some(tag) = stripped_vlan_tag(&message) {
            frame.splice(12..12, tag);
        }
        Ok(Some(frame))
    }
}

/// The outer VLAN tag, which the kernel takes out of a frame before packet sockets see it and tells beside it.
fn stripped_vlan_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: recvmsg has filled the message's control buffer, which is alive.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: CMSG_FIRSTHDR returns null or a header inside the buffer.
    let header = unsafe { header.as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: a message of this type carries a tpacket_auxdata.
    let data: libc::tpacket_auxdata = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
    if data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let [p0, p1] = data.tp_vlan_tpid.to_be_bytes();
    let [t0, t1] = data.tp_vlan_tci.to_be_bytes();
    Some([p0, p1, t0, t1])
}

// libc has these as i32, for other calls.
const AF_PACKET: u16 = 17;
const ETH_P_ALL: u16 = 3;

/// A packet socket bound to an interface.
fn open(host: &Host, interface: &str, protocol: u16, what: &str) -> Result<OwnedFd> {
    let index = host.index_of(interface)?;
    // Without a protocol at first: it would receive from all interfaces until it is bound to one.
    // SAFETY: no pointers are passed.
    let fd = host.run(
        || match unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) } {
            -1 => Err(Error::last_os(what)),
            fd => Ok(fd),
        },
    )?;
    // SAFETY: the descriptor is fresh and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if protocol != 0 {
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    }
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = AF_PACKET;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address lives until the call returns, and its length is right.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) };
    if bound != 0 {
        return Err(Error::last_os(format!("{what} on {interface} of host {}", host.name())));
    }
    Ok(socket)
}

fn set_option(socket: &OwnedFd, level: i32, option: i32, value: i32) -> Result<()> {
    // SAFETY: the value lives until the call returns, and its length is right.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(Error::last_os("setting an option of a raw socket"))
    }
}
