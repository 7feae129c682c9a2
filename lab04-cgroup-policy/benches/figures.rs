//! What the policy costs a packet in test runs, and a send and a connect on a real socket: `cargo xtask bench lab04`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result};
use enforcer_policy::{
    Policy,
    model::{Action, Address, DefaultVerdict, Direction, Mode, Order, Prefix, Protocol, Range, Rule},
};
use lab01_count_packets::outcome;
use lab04_cgroup_policy::{
    OBJECT,
    attach::{CgroupLink, Hook},
    cgroup::Hierarchy,
    compile::compile,
    enforcement::Loaded,
};
use testbed::{
    Cgroup, Host,
    bpf::{ProgramType, TestRun, empty_program, test_run},
    figures::{self, Figures, Options, Row},
    packets,
};

fn main() -> ExitCode {
    let about = "Measures what the policy costs a packet, a UDP send and a connect, in nanoseconds";
    let options = Options::from_command_line(about);
    outcome::exit_code(run(&options))
}

const ENTRIES: [(u32, &str); 3] = [(10, "10 entries"), (1_000, "1,000 entries"), (10_000, "10,000 entries")];

fn run(options: &Options) -> Result<()> {
    let network = Network::build()?;
    let loaded = ENTRIES
        .iter()
        .map(|(entries, _)| network.load(*entries))
        .collect::<Result<Vec<_>>>()?;
    let in_test_runs = measure_test_runs(options.rounds, &network, &loaded)?;
    let on_sockets = measure_sockets(options.rounds, &network, &loaded)?;
    options.show(&[
        ("A packet in test runs, above an empty program.", &in_test_runs),
        (
            "A call on a real socket, beside the same call without any program.",
            &on_sockets,
        ),
    ])?;
    Ok(())
}

/// How often a program runs in a round.
const RUNS: u32 = 100_000;
/// How many calls are made in a round.
const CALLS: u32 = 20_000;

fn measure_test_runs(rounds: u8, network: &Network, loaded: &[Loaded]) -> Result<Figures> {
    let empty = empty_program(ProgramType::CgroupSkb)?;
    let IpAddr::V4(target) = network.target.ip() else {
        unreachable!("the target is of IPv4")
    };
    let frame = packets::ethernet()
        .ipv4("10.99.0.1", target)
        .udp(1000, PORT)
        .payload([0; 18])
        .build();
    let other = packets::ethernet()
        .ipv4("10.99.0.1", "192.0.2.1")
        .udp(1000, 9)
        .payload([0; 18])
        .build();
    let programs = loaded
        .iter()
        .map(|loaded| loaded.program(Hook::Egress))
        .collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::new();
    for ((_, name), program) in ENTRIES.iter().zip(&programs) {
        for (what, frame) in [("allowed by a rule", &frame), ("denied by default", &other)] {
            let measure =
                |fd: std::os::fd::BorrowedFd<'_>| Ok(test_run(fd, TestRun::repeated(frame, RUNS))?.duration_ns);
            let (empty, program) = (&empty, program);
            rows.push(Row::new(
                format!("{name}: {what}"),
                move || measure(empty.as_fd()),
                move || measure(program.as_fd()),
            ));
        }
    }
    Ok(figures::measure(&mut rows, rounds)?)
}

/// A socket in a cgroup, where programs are attached.
struct Place {
    name: String,
    socket: UdpSocket,
    _links: Vec<CgroupLink>,
    _cgroup: Cgroup,
}

