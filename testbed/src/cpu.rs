//! Which CPU a thread runs on.

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{Error, Result};

/// Keeps this thread on one CPU, on which a veth then also receives what the thread sends.
pub fn stay_on_cpu(cpu: usize) -> Result {
    let pin = || {
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)
    };
    pin().map_err(|errno| Error::system(format!("keeping a thread on CPU {cpu}"), errno))
}
