//! An array map in the memory of this process: filled by a copy instead of a system call an entry.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Pod,
    maps::{Array, IterableMap as _, MapData},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An array map made with `BPF_F_MMAPABLE` (Linux 5.5), mapped for reading and writing.
///
/// Programs see what is written at once and in no order: what they must not see half-written is written where they do
/// not look yet.
pub struct MappedArray<T> {
    first: NonNull<T>,
    entries: usize,
    length: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and this is its only handle; what it holds is plain data.
unsafe impl<T: Pod> Send for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// Maps `array` into memory. The mapping keeps the map alive; its descriptor is not needed any more.
    pub fn new(array: &Array<MapData, T>) -> io::Result<Self> {
        Self::map(array.map().fd().as_fd(), array.len() as usize)
    }

    fn map(fd: BorrowedFd<'_>, entries: usize) -> io::Result<Self> {
        // The kernel keeps the values of an array at multiples of eight bytes (`array_map_alloc`), a slice at those of
        // their size.
        const { assert!(size_of::<T>().is_multiple_of(8)) }
        let length = NonZeroUsize::new(entries * size_of::<T>())
            .ok_or_else(|| io::Error::other("an array without entries has no memory"))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, overlaps no other memory.
        let address = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self {
            first: address.cast(),
            entries,
            length,
        })
    }

    /// How many entries it has.
    #[expect(clippy::len_without_is_empty, reason = "an array map always has entries")]
    pub fn len(&self) -> usize {
        self.entries
    }

    /// A copy of the entry at `index`, which programs may be writing at the same moment: parts of it may be older than
    /// others.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn read(&self, index: usize) -> T {
        assert!(index < self.entries, "entry {index} of an array of {}", self.entries);
        // SAFETY: the index was just checked, and any bits make a `T`.
        unsafe { self.first.as_ptr().add(index).read_volatile() }
    }

    /// Copies `values` to the entries from `first` on.
    ///
    /// # Panics
    ///
    /// If they do not fit.
    pub fn write(&mut self, first: usize, values: &[T]) {
        let fits = first.checked_add(values.len()).is_some_and(|end| end <= self.entries);
        assert!(
            fits,
            "{} values from {first} on in an array of {}",
            values.len(),
            self.entries
        );
        // SAFETY: the range was just checked, and the mapping is this object's alone in this process. That programs read
        // the memory meanwhile is what they are made for: each reads integers, and any bits make one.
        unsafe {
            self.first
                .as_ptr()
                .add(first)
                .copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
    }
}

impl MappedArray<u64> {
    /// Writes one number, at once: a program that reads it has the old or the new one, and with the new one finds what
    /// was written before it.
    ///
    /// # Panics
    ///
    /// If there is no such entry.
    pub fn store(&mut self, index: usize, value: u64) {
        assert!(index < self.entries, "entry {index} of an array of {}", self.entries);
        // SAFETY: the entry was just checked, lies at a multiple of eight bytes, and is only ever accessed whole.
        let entry = unsafe { AtomicU64::from_ptr(self.first.as_ptr().add(index)) };
        entry.store(value, Ordering::Release);
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that was made, and no reference into it is ever given out.
        let _ = unsafe { munmap(self.first.cast(), self.length.get()) };
    }
}
