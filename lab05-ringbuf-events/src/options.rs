//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use lab01_count_packets::{
    attach::XdpMode,
    schedule::{parse_duration, parse_interval},
};
use lab02_xdp_firewall::value::{Mac, PortRange, WrittenPrefix};
use lab05_ringbuf_events_common::decision::Outcome;

/// The highest number that a process can have: `PID_MAX_LIMIT` of the kernel's `include/linux/threads.h`.
const MAX_PID: i64 = 4 << 20;

/// Tells what happens on a host, as it happens: what is decided about packets and connections, what processes do, and
/// who talks to whom.
///
/// Lines are JSON, an object each, or for people (--pretty, and on a terminal). Ctrl-C or SIGTERM detaches all programs
/// and ends with the books: how much happened, and how much of it was told, left out, and lost.
#[derive(Parser)]
#[command(version, max_term_width = 100, args_conflicts_with_subcommands = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct Options {
    /// What is done instead.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Decide about the frames that arrive at this interface. Can be given several times.
    #[arg(short, long, value_name = "IF")]
    pub iface: Vec<String>,

    /// Tell of the processes of this cgroup and of those below it, decide about what they send, and count their flows: a
    /// folder, or a path below the root of cgroup v2. The root if not given.
    #[arg(long, value_name = "CGROUP")]
    pub cgroup: Option<PathBuf>,

    /// Leave cgroups alone: no connections, no flows, and the processes of all of them.
    #[arg(long, conflicts_with = "cgroup")]
    pub no_cgroup: bool,

    /// Leave processes out: who comes from whom is not known then.
    #[arg(long, conflicts_with_all = ["pid", "threads"])]
    pub no_processes: bool,

    /// Block what comes from this address or prefix, and what goes to it. Can be given several times.
    #[arg(long, value_name = "PREFIX")]
    pub block_ip: Vec<WrittenPrefix>,

    /// Block what goes to this port or range, here and elsewhere: 80, tcp/80, udp/5000-5999. Can be given several times.
    #[arg(long, value_name = "[PROTO/]PORT[-PORT]")]
    pub block_port: Vec<PortRange>,

    /// Block frames from this MAC address. Can be given several times.
    #[arg(long, value_name = "MAC")]
    pub block_mac: Vec<Mac>,

    /// Allow what comes from this address or prefix, and what goes to it, whatever the default. Can be given several times.
    #[arg(long, value_name = "PREFIX")]
    pub allow_ip: Vec<WrittenPrefix>,

    /// Allow what goes to this port or range, whatever the default. Can be given several times.
    #[arg(long, value_name = "[PROTO/]PORT[-PORT]")]
    pub allow_port: Vec<PortRange>,

    /// What happens to what nothing matches.
    #[arg(long, value_enum, default_value_t = AllowOrBlock::Allow, value_name = "VERDICT")]
    pub default: AllowOrBlock,

    /// What happens to packets that are malformed.
    #[arg(long, value_enum, default_value_t = AllowOrBlock::Block, value_name = "VERDICT")]
    pub malformed: AllowOrBlock,

    /// Block nothing, and tell what would be blocked.
    #[arg(long)]
    pub observe: bool,

    /// Tell every packet that passes, too, and not only connections and what is blocked.
    #[arg(long)]
    pub packets: bool,

    /// Tell one decision in so many, picked at random.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub one_in: u32,

    /// Tell at most so many decisions a second for each hook and reason.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000), value_name = "N")]
    pub events_per_second: Option<u64>,

    /// Show only what this process does, and those that come from it. Can be given several times.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_PID), value_name = "PID")]
    pub pid: Vec<u32>,

    /// Show only what processes of this name do: up to 15 bytes, as the kernel keeps it. Can be given several times.
    #[arg(long, value_parser = parse_comm, value_name = "NAME")]
    pub comm: Vec<String>,

    /// Show only decisions with this verdict, and no processes. Can be given several times.
    #[arg(long, value_enum, value_name = "VERDICT")]
    pub verdict: Vec<VerdictOption>,

    /// Show only what comes from or goes to an address in this prefix, and no processes. Can be given several times.
    #[arg(long, value_name = "PREFIX")]
    pub address: Vec<WrittenPrefix>,

    /// Show threads, too, and not only processes.
    #[arg(long)]
    pub threads: bool,

    /// Show a frame this often: all processes and flows. One is shown at the end in any case.
    #[arg(long, value_parser = parse_interval, value_name = "TIME")]
    pub frames: Option<Duration>,

    /// Lines for people, also where standard output is no terminal.
    #[arg(long, conflicts_with = "json")]
    pub pretty: bool,

    /// Lines of JSON, also on a terminal.
    #[arg(long)]
    pub json: bool,

    /// Stop after this time; without it, tell until Ctrl-C.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,

    /// Where the program on the interface runs: in the driver (native), behind it (generic), or on the card (offload);
    /// auto tries native first and says so if it has to take generic.
    #[arg(long, value_enum, default_value_t = XdpMode::Auto, value_name = "MODE")]
    pub xdp_mode: XdpMode,

    /// How many bytes each ring buffer has: a power of two, with K or M. What finds no room is lost, and counted.
    #[arg(long, default_value = "4M", value_parser = parse_ring_size, value_name = "SIZE")]
    pub ring_size: u32,

    /// How many flows, and how many sockets' owners, are kept; the least recently used go.
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=4_194_304), value_name = "N")]
    pub max_flows: u32,
}