fn measure_sockets(rounds: u8, network: &Network, loaded: &[Loaded]) -> Result<Figures> {
    let bare = network.place("without", |_| Ok(Vec::new()))?;
    let empty = empty_program(ProgramType::CgroupSkb)?;
    let mut places = vec![network.place("an empty program at egress", |cgroup| {
        Ok(vec![attach_empty(&empty, cgroup)?])
    })?];
    for ((_, name), loaded) in ENTRIES.iter().zip(loaded) {
        places.push(network.place(name, |cgroup| {
            let cgroup = Hierarchy::find()?.open(cgroup.path())?;
            Ok(loaded.attach(&cgroup, &Hook::ALL, None)?)
        })?);
    }
    let target = network.target;
    let send = move |socket: &UdpSocket| timed(|| socket.send_to(&[0; 18], target).map(drop));
    let connect = move |socket: &UdpSocket| timed(|| socket.connect(target));
    let mut rows = Vec::new();
    for place in &places {
        let bare = &bare.socket;
        rows.push(Row::new(
            format!("send, {}", place.name),
            move || send(bare),
            move || send(&place.socket),
        ));
    }
    let mut figures = figures::measure(&mut rows, rounds)?;
    // Connected sockets do not come to `sendmsg4` any more, so from here on they are.
    let mut rows = Vec::new();
    for place in &places {
        let bare = &bare.socket;
        rows.push(Row::new(
            format!("connect, {}", place.name),
            move || connect(bare),
            move || connect(&place.socket),
        ));
    }
    let connects = figures::measure(&mut rows, rounds)?;
    let send = |socket: &UdpSocket| timed(|| socket.send(&[0; 18]).map(drop));
    let mut rows = Vec::new();
    for place in &places {
        let bare = &bare.socket;
        rows.push(Row::new(
            format!("send when connected, {}", place.name),
            move || send(bare),
            move || send(&place.socket),
        ));
    }
    let connected = figures::measure(&mut rows, rounds)?;
    let all = [figures.rows, connects.rows, connected.rows];
    figures.rows = all.into_iter().flatten().collect();
    Ok(figures.a("call").above("no program"))
}

/// The average time of a call.
fn timed(mut call: impl FnMut() -> std::io::Result<()>) -> testbed::Result<u32> {
    let start = Instant::now();
    for _ in 0..CALLS {
        call().map_err(|error| testbed::Error::system("sending UDP", error))?;
    }
    Ok((start.elapsed().as_nanos() / u128::from(CALLS)) as u32)
}

fn attach_empty(empty: &OwnedFd, cgroup: &Cgroup) -> Result<CgroupLink> {
    let cgroup = Hierarchy::find()?.open(cgroup.path())?;
    Ok(CgroupLink::attach(empty.as_fd(), &cgroup, Hook::Egress)?)
}

const PORT: u16 = 4000;

/// A host that sends, and one that gets it and does not answer.
struct Network {
    client: Host,
    target: SocketAddr,
    _sink: UdpSocket,
}

impl Network {
    fn build() -> Result<Self> {
        let (client, server) = (Host::new("client")?, Host::new("server")?);
        let cable = client.join(&server)?;
        let target = SocketAddr::from((cable.right.ipv4, PORT));
        let sink = server
            .run(|| UdpSocket::bind(target))
            .context("the sink cannot be opened")?;
        Ok(Self {
            client,
            target,
            _sink: sink,
        })
    }

    /// The programs with a strict policy of so many entries, one of which allows the target.
    fn load(&self, entries: u32) -> Result<Loaded> {
        let IpAddr::V4(target) = self.target.ip() else {
            unreachable!("the target is of IPv4")
        };
        let addresses = (1..entries).map(|number| Ipv4Addr::from(0x0a00_0000 + number * 257));
        let rules = addresses.chain([target]).enumerate().map(|(number, address)| Rule {
            direction: Some(Direction::Egress),
            protocol: Some(Protocol::UDP),
            destination: vec![Address::Prefix(Prefix::single(address.into()))],
            destination_ports: vec![Range::single(PORT)],
            ..Rule::new(&format!("r{number}"), Action::Allow)
        });
        let mut policy = Policy {
            mode: Mode::Block,
            order: Order::Specific,
            rules: rules.collect(),
            ..Policy::allow_all("bench")
        };
        policy.defaults.egress = DefaultVerdict::Deny;
        let mut loaded = Loaded::load(OBJECT, entries.max(10), None)?;
        let compiled = compile(&policy, entries.max(10)).map_err(|refusals| anyhow::anyhow!("{}", refusals[0]))?;
        loaded.tables.apply(&compiled)?;
        loaded.tables.set_blocking(true)?;
        Ok(loaded)
    }

    /// A socket in a cgroup of its own, with what `attach` attaches there.
    fn place(&self, name: &str, attach: impl FnOnce(&Cgroup) -> Result<Vec<CgroupLink>>) -> Result<Place> {
        let cgroup = Cgroup::new("place")?;
        Ok(Place {
            name: name.to_owned(),
            _links: attach(&cgroup)?,
            socket: cgroup.udp_socket(&self.client)?,
            _cgroup: cgroup,
        })
    }
}
