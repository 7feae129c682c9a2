//! Which way a process came to `connect(2)`: a kprobe on `tcp_v4_connect`, with the stacks of the kernel and of the process.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{MapData, MapError, StackTraceMap},
    programs::KProbe,
};
use lab01_count_packets::load::{self, LoadError};
use lab05_ringbuf_events_common::sample::StackSample;
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
use procfs::process::{MMapPath, Process as ProcFs};
use serde::Serialize;
use thiserror::Error;

use crate::{
    PROBES,
    processes::text,
    reader::{ReaderError, RecordReader, record_in},
    watch::cause,
};

/// The function that is watched.
const FUNCTION: &str = "tcp_v4_connect";

/// What is there if the kernel has kprobes.
const KPROBE_PMU: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Why stacks cannot be sampled. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum StacksError {
    /// The kernel has none.
    #[error(
        "this kernel has no kprobes (CONFIG_KPROBES and CONFIG_KPROBE_EVENTS are off): stacks cannot be sampled on it; all \
         else of this lab works without, and `cargo xtask test lab05 --kernel 6.12` shows it on one that has them"
    )]
    NoKprobes,
    /// The function cannot be probed.
    #[error(
        "the function {FUNCTION} cannot be probed: {0}; `grep {FUNCTION} /proc/kallsyms` shows whether it is there"
    )]
    Attach(String),
    /// A program or a map was refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The object has no map of this name.
    #[error("the eBPF object has no map STACKS; build it again")]
    Missing,
    /// A map cannot be read.
    #[error("the stacks cannot be read: {0}")]
    Map(#[from] MapError),
    /// The ring buffer cannot be read.
    #[error(transparent)]
    Reader(#[from] ReaderError),
    /// The kernel's symbols cannot be read.
    #[error("the kernel's symbols (/proc/kallsyms) cannot be read: {0}")]
    Symbols(io::Error),
}

/// The kprobe; dropping this removes it.
pub struct Stacks {
    _ebpf: Ebpf,
    samples: RecordReader,
    traces: StackTraceMap<MapData>,
    kernel: BTreeMap<u64, String>,
}

/// A call of `connect(2)`, and how it was reached: the innermost function first.
#[derive(Debug, Serialize)]
pub struct Stack {
    /// `stack`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Nanoseconds since boot.
    pub time_ns: u64,
    /// The process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub comm: String,
    /// The functions of the kernel.
    pub kernel: Vec<String>,
    /// The functions of the process, as far as its program was built so that they can be found.
    pub user: Vec<String>,
}

impl Stacks {
    /// Loads and attaches the kprobe. To be called inside a runtime.
    pub fn start() -> Result<Self, StacksError> {
        load::require_privileges()?;
        if !Path::new(KPROBE_PMU).exists() {
            return Err(StacksError::NoKprobes);
        }
        let mut ebpf = load::load_object(PROBES, &[])?;
        let program: &mut KProbe = load::program(&mut ebpf, "tcp_connect", "kprobe")?;
        program
            .load()
            .map_err(|error| load::explain_program("tcp_connect", error))?;
        program
            .attach(FUNCTION, 0)
            .map_err(|error| StacksError::Attach(cause(error)))?;
        Ok(Self {
            samples: RecordReader::take(&mut ebpf, "STACK_SAMPLES")?,
            traces: ebpf.take_map("STACKS").ok_or(StacksError::Missing)?.try_into()?,
            kernel: aya::util::kernel_symbols().map_err(StacksError::Symbols)?,
            _ebpf: ebpf,
        })
    }

    /// Waits for calls, and tells their stacks.
    pub async fn next(&mut self) -> io::Result<Vec<Stack>> {
        let mut samples = Vec::new();
        self.samples
            .read(|record| samples.extend(record_in::<StackSample>(record)))
            .await?;
        Ok(samples.iter().map(|sample| self.stack(sample)).collect())
    }

    fn stack(&self, sample: &StackSample) -> Stack {
        let mut maps = UserSymbols::of(sample.pid);
        Stack {
            kind: "stack",
            time_ns: sample.time_ns,
            pid: sample.pid,
            uid: sample.uid,
            comm: text(&sample.comm),
            kernel: self
                .addresses(sample.kernel_stack)
                .into_iter()
                .map(|address| self.kernel_name(address))
                .collect(),
            user: self
                .addresses(sample.user_stack)
                .into_iter()
                .map(|address| maps.name(address))
                .collect(),
        }
    }

    fn addresses(&self, id: i32) -> Vec<u64> {
        // A negative number is an error: no frame could be found, or two stacks fell on the same key.
        let trace = u32::try_from(id).ok().and_then(|id| self.traces.get(&id, 0).ok());
        trace.map_or_else(Vec::new, |trace| trace.frames().iter().map(|frame| frame.ip).collect())
    }

    fn kernel_name(&self, address: u64) -> String {
        match self.kernel.range(..=address).next_back() {
            // Where the kernel hides its addresses (kptr_restrict) all of them are 0.
            Some((start, name)) if *start != 0 => format!("{name}+{:#x}", address - start),
            _ => format!("{address:#x}"),
        }
    }
}

/// The symbols of one process's program and libraries.
struct UserSymbols {
    /// Start and end in memory, offset in the file, file.
    mappings: Vec<(u64, u64, u64, PathBuf)>,
    files: HashMap<PathBuf, FileSymbols>,
}

/// The functions of a file, by address, and where its segments lie: offset in the file, length, address.
#[derive(Default)]
struct FileSymbols {
    functions: BTreeMap<u64, (u64, String)>,
    segments: Vec<(u64, u64, u64)>,
}

impl UserSymbols {
    /// As the process is now; one that has gone has none.
    fn of(pid: u32) -> Self {
        let maps = ProcFs::new(pid.cast_signed()).and_then(|process| process.maps());
        let mappings = maps.into_iter().flatten().filter_map(|map| match map.pathname {
            MMapPath::Path(path) => Some((map.address.0, map.address.1, map.offset, path)),
            _ => None,
        });
        Self {
            mappings: mappings.collect(),
            files: HashMap::new(),
        }
    }

    fn name(&mut self, address: u64) -> String {
        let mapping = self
            .mappings
            .iter()
            .find(|(start, end, ..)| (*start..*end).contains(&address));
        let Some((start, _, offset, path)) = mapping.cloned() else {
            return format!("{address:#x}");
        };
        let in_file = address - start + offset;
        let file = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let symbols = self.files.entry(path.clone()).or_insert_with(|| FileSymbols::of(&path));
        match symbols.function_at(in_file) {
            Some(function) => format!("{function} ({file})"),
            None => format!("{file}+{in_file:#x}"),
        }
    }
}

impl FileSymbols {
    fn of(path: &Path) -> Self {
        let Ok(bytes) = fs::read(path) else {
            return Self::default();
        };
        let Ok(file) = object::File::parse(&*bytes) else {
            return Self::default();
        };
        let functions = file
            .symbols()
            .chain(file.dynamic_symbols())
            .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.address() != 0)
            .filter_map(|symbol| {
                let name = format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?));
                Some((symbol.address(), (symbol.size(), name)))
            });
        let segments = file.segments().map(|segment| {
            let (offset, len) = segment.file_range();
            (offset, len, segment.address())
        });
        Self {
            functions: functions.collect(),
            segments: segments.collect(),
        }
    }

    fn function_at(&self, in_file: u64) -> Option<String> {
        let (offset, _, start) = self
            .segments
            .iter()
            .find(|(offset, len, _)| (*offset..offset + len).contains(&in_file))?;
        let address = in_file - offset + start;
        let (begin, (size, name)) = self.functions.range(..=address).next_back()?;
        (address < begin + size.max(&1)).then(|| format!("{name}+{:#x}", address - begin))
    }
}

impl Stack {
    /// For people: a line with the process, and one a function.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}[{}] (uid {}) connects:", self.comm, self.pid, self.uid)];
        lines.extend(self.kernel.iter().map(|name| format!("  kernel  {name}")));
        lines.extend(self.user.iter().map(|name| format!("  user    {name}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn a_function_of_this_test() -> u64 {
        std::hint::black_box(7)
    }

    #[test]
    fn functions_of_this_program_are_found_by_their_address() {
        assert_eq!(a_function_of_this_test(), 7);
        let address = a_function_of_this_test as *const () as u64;
        let name = UserSymbols::of(std::process::id()).name(address);
        assert!(name.contains("a_function_of_this_test+0x0 ("), "{name}");
        assert_eq!(UserSymbols::of(std::process::id()).name(16), "0x10");
    }
}
