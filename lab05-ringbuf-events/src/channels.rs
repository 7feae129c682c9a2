//! Two channels side by side: the same tracepoint tells of each packet over a perf event array and over a ring buffer.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{
        MapData, MapError, PerCpuArray, PerfEventArray, RingBuf,
        perf::{PerfBufferError, PerfEvent, PerfEventArrayBuffer},
    },
    programs::TracePoint,
    util::online_cpus,
};
use lab01_count_packets::{
    load::{self, LoadError},
    output::Tell,
    text::{Table, grouped},
};
use lab05_ringbuf_events_common::sample::{Arrival, ArrivalOffsets, ChannelTally};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use thiserror::Error;

use crate::{
    PROBES,
    clock::boot_ns,
    reader::record_in,
    watch::{WatchError, cause, set},
};

/// Why the channels cannot be compared. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum ChannelsError {
    /// A program or a map was refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be written.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The object has no map of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(&'static str),
    /// A map cannot be read.
    #[error("the channel cannot be read: {0}")]
    Map(#[from] MapError),
    /// A perf buffer cannot be opened.
    #[error("a perf buffer cannot be opened: {0}")]
    Perf(#[from] PerfBufferError),
    /// The tracepoint's record is not described.
    #[error(
        "the tracepoint net:netif_receive_skb is not described: no tracefs is mounted, or the kernel has no CONFIG_FTRACE; \
         `mount -t tracefs tracefs /sys/kernel/tracing` mounts it"
    )]
    NoTracefs,
    /// It is described otherwise than expected.
    #[error("the tracepoint net:netif_receive_skb has no field {0} on this kernel")]
    NoField(&'static str),
    /// The tracepoint cannot be attached to.
    #[error("the tracepoint net:netif_receive_skb cannot be attached to: {0}")]
    Attach(String),
    /// A system call failed.
    #[error("the CPUs cannot be listed: {0}")]
    Io(#[from] io::Error),
}

/// Both channels, open, each with a thread that reads it; dropping this closes them.
pub struct Channels {
    _ebpf: Ebpf,
    tallies: PerCpuArray<MapData, ChannelTally>,
    readers: [Reader; 2],
    is_over: Arc<AtomicBool>,
}

struct Reader {
    name: &'static str,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// What a reader has seen.
#[derive(Debug, Default)]
struct Seen {
    records: u64,
    wake_ups: u64,
    /// From the tracepoint to the reader, in nanoseconds; the latest so many.
    latencies_ns: Vec<u64>,
    next: usize,
}

/// How many latencies are kept.
const LATENCIES: usize = 1 << 16;

impl Seen {
    fn see(&mut self, record: &Arrival, now_ns: u64) {
        self.records += 1;
        let latency_ns = now_ns.saturating_sub(record.time_ns);
        if self.latencies_ns.len() < LATENCIES {
            self.latencies_ns.push(latency_ns);
        } else {
            self.latencies_ns[self.next] = latency_ns;
            self.next = (self.next + 1) % LATENCIES;
        }
    }
}

/// How the channels have fared.
#[derive(Debug, Serialize)]
pub struct ChannelsReport {
    /// The time since the start.
    pub elapsed_ms: u64,
    /// The perf event array, then the ring buffer.
    pub channels: Vec<ChannelLine>,
}

/// How one channel has fared.
#[derive(Debug, Serialize)]
pub struct ChannelLine {
    /// `perf-array` or `ring-buffer`.
    pub channel: &'static str,
    /// How many records there were to send.
    pub records: u64,
    /// How many the reader has got.
    pub delivered: u64,
    /// How many found no room.
    pub lost: u64,
    /// How long sending one took, in nanoseconds.
    pub send_ns: u64,
    /// How often the reader was woken.
    pub wake_ups: u64,
    /// Half of the records came sooner than that, in microseconds.
    pub latency_p50_us: f64,
    /// And all but one in a hundred sooner than that.
    pub latency_p99_us: f64,
}

impl Channels {
    /// Loads and attaches both programs, and starts to read. `pages` is the size of each CPU's perf buffer.
    pub fn start(ring_bytes: u32, pages: usize) -> Result<Self, ChannelsError> {
        let offsets = arrival_offsets()?;
        let mut ebpf = load::load_object(PROBES, &[("ARRIVALS_RING", ring_bytes)])?;
        set(&mut ebpf, "ARRIVAL_OFFSETS", offsets)?;
        let mut perf: PerfEventArray<MapData> = take(&mut ebpf, "ARRIVALS_PERF")?.try_into()?;
        let cpus = online_cpus().map_err(|(_, error)| error)?;
        let buffers = cpus
            .into_iter()
            .map(|cpu| perf.open(cpu, Some(pages)))
            .collect::<Result<Vec<_>, _>>()?;
        for name in ["receive_perf", "receive_ring"] {
            let program: &mut TracePoint = load::program(&mut ebpf, name, "tracepoint")?;
            program.load().map_err(|error| load::explain_program(name, error))?;
        }
        let ring: RingBuf<MapData> = take(&mut ebpf, "ARRIVALS_RING")?.try_into()?;
        let tallies = take(&mut ebpf, "CHANNEL_TALLIES")?.try_into()?;
        for name in ["receive_perf", "receive_ring"] {
            let program: &mut TracePoint = load::program(&mut ebpf, name, "tracepoint")?;
            program
                .attach("net", "netif_receive_skb")
                .map_err(|error| ChannelsError::Attach(cause(error)))?;
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let readers = [
            Reader::start("perf-array", &is_over, |seen, is_over| {
                read_perf(buffers, seen, is_over);
            }),
            Reader::start("ring-buffer", &is_over, |seen, is_over| read_ring(ring, seen, is_over)),
        ];
        Ok(Self {
            _ebpf: ebpf,
            tallies,
            readers,
            is_over,
        })
    }

    /// How they have fared so far.
    pub fn report(&self, elapsed: Duration) -> Result<ChannelsReport, ChannelsError> {
        let mut channels = Vec::new();
        for (index, reader) in self.readers.iter().enumerate() {
            let by_cpu = self.tallies.get(&(index as u32), 0)?;
            let (mut records, mut lost, mut spent_ns) = (0, 0, 0);
            for tally in by_cpu.iter() {
                records += tally.records;
                lost += tally.lost;
                spent_ns += tally.spent_ns;
            }
            let seen = reader.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let mut latencies_ns = seen.latencies_ns.clone();
            latencies_ns.sort_unstable();
            let quantile = |share: usize| {
                let index = latencies_ns.len().saturating_sub(1) * share / 100;
                latencies_ns.get(index).map_or(0.0, |ns| *ns as f64 / 1000.0)
            };
            channels.push(ChannelLine {
                channel: reader.name,
                records,
                delivered: seen.records,
                lost,
                send_ns: spent_ns.checked_div(records).unwrap_or(0),
                wake_ups: seen.wake_ups,
                latency_p50_us: quantile(50),
                latency_p99_us: quantile(99),
            });
        }
        Ok(ChannelsReport {
            elapsed_ms: elapsed.as_millis() as u64,
            channels,
        })
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for reader in &mut self.readers {
            if let Some(thread) = reader.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Reader {
    fn start(
        name: &'static str,
        is_over: &Arc<AtomicBool>,
        read: impl FnOnce(&Mutex<Seen>, &AtomicBool) + Send + 'static,
    ) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let thread = thread::spawn({
            let (seen, is_over) = (Arc::clone(&seen), Arc::clone(is_over));
            move || read(&seen, &is_over)
        });
        Self {
            name,
            seen,
            thread: Some(thread),
        }
    }
}

// ANCHOR: readers
fn read_perf(mut buffers: Vec<PerfEventArrayBuffer<MapData>>, seen: &Mutex<Seen>, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let is_woken = {
            // SAFETY: the buffers own their descriptors, and live longer than this.
            let descriptors = buffers
                .iter()
                .map(|buffer| unsafe { BorrowedFd::borrow_raw(buffer.as_raw_fd()) });
            wait(descriptors)
        };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.wake_ups += u64::from(is_woken);
        for buffer in &mut buffers {
            buffer.for_each(|event| {
                if let PerfEvent::Sample { head, tail } = event {
                    // A sample that goes around the buffer's end comes in two pieces.
                    let bytes = [head, tail].concat();
                    if let Some(arrival) = record_in::<Arrival>(&bytes) {
                        seen.see(&arrival, boot_ns());
                    }
                }
            });
        }
    }
}

fn read_ring(mut ring: RingBuf<MapData>, seen: &Mutex<Seen>, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let is_woken = wait([ring.as_fd()]);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.wake_ups += u64::from(is_woken);
        while let Some(record) = ring.next() {
            if let Some(arrival) = record_in::<Arrival>(&record) {
                seen.see(&arrival, boot_ns());
            }
        }
    }
}
// ANCHOR_END: readers

/// Waits until one of them can be read, or a while; whether one can.
fn wait<'a>(descriptors: impl IntoIterator<Item = BorrowedFd<'a>>) -> bool {
    let mut polled: Vec<PollFd<'_>> = descriptors
        .into_iter()
        .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
        .collect();
    poll(&mut polled, PollTimeout::from(50_u8)).is_ok_and(|ready| ready > 0)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, ChannelsError> {
    ebpf.take_map(name).ok_or(ChannelsError::Missing(name))
}

/// Where the fields lie in the tracepoint's record, as tracefs tells.
fn arrival_offsets() -> Result<ArrivalOffsets, ChannelsError> {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let format = places.into_iter().find_map(|place| {
        let path = PathBuf::from(place).join("events/net/netif_receive_skb/format");
        fs::read_to_string(path).ok()
    });
    let format = format.ok_or(ChannelsError::NoTracefs)?;
    let field = |name| offset_in(&format, name).ok_or(ChannelsError::NoField(name));
    Ok(ArrivalOffsets {
        len: field("len")?,
        name: field("name")?,
    })
}

/// The offset of a field in a `format` file, whose lines are `field:unsigned int len; offset:16; size:4; signed:0;`.
fn offset_in(format: &str, name: &str) -> Option<u32> {
    let line = format.lines().map(str::trim).find(|line| {
        let declaration = line.strip_prefix("field:").and_then(|rest| rest.split(';').next());
        declaration.and_then(|text| text.split_whitespace().last()) == Some(name)
    })?;
    let offset = line.split(';').find_map(|part| part.trim().strip_prefix("offset:"))?;
    offset.parse().ok()
}

impl ChannelLine {
    /// The heads of the columns that [`cells`](Self::cells) stand in.
    pub const HEADS: [&'static str; 7] = [
        "channel",
        "delivered",
        "lost",
        "send ns",
        "wake-ups",
        "p50 µs",
        "p99 µs",
    ];

    /// As a row of a table.
    pub fn cells(&self) -> [String; 7] {
        [
            self.channel.to_owned(),
            grouped(self.delivered),
            grouped(self.lost),
            grouped(self.send_ns),
            grouped(self.wake_ups),
            format!("{:.1}", self.latency_p50_us),
            format!("{:.1}", self.latency_p99_us),
        ]
    }
}

impl Tell for ChannelsReport {
    fn table(&self) -> Vec<String> {
        let mut table = Table::new(&ChannelLine::HEADS);
        for line in &self.channels {
            table.row(line.cells().into());
        }
        let mut lines = vec![
            format!("packets received, told over two channels, {} s", self.elapsed_ms / 1000),
            String::new(),
        ];
        lines.extend(table.lines());
        lines
    }

    fn plain(&self) -> Vec<String> {
        let time = format!("{:>8.1}s", self.elapsed_ms as f64 / 1000.0);
        let lines = self.channels.iter().map(|line| {
            format!(
                "{time}  {:<11}  records={} delivered={} lost={} send_ns={} wake_ups={} p50_us={:.1} p99_us={:.1}",
                line.channel,
                line.records,
                line.delivered,
                line.lost,
                line.send_ns,
                line.wake_ups,
                line.latency_p50_us,
                line.latency_p99_us
            )
        });
        lines.collect()
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that JSON lacks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_from_a_format_file() {
        let format = "name: netif_receive_skb\nformat:\n\tfield:void * skbaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
                      \tfield:unsigned int len;\toffset:16;\tsize:4;\tsigned:0;\n\
                      \tfield:__data_loc char[] name;\toffset:20;\tsize:4;\tsigned:1;\n";
        assert_eq!(offset_in(format, "len"), Some(16));
        assert_eq!(offset_in(format, "name"), Some(20));
        assert_eq!(offset_in(format, "skb"), None);
    }
}
