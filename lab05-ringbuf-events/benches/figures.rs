//! How many records a second come to user space, and at what cost: `cargo xtask bench lab05`.
//!
//! One CPU, or two, run the firewall over and over on one frame, each run making a record, while this program reads. Beside
//! it the same record goes over a perf event array.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::programs::Xdp;
use lab01_count_packets::{load, outcome, output::Tell as _, text::grouped};
use lab02_xdp_firewall::policy::Policy;
use lab05_ringbuf_events::{
    channels::{ChannelLine, Channels, ChannelsReport},
    clock::boot_ns,
    reader::record_in,
    watch::{Sizes, Watch},
};
use lab05_ringbuf_events_common::decision::{Decision, Settings};
use serde::Serialize;
use testbed::{
    Host,
    bpf::{ProgramType, TestRun, empty_program, test_run},
    figures::{self, Options, Shown, markdown_table},
    packets, see_tracefs, stay_on_cpu,
    traffic::Flood,
};

const ABOUT: &str = "Measures how many records a second come to user space through the ring buffer, how many are \
                     lost, what a record costs, and how long it takes";

/// How many records each CPU makes in a round.
const RECORDS: u32 = 2_000_000;

fn main() -> ExitCode {
    let options = Options::from_command_line(ABOUT);
    // Before there are threads, which would stay where they are.
    if let Err(error) = see_tracefs() {
        eprintln!("error: tracefs cannot be mounted for this program: {error}; it needs root");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    outcome::exit_code(
        runtime
            .context("the runtime cannot be started")
            .and_then(|runtime| runtime.block_on(run(&options))),
    )
}

async fn run(options: &Options) -> Result<()> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let mut rows = Vec::new();
    for (name, producers, ring_bytes) in [
        ("1 CPU, ring of 16 MiB", 1, 1 << 24),
        ("1 CPU, ring of 4 MiB", 1, 1 << 22),
        ("1 CPU, ring of 1 MiB", 1, 1 << 20),
        ("2 CPUs, ring of 16 MiB", 2, 1 << 24),
    ] {
        if producers > cpus {
            continue;
        }
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            rounds.push(round(producers, ring_bytes, RECORDS).await?);
        }
        rounds.sort_by_key(|round| round.delivered_per_second);
        rows.push((name, rounds.swap_remove(rounds.len() / 2)));
    }
    let delivery = Delivery {
        machine: figures::machine(),
        rounds: options.rounds,
        records: RECORDS,
        record_bytes: size_of::<Decision>(),
        rows,
    };
    // Apart from this runtime, as hosts are made by one of their own.
    let beside = thread::spawn(channels).join();
    let beside = Beside(beside.map_err(|_| anyhow::anyhow!("the comparison of the channels panicked"))??);
    options.show(&[
        ("Records delivered to user space, while it reads.", &delivery),
        (
            "Two channels side by side, the tracepoint `net:netif_receive_skb`, 300,000 packets across a veth pair.",
            &beside,
        ),
    ])?;
    Ok(())
}

/// How many records come to user space: the round with the median rate, of each way to make them.
#[derive(Serialize)]
struct Delivery {
    machine: String,
    rounds: u8,
    records: u32,
    record_bytes: usize,
    rows: Vec<(&'static str, Round)>,
}

impl Delivery {
    fn note(&self) -> String {
        format!(
            "The median of {} rounds of {} records a CPU, {} bytes each, on {}.",
            self.rounds,
            grouped(u64::from(self.records)),
            self.record_bytes,
            self.machine
        )
    }

    fn cells(&self) -> impl Iterator<Item = [String; 8]> {
        self.rows.iter().map(|(name, round)| {
            [
                (*name).to_owned(),
                grouped(round.delivered_per_second),
                format!("{:.2} %", round.lost_share * 100.0),
                format!("{:.1}", round.make_ns),
                format!("{:.1}", round.read_ns),
                format!("{:.1}", round.latency_p50_us),
                format!("{:.1}", round.latency_p99_us),
                grouped(round.wake_ups),
            ]
        })
    }
}

const DELIVERY_HEADS: [&str; 8] = [
    "made by",
    "delivered/s",
    "lost",
    "make ns",
    "read ns",
    "p50 µs",
    "p99 µs",
    "wake-ups",
];

impl Shown for Delivery {
    fn table(&self) -> String {
        let line = |[name, numbers @ ..]: [String; 8]| {
            let numbers = numbers.map(|number| format!("{number:>11}")).join("  ");
            format!("{name:<23}  {numbers}\n")
        };
        let lines: String = std::iter::once(DELIVERY_HEADS.map(str::to_owned))
            .chain(self.cells())
            .map(line)
            .collect();
        format!("{}\n\n{lines}", self.note())
    }

    fn markdown(&self) -> String {
        format!("{}\n\n{}", self.note(), markdown_table(&DELIVERY_HEADS, self.cells()))
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("figures have no map with keys that JSON lacks")
    }
}

/// The perf event array beside the ring buffer, both told of the same packets.
struct Beside(ChannelsReport);

impl Shown for Beside {
    fn table(&self) -> String {
        format!("{}\n", self.0.table().join("\n"))
    }

    fn markdown(&self) -> String {
        markdown_table(&ChannelLine::HEADS, self.0.channels.iter().map(ChannelLine::cells))
    }

