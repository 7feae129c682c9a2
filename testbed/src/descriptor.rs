//! Hands a descriptor from one process to another (`SCM_RIGHTS`, unix(7)).

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

/// Room for one control message that carries one descriptor, aligned as its header has to be.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends `descriptor` over `socket`. Allocates nothing, so that it may be called between fork and exec.
pub(crate) fn send(socket: RawFd, descriptor: RawFd) -> io::Result<()> {
    let mut byte = [0u8; 1];
    let mut control = Control([0; 64]);
    with_message(&mut byte, &mut control, |message| {
        // SAFETY: the message has room for one control message, which is written whole.
        let sent = unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast::<RawFd>(), descriptor);
            (*message).msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            libc::sendmsg(socket, message, 0)
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    })
}

/// Receives a descriptor that was sent over the other end of `socket`.
pub(crate) fn receive(socket: RawFd) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut control = Control([0; 64]);
    with_message(&mut byte, &mut control, |message| {
        // SAFETY: the message's buffers live through the call.
        let received = unsafe { libc::recvmsg(socket, message, libc::MSG_CMSG_CLOEXEC) };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled the message in; a control message of this kind carries a descriptor, which is ours
        // alone from now on.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
                return Err(io::Error::other("no descriptor came"));
            }
            let descriptor = ptr::read_unaligned(libc::CMSG_DATA(header).cast::<RawFd>());
            Ok(OwnedFd::from_raw_fd(descriptor))
        }
    })
}

fn with_message<T>(byte: &mut [u8; 1], control: &mut Control, call: impl FnOnce(*mut libc::msghdr) -> T) -> T {
    let mut bytes = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: byte.len(),
    };
    // SAFETY: all zeroes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    call(&raw mut message)
}
