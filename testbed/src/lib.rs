//! Disposable hosts for tests, demos and benchmarks.
//!
//! ```no_run
//! let (client, server) = (testbed::Host::new("client")?, testbed::Host::new("server")?);
//! let link = client.join(&server)?;
//! server.inject(&link.right.interface, &link.right.frame_to(&link.left).arp_request("192.0.2.2", "192.0.2.1").build())?;
//! # Ok::<(), testbed::Error>(())
//! ```

mod addresses;
pub mod bpf;
mod cgroup;
mod error;
mod ethtool;
mod frames;
pub mod harness;
mod host;
mod link;
mod namespace;
mod netlink;
pub mod packets;
mod switch;
mod wait;

pub use addresses::Subnet;
pub use error::{Error, Result};
pub use frames::{Capture, Injector};
pub use host::Host;
pub use link::{End, Link, LinkOptions};
pub use namespace::Inside;
pub use switch::Switch;