    fn json(&self) -> String {
        self.0.json()
    }
}

/// How many packets are sent to compare channels.
const FLOOD: u64 = 300_000;

/// The perf event array beside the ring buffer.
fn channels() -> Result<ChannelsReport> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    let start = Instant::now();
    let channels = Channels::start(1 << 20, 128)?;
    Flood::new(&link.left, &link.right).count(FLOOD).send()?;
    thread::sleep(Duration::from_millis(200));
    Ok(channels.report(start.elapsed())?)
}

/// What a round has shown.
#[derive(Debug, Serialize)]
struct Round {
    /// Records that the reader got, by the time from the first run to the last record.
    delivered_per_second: u64,
    /// The share of records that found no room.
    lost_share: f64,
    /// What a run that makes a record costs above an empty program.
    make_ns: f64,
    /// What reading a record costs the reader's CPU, kernel included.
    read_ns: f64,
    latency_p50_us: f64,
    latency_p99_us: f64,
    /// How often the reader came back to the ring buffer.
    wake_ups: u64,
}

async fn round(producers: usize, ring_bytes: u32, records: u32) -> Result<Round> {
    let sizes = Sizes {
        max_entries: 16,
        ring_bytes,
        max_flows: 64,
    };
    let settings = Settings {
        tell_packets: 1,
        ..Settings::DEFAULT
    };
    let mut watch = Watch::load(sizes, &Policy::NO_RULES, settings)?;
    let program: &mut Xdp = load::program(watch.ebpf(), "firewall", "XDP")?;
    let program = program.fd()?.as_fd().try_clone_to_owned()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let spent_ns = Arc::new(AtomicU64::new(0));
    let empty = empty_program(ProgramType::Xdp)?;
    let floor_ns = test_run(empty.as_fd(), TestRun::repeated(&frame(), 1_000_000))?.duration_ns;

    let start = Instant::now();
    let cpu_start = thread_cpu_time();
    let makers = produce(producers, &program, records, &spent_ns, &is_over)?;
    let (mut read, mut wake_ups) = (0_u64, 0_u64);
    let mut latencies_ns = Vec::with_capacity(1 << 20);
    let mut last = start;
    loop {
        let over = is_over.load(Ordering::Acquire);
        let mut now_ns = 0;
        let mut in_batch = 0_u64;
        let mut each = |bytes: &[u8]| {
            // Asking the time costs more than reading a record: once in 64 is enough.
            if in_batch.is_multiple_of(64)
                && let Some(record) = record_in::<Decision>(bytes)
            {
                now_ns = boot_ns();
                if latencies_ns.len() < latencies_ns.capacity() {
                    latencies_ns.push(now_ns.saturating_sub(record.time_ns));
                }
            }
            in_batch += 1;
        };
        let got = if over {
            watch.decisions.read_now(&mut each)
        } else {
            tokio::time::timeout(Duration::from_millis(100), watch.decisions.read(&mut each))
                .await
                .unwrap_or(Ok(0))?
        };
        let _ = now_ns;
        read += got as u64;
        wake_ups += 1;
        if got > 0 {
            last = Instant::now();
        }
        if over {
            break;
        }
    }
    let cpu_ns = thread_cpu_time().saturating_sub(cpu_start);
    for maker in makers {
        drop(maker.join());
    }
    let line = watch.books.balance()?.decisions;
    anyhow::ensure!(read == line.emitted, "{read} records were read of {line:?}");
    latencies_ns.sort_unstable();
    let quantile = |share: usize| {
        let index = latencies_ns.len().saturating_sub(1) * share / 100;
        latencies_ns.get(index).map_or(0.0, |ns| *ns as f64 / 1000.0)
    };
    let runs = f64::from(records) * producers as f64;
    Ok(Round {
        delivered_per_second: u64::try_from(u128::from(read) * 1_000_000_000 / (last - start).as_nanos().max(1))?,
        lost_share: line.lost as f64 / line.happened as f64,
        make_ns: spent_ns.load(Ordering::Relaxed) as f64 / runs - f64::from(floor_ns),
        read_ns: cpu_ns.as_nanos() as f64 / read.max(1) as f64,
        latency_p50_us: quantile(50),
        latency_p99_us: quantile(99),
        wake_ups,
    })
}

fn frame() -> Vec<u8> {
    packets::ethernet()
        .ipv4("192.0.2.1", "192.0.2.2")
        .udp(1000, 53)
        .payload([0; 18])
        .build()
}

/// Threads that run the program, each on a CPU of its own; the last one that ends says so.
fn produce(
    producers: usize,
    program: &OwnedFd,
    records: u32,
    spent_ns: &Arc<AtomicU64>,
    is_over: &Arc<AtomicBool>,
) -> Result<Vec<thread::JoinHandle<()>>> {
    let running = Arc::new(AtomicU64::new(producers as u64));
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let mut makers = Vec::new();
    for producer in 0..producers {
        let program = program.try_clone()?;
        let (spent_ns, is_over, running) = (Arc::clone(spent_ns), Arc::clone(is_over), Arc::clone(&running));
        makers.push(thread::spawn(move || {
            // The last CPU first: the reader is likely on the first.
            let _ = stay_on_cpu(cpus - 1 - producer);
            if let Ok(outcome) = test_run(program.as_fd(), TestRun::repeated(&frame(), records)) {
                spent_ns.fetch_add(u64::from(outcome.duration_ns) * u64::from(records), Ordering::Relaxed);
            }
            if running.fetch_sub(1, Ordering::AcqRel) == 1 {
                is_over.store(true, Ordering::Release);
            }
        }));
    }
    Ok(makers)
}

/// How long this thread has run.
fn thread_cpu_time() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
