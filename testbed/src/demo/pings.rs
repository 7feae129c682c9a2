//! Pings, and whether they were answered: told when the program has ended, as its screen is its own until then.

use std::{
    fmt::Write as _,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Act;
use crate::{End, traffic};

/// How long a reply is waited for. On these hosts it takes a fraction of a millisecond.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The pings that one host sends.
#[derive(Debug)]
pub(crate) struct Pings {
    host: String,
    address: IpAddr,
    sent: AtomicU64,
    answered: AtomicU64,
}

impl Pings {
    /// Of a host that pings from this address of its.
    pub fn of(host: &End, address: impl Into<IpAddr>) -> Arc<Self> {
        Arc::new(Self {
            host: host.host.name().to_owned(),
            address: address.into(),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        })
    }

    /// `from` pings `server`, by the version of IP that its address is of.
    pub fn act(self: &Arc<Self>, from: &End, server: &End, per_second: u32, times: u32) -> Act {
        let (pings, from, server) = (Arc::clone(self), from.clone(), server.clone());
        let target: IpAddr = if pings.address.is_ipv4() {
            server.ipv4.into()
        } else {
            server.ipv6.into()
        };
        Act {
            per_second,
            times,
            perform: Box::new(move || {
                let exchange = traffic::ping(&from.host, target, 1, TIMEOUT)?;
                // One that was under way when the program ended is nobody's.
                if server.has_xdp()? {
                    pings.sent.fetch_add(exchange.sent, Ordering::Relaxed);
                    pings.answered.fetch_add(exchange.received, Ordering::Relaxed);
                }
                Ok(())
            }),
        }
    }
}

/// What became of the pings, a line a host; `None` if there were none.
pub(crate) fn summary(pings: &[Arc<Pings>]) -> Option<String> {
    if pings.iter().all(|pings| pings.sent.load(Ordering::Relaxed) == 0) {
        return None;
    }
    let mut text = String::from("Pings that the server answered:");
    for pings in pings {
        let _ = write!(
            text,
            "\n  {:<6} {:<15}  {:>4} of {:>4}",
            pings.host,
            pings.address,
            pings.answered.load(Ordering::Relaxed),
            pings.sent.load(Ordering::Relaxed),
        );
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_a_line_a_host_and_is_left_out_where_nobody_pinged() {
        let pings = |host: &str, address: &str, sent, answered| {
            Arc::new(Pings {
                host: host.into(),
                address: address.parse().unwrap(),
                sent: AtomicU64::new(sent),
                answered: AtomicU64::new(answered),
            })
        };
        let told = summary(&[
            pings("amber", "192.0.2.2", 12, 12),
            pings("coral", "2001:db8:0:1::4", 7, 0),
        ]);
        assert_eq!(
            told.unwrap(),
            "Pings that the server answered:\n  \
             amber  192.0.2.2          12 of   12\n  \
             coral  2001:db8:0:1::4     0 of    7"
        );
        assert_eq!(summary(&[pings("amber", "192.0.2.2", 0, 0)]), None);
        assert_eq!(summary(&[]), None);
    }
}
