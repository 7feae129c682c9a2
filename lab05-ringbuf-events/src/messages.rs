//! Messages of DNS and DHCP on an interface, counted by a socket filter that keeps no packet.

use std::{io, os::fd::AsRawFd as _, time::Duration};

use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray},
    programs::SocketFilter,
};
use lab01_count_packets::{
    interface::Interface,
    load::{self, LoadError},
    output::Tell,
    text::{Table, binary_bytes, grouped},
};
use lab01_count_packets_common::counter::Counter;
use lab05_ringbuf_events_common::messages::Message;
use serde::Serialize;
use socket2::{Domain, Socket, Type};
use thiserror::Error;

use crate::{PROBES, watch::cause};

/// Why messages cannot be watched. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum MessagesError {
    /// The program or a map was refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The object has no such map.
    #[error("the eBPF object has no map MESSAGES; build it again")]
    Missing,
    /// The counters cannot be read.
    #[error("the counters cannot be read: {0}")]
    Map(#[from] MapError),
    /// The socket could not be made.
    #[error("a packet socket on {interface} cannot be made: {cause}; CAP_NET_RAW is needed: run it with sudo")]
    Socket {
        /// The interface.
        interface: String,
        /// The kernel's words.
        cause: io::Error,
    },
    /// The filter was refused.
    #[error("the filter cannot be attached to the socket: {0}")]
    Attach(String),
}

/// The filter on its socket; dropping this ends it.
pub struct MessageWatch {
    _ebpf: Ebpf,
    _socket: Socket,
    counters: PerCpuArray<MapData, Counter>,
    interface: String,
}

/// What has been counted.
#[derive(Debug, Serialize)]
pub struct MessageReport {
    /// The time since the start.
    pub elapsed_ms: u64,
    /// The interface.
    pub interface: String,
    /// The messages that occurred.
    pub messages: Vec<MessageLine>,
}

/// One kind of message.
#[derive(Debug, Serialize)]
pub struct MessageLine {
    /// Its name.
    pub message: &'static str,
    /// How many.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// How many each CPU has seen.
    pub by_cpu: Vec<u64>,
}

impl MessageWatch {
    /// Loads the filter and attaches it to a packet socket on the interface.
    pub fn start(interface: &Interface) -> Result<Self, MessagesError> {
        let mut ebpf = load::load_object(PROBES, &[])?;
        let program: &mut SocketFilter = load::program(&mut ebpf, "watch_messages", "socket filter")?;
        program
            .load()
            .map_err(|error| load::explain_program("watch_messages", error))?;
        let failed = |cause| MessagesError::Socket {
            interface: interface.name.clone(),
            cause,
        };
        // Without a protocol it receives nothing yet: not a packet passes before the filter is there.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(failed)?;
        program
            .attach(&socket)
            .map_err(|error| MessagesError::Attach(cause(error)))?;
        bind(&socket, interface.index).map_err(failed)?;
        let counters = ebpf.take_map("MESSAGES").ok_or(MessagesError::Missing)?;
        Ok(Self {
            counters: counters.try_into()?,
            _ebpf: ebpf,
            _socket: socket,
            interface: interface.name.clone(),
        })
    }

    /// What has been counted so far.
    pub fn report(&self, elapsed: Duration) -> Result<MessageReport, MessagesError> {
        let mut messages = Vec::new();
        for message in Message::ALL {
            let by_cpu = self.counters.get(&message.index(), 0)?;
            let sum: Counter = by_cpu.iter().copied().sum();
            if sum.packets > 0 {
                messages.push(MessageLine {
                    message: message.name(),
                    packets: sum.packets,
                    bytes: sum.bytes,
                    by_cpu: by_cpu.iter().map(|counter| counter.packets).collect(),
                });
            }
        }
        Ok(MessageReport {
            elapsed_ms: elapsed.as_millis() as u64,
            interface: self.interface.clone(),
            messages,
        })
    }
}

/// Has a packet socket receive all that passes an interface, both ways: packet(7).
fn bind(socket: &Socket, interface: u32) -> io::Result<()> {
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface.cast_signed();
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is as long as is said.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Tell for MessageReport {
    fn table(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{}, {} s: messages of DNS and DHCP",
                self.interface,
                self.elapsed_ms / 1000
            ),
            String::new(),
        ];
        if self.messages.is_empty() {
            lines.push("No message has passed yet.".into());
            return lines;
        }
        let mut table = Table::new(&["message", "packets", "bytes", "by CPU"]);
        for line in &self.messages {
            let by_cpu: Vec<String> = line.by_cpu.iter().map(|packets| grouped(*packets)).collect();
            table.row(vec![
                line.message.to_owned(),
                grouped(line.packets),
                binary_bytes(line.bytes),
                by_cpu.join(" + "),
            ]);
        }
        lines.extend(table.lines());
        lines
    }

    fn plain(&self) -> Vec<String> {
        let time = format!("{:>8.1}s", self.elapsed_ms as f64 / 1000.0);
        let lines = self.messages.iter().map(|line| {
            format!(
                "{time}  {:<26}  packets={} bytes={} by_cpu={:?}",
                line.message, line.packets, line.bytes, line.by_cpu
            )
        });
        lines.collect()
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that JSON lacks")
    }
}
