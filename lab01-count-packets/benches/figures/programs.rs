//! The programs that are compared.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{ProgramFd, Xdp},
};
use lab01_count_packets::{OBJECT, counts::Counts, load};

use crate::raw::load_empty_xdp;

/// lab01's program, and an empty one to compare it with.
pub struct Programs {
    // Keeps the maps alive that `counts` does not hold.
    _ebpf: Ebpf,
    count_packets: ProgramFd,
    counts: Counts,
    empty: OwnedFd,
}

impl Programs {
    pub fn load() -> Result<Self> {
        let mut ebpf = load::load_object(OBJECT, &[])?;
        let counts = Counts::take(&mut ebpf)?;
        let program: &mut Xdp = load::program(&mut ebpf, "count_packets", "XDP")?;
        program
            .load()
            .map_err(|error| load::explain_program("count_packets", error))?;
        let count_packets = program.fd()?.try_clone()?;
        Ok(Self {
            _ebpf: ebpf,
            count_packets,
            counts,
            empty: load_empty_xdp().context("an empty program cannot be loaded")?,
        })
    }

    pub fn empty(&self) -> BorrowedFd<'_> {
        self.empty.as_fd()
    }

    pub fn count_packets(&self) -> BorrowedFd<'_> {
        self.count_packets.as_fd()
    }

    /// How many packets lab01's program has counted since it was loaded.
    pub fn packets_counted(&self) -> Result<u64> {
        Ok(self.counts.snapshot()?.total().packets)
    }
}
