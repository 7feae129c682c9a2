//! What counting costs a packet: `cargo xtask bench lab01`.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use aya::programs::Xdp;
use lab01_count_packets::{OBJECT, counts::Counts, load, outcome};
use testbed::{
    Spread,
    bpf::{ProgramType, TestRun, empty_program, test_run},
    figures::{self, Options, Row},
    packets::{self, Mutate as _, Packet},
};

/// How often each program runs in a round.
const RUNS: u32 = 200_000;
/// How many sources the rows with many sources have.
const MANY_SOURCES: u32 = 10_000;

fn main() -> ExitCode {
    let options = Options::from_command_line("Measures what counting costs a packet, in nanoseconds");
    outcome::exit_code(run(&options))
}

fn run(options: &Options) -> Result<()> {
    let mut ebpf = load::load_object(OBJECT, &[])?;
    let counts = Counts::take(&mut ebpf)?;
    let program: &mut Xdp = load::program(&mut ebpf, "count_packets", "XDP")?;
    program
        .load()
        .map_err(|error| load::explain_program("count_packets", error))?;
    let program = program.fd()?.as_fd();
    let empty = empty_program(ProgramType::Xdp)?;

    let kinds = kinds()?;
    let mut rows: Vec<Row<'_>> = kinds
        .iter()
        .map(|kind| Row::new(kind.name, || kind.measure(empty.as_fd()), || kind.measure(program)))
        .collect();
    let figures = figures::measure(&mut rows, options.rounds)?;

    // Each row ran once more than it was measured, to warm up.
    let expected = u64::from(RUNS) * kinds.len() as u64 * (u64::from(options.rounds) + 1);
    let counted = counts.snapshot()?.total().packets;
    ensure!(
        counted == expected,
        "{counted} packets were counted of {expected}: these figures are of something else"
    );

    options.show(&[("", &figures)])?;
    Ok(())
}

/// A kind of packet.
struct Kind {
    name: &'static str,
    frame: Vec<u8>,
    /// Where many sources are to be: what writes them into the packet.
    spread: Option<Spread>,
}

impl Kind {
    /// The average time of a run in nanoseconds.
    fn measure(&self, program: BorrowedFd<'_>) -> testbed::Result<u32> {
        let first = match &self.spread {
            None => program,
            Some(spread) => {
                spread.before(program)?;
                spread.program()
            }
        };
        Ok(test_run(first, TestRun::repeated(&self.frame, RUNS))?.duration_ns)
    }
}

fn kinds() -> Result<Vec<Kind>> {
    let v4 = |packet: Packet| {
        packet
            .ipv4("192.0.2.7", "192.0.2.1")
            .udp(1000, 53)
            .payload([0; 18])
            .build()
    };
    let v6 = |packet: Packet| {
        packet
            .ipv6("2001:db8::7", "2001:db8::1")
            .udp(1000, 53)
            .payload([0; 18])
            .build()
    };
    let plain = packets::ethernet;
    let many_v4: Vec<[u8; 4]> = (0..MANY_SOURCES)
        .map(|host| Ipv4Addr::from(0x0a00_0000 | host).octets())
        .collect();
    let many_v6: Vec<[u8; 16]> = (0..MANY_SOURCES)
        .map(|host| Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(host)).octets())
        .collect();
    let kind = |name, frame, spread| Kind { name, frame, spread };
    Ok(vec![
        kind("IPv4, one source", v4(plain()), None),
        kind(
            "IPv4, 10,000 sources in random order",
            v4(plain()),
            Some(Spread::over_ipv4(&many_v4)?),
        ),
        kind("IPv6, one source", v6(plain()), None),
        kind(
            "IPv6, 10,000 sources in random order",
            v6(plain()),
            Some(Spread::over_ipv6(&many_v6)?),
        ),
        kind("IPv4 behind a VLAN tag", v4(plain().vlan(10)), None),
        kind("IPv4 behind two VLAN tags", v4(plain().service_vlan(20).vlan(10)), None),
        kind("ARP", plain().arp_request("192.0.2.7", "192.0.2.1").build(), None),
        kind(
            "malformed (IPv4 total length)",
            v4(plain()).with_bytes(16, &[0xff; 2]),
            None,
        ),
    ])
}
