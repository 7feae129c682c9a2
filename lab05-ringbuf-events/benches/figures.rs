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
use clap::Parser;
use lab01_count_packets::{load, outcome, output::Tell as _};
use lab02_xdp_firewall::policy::Policy;
use lab05_ringbuf_events::{
    channels::{Channels, ChannelsReport},
    clock::boot_ns,
    reader::record_in,
    watch::{Sizes, Watch},
};
use lab05_ringbuf_events_common::decision::{Decision, Settings};
use serde::Serialize;
use testbed::{
    Host,
    bpf::{ProgramType, TestRun, empty_program, test_run},
    packets, stay_on_cpu,
    traffic::Flood,
};

/// Measures how many records a second come to user space through the ring buffer, how many are lost, what a record costs,
/// and how long it takes.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Options {
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,

    /// How many rounds to take the median of.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..), value_name = "N")]
    rounds: u8,

    /// How many records each CPU makes in a round.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    records: u32,

    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
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
        ("1 CPU, ring of 1 MiB", 1, 1 << 20),
        ("2 CPUs, ring of 16 MiB", 2, 1 << 24),
    ] {
        if producers > cpus {
            continue;
        }
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            rounds.push(round(producers, ring_bytes, options.records).await?);
        }
        rounds.sort_by(|one, other| one.delivered_per_second.total_cmp(&other.delivered_per_second));
        let median = rounds.swap_remove(rounds.len() / 2);
        rows.push((name, median));
    }
    let beside = channels();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        if let Ok(report) = beside {
            println!("{}", report.json());
        }
        return Ok(());
    }
    println!(
        "Medians of {} rounds of {} records a CPU, {cpus} cores. A record is {} bytes.\n",
        options.rounds,
        options.records,
        size_of::<Decision>()
    );
    println!(
        "{:<24}  {:>12}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}",
        "", "delivered/s", "lost", "make ns", "read ns", "p50 µs", "p99 µs", "wake-ups"
    );
    for (name, round) in rows {
        println!(
            "{name:<24}  {:>12.0}  {:>7.2} %  {:>9.1}  {:>9.1}  {:>9.1}  {:>9.1}  {:>9}",
            round.delivered_per_second,
            round.lost_share * 100.0,
            round.make_ns,
            round.read_ns,
            round.latency_p50_us,
            round.latency_p99_us,
            round.wake_ups,
        );
    }
    println!(
        "\nThe tracepoint net:netif_receive_skb, with {FLOOD} packets across a veth pair, over both channels at once.\n"
    );
    match beside {
        Ok(report) => println!("{}", report.table().join("\n")),
        Err(error) => println!("left out: {error:#}"),
    }
    Ok(())
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
    delivered_per_second: f64,
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
        delivered_per_second: read as f64 / (last - start).as_secs_f64(),
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