/// What is done instead of telling what happens.
#[derive(Subcommand)]
pub enum Command {
    /// Compare two channels: each packet that the host receives is told over a perf event array and over a ring buffer.
    Channels(ChannelOptions),
    /// Count the messages of DNS and DHCP that pass an interface, by type, on each CPU.
    Messages(MessageOptions),
    /// Tell by which functions processes come to connect over TCP and IPv4. Needs a kernel with kprobes.
    Stacks(StackOptions),
}

/// How channels are compared.
#[derive(Args)]
pub struct ChannelOptions {
    /// How many bytes the ring buffer has, and all perf buffers together about: a power of two, with K or M.
    #[arg(long, default_value = "1M", value_parser = parse_ring_size, value_name = "SIZE")]
    pub ring_size: u32,

    #[command(flatten)]
    pub reports: Reports,
}

/// How messages are counted.
#[derive(Args)]
pub struct MessageOptions {
    /// The interface.
    #[arg(short, long, value_name = "IF")]
    pub iface: String,

    #[command(flatten)]
    pub reports: Reports,
}

/// How stacks are told.
#[derive(Args)]
pub struct StackOptions {
    /// Stop after this time; without it, go on until Ctrl-C.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,

    /// Lines of JSON.
    #[arg(long)]
    pub json: bool,
}

/// When reports come, and how.
#[derive(Args)]
pub struct Reports {
    /// The time between two reports.
    #[arg(long, default_value = "1s", value_parser = parse_interval, value_name = "TIME")]
    pub interval: Duration,

    /// Stop after this time; without it, go on until Ctrl-C.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,

    /// Print every report as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// What is done with what nothing matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AllowOrBlock {
    /// It passes.
    Allow,
    /// It does not.
    Block,
}

/// A verdict to filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerdictOption {
    /// It went on.
    Allow,
    /// It ended.
    Block,
    /// It would have ended (--observe).
    #[value(name = "observe_drop")]
    ObserveDrop,
}

impl From<VerdictOption> for Outcome {
    fn from(verdict: VerdictOption) -> Self {
        match verdict {
            VerdictOption::Allow => Self::Allow,
            VerdictOption::Block => Self::Block,
            VerdictOption::ObserveDrop => Self::ObserveDrop,
        }
    }
}

/// A process's name, as the kernel keeps it (`TASK_COMM_LEN` of `include/linux/sched.h`, a zero at the end among them).
fn parse_comm(text: &str) -> Result<String, String> {
    const MAX_LEN: usize = 15;
    match text.len() {
        0 => Err("a process has a name".into()),
        1..=MAX_LEN => Ok(text.to_owned()),
        _ => Err(format!(
            "the kernel keeps {MAX_LEN} bytes of a name: write {:?}",
            String::from_utf8_lossy(&text.as_bytes()[..MAX_LEN])
        )),
    }
}

/// The size of a ring buffer: a power of two, from a page on.
fn parse_ring_size(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    let number: u32 = digits
        .parse()
        .map_err(|_| "it is a number of bytes, with K or M: 64K, 4M".to_owned())?;
    let bytes = number.checked_mul(unit).filter(|bytes| *bytes <= 1 << 30);
    match bytes {
        Some(bytes) if bytes.is_power_of_two() && bytes >= 1 << 16 => Ok(bytes),
        _ => Err("it must be a power of two from 64K to 1024M".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_put_together_right() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn sizes_of_ring_buffers_are_powers_of_two_within_bounds() {
        assert_eq!(parse_ring_size("64K"), Ok(65_536));
        assert_eq!(parse_ring_size("4M"), Ok(4 << 20));
        assert_eq!(parse_ring_size("65536"), Ok(65_536));
        for bad in ["", "K", "0", "1K", "63K", "3M", "4G", "-4M", "2048M", "99999999999"] {
            assert!(parse_ring_size(bad).is_err(), "{bad}");
        }
    }
}
