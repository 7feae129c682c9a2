//! lab04's loader as a library: what later labs reuse.
//!
//! - [`cgroup`] finds cgroup v2, and opens and makes cgroups,
//! - [`attach`] attaches programs to them by links, which can be pinned and given another program.

pub mod attach;
pub mod cgroup;
