//! Reads a ring buffer as long as there is something, and waits as long as there is not.

use std::{io, time::Duration};

use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf},
};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

/// A ring buffer cannot be read.
#[derive(Debug, Error)]
pub enum ReaderError {
    /// The object has none of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(String),
    /// It is something else.
    #[error("the ring buffer cannot be opened: {0}")]
    Map(#[from] MapError),
    /// It cannot be waited for.
    #[error("the ring buffer cannot be waited for: {0}")]
    Io(#[from] io::Error),
}

/// A ring buffer, and how it is waited for.
pub struct RecordReader {
    ring: AsyncFd<RingBuf<MapData>>,
    is_busy: bool,
}

/// How many records are read before something else has its turn.
const AT_ONCE: usize = 65_536;

/// When so many were waiting, more are coming: the reader then lets them gather.
const MANY: usize = 64;

/// For how long. The kernel wakes a reader at the first record that comes after it has caught up, so that a reader that
/// reads at once is woken for each; one that comes back a moment later is woken once for all of them.
const GATHER: Duration = Duration::from_millis(1);

impl RecordReader {
    /// Takes the ring buffer out of the loaded object. To be called inside a runtime.
    pub fn take(ebpf: &mut Ebpf, name: &str) -> Result<Self, ReaderError> {
        let map = ebpf
            .take_map(name)
            .ok_or_else(|| ReaderError::Missing(name.to_owned()))?;
        let ring = RingBuf::try_from(map)?;
        // SAFETY: the ring buffer owns its descriptor, keeps it for as long as it lives, and lives in the AsyncFd.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { ring, is_busy: false })
    }

    // ANCHOR: read
    /// Waits until there are records, and hands each of them to `each`; returns how many there were.
    pub async fn read(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        if self.is_busy {
            tokio::time::sleep(GATHER).await;
        }
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let read = drain(guard.get_inner_mut(), &mut each);
            // Drained first, cleared then: a record that comes in between wakes us again.
            if read < AT_ONCE {
                guard.clear_ready();
            }
            self.is_busy = read >= MANY;
            if read > 0 {
                return Ok(read);
            }
        }
    }
    // ANCHOR_END: read

    /// Hands over what is there now, without waiting.
    pub fn read_now(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        let mut read = 0;
        loop {
            let records = drain(self.ring.get_mut(), &mut each);
            read += records;
            if records < AT_ONCE {
                return read;
            }
        }
    }
}

fn drain(ring: &mut RingBuf<MapData>, each: &mut impl FnMut(&[u8])) -> usize {
    let mut read = 0;
    while read < AT_ONCE
        && let Some(record) = ring.next()
    {
        each(&record);
        read += 1;
    }
    read
}

/// The record in these bytes, if there are enough of them.
pub fn record_in<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are as many bytes as the record has, and `Pod` promises that any bits will do.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
