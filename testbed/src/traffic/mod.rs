//! Real traffic: sockets on hosts, bounded in count and in time.

mod flood;
mod ping;
mod server;
mod sockets;

pub use flood::Flood;
pub use ping::ping;
pub use server::Server;
pub use sockets::{Connection, tcp_exchange, tcp_question, try_connect, udp_exchange, udp_send};

/// How much was sent, and how much came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Packets, or for TCP bytes, that were sent.
    pub sent: u64,
    /// Packets, or for TCP bytes, that came back.
    pub received: u64,
}

impl Exchange {
    /// Whether everything came back.
    pub fn is_complete(self) -> bool {
        self.sent == self.received
    }
}
