//! A guard against panics of Linux before 6.2 while XDP programs are attached and test-run.
//!
//! On x86-64 Linux calls XDP programs through a *dispatcher*: code that it writes anew, and patches a jump into, whenever
//! a program is attached for the first time, detached for the last, and before and after each `BPF_PROG_TEST_RUN`. Before
//! 6.2 little guards that against CPUs that are running the code ("bpf: Synchronize dispatcher update with
//! `bpf_dispatcher_xdp_func`", 2022). Test runs by the thousand on two emulated CPUs ended 5.10 now and then, with a
//! breakpoint of the patching that nobody answered for: `int3: 0000 [#1] SMP`, `RIP: bpf_dispatcher_xdp_func+0x1`.
//!
//! The dispatcher has room for 48 programs (`BPF_DISPATCHER_MAX` in `include/linux/bpf.h`). With as many attached, others
//! are called without it, and it is not written any more.

use std::os::fd::AsFd as _;

use nix::sys::{
    resource::{RLIM_INFINITY, Resource, setrlimit},
    utsname::uname,
};

use crate::{
    Error, Host, Result,
    bpf::{ProgramType, XdpLink, XdpMode, attach_xdp, empty_program},
    link,
};

/// `BPF_DISPATCHER_MAX`.
const PROGRAMS: usize = 48;

/// Programs that fill the dispatcher, for as long as this is alive.
#[derive(Debug)]
pub struct Filled {
    _attached: Vec<XdpLink>,
    _host: Host,
}

/// Fills the dispatcher, on kernels that need it.
pub fn fill() -> Result<Option<Filled>> {
    // Nothing else tells such kernels apart, short of a panic.
    let is_old = uname().is_ok_and(|system| is_before_6_2(&system.release().to_string_lossy()));
    if !(is_old && cfg!(target_arch = "x86_64")) {
        return Ok(None);
    }
    // Before 5.11 programs count as locked memory, and these are more than a user may have at first.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
        .map_err(|error| Error::system("raising the limit of locked memory", error))?;
    let host = Host::new("filler")?;
    let cables = (0..PROGRAMS / 2).map(|_| link::unused(&host));
    let cables = cables.collect::<Result<Vec<_>>>()?;
    let attached = cables.iter().flatten().map(|end| {
        // A program of its own for each: one that is attached twice takes one place.
        let program = empty_program(ProgramType::Xdp)?;
        attach_xdp(program.as_fd(), end, XdpMode::Generic)
    });
    Ok(Some(Filled {
        _attached: attached.collect::<Result<_>>()?,
        _host: host,
    }))
}

/// Whether a release, such as `5.10.0-45-amd64`, is older than 6.2.
fn is_before_6_2(release: &str) -> bool {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next()) < (6, 2)
}

#[cfg(test)]
mod tests {
    use super::is_before_6_2;

    #[test]
    fn releases_before_6_2_are_told_by_number() {
        for release in ["5.10.0-45-amd64", "5.15.1", "6.1.0-30-cloud-amd64", "6.1"] {
            assert!(is_before_6_2(release), "{release}");
        }
        for release in ["6.2.0", "6.12.94+deb13-amd64", "6.18.44-custom", "7.0.1", "10.1"] {
            assert!(!is_before_6_2(release), "{release}");
        }
    }
}
