//! What a send and a connect cost on a real socket, with the enforcer at its cgroup and without.

use std::{
    io,
    net::{SocketAddrV4, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_policy::{
    Policy,
    model::{Direction, Mode},
};
use lab01_count_packets::text::grouped;
use lab04_cgroup_policy::{
    attach::{CgroupLink, Hook},
    cgroup::Hierarchy,
};
use nix::{
    errno::Errno,
    sys::socket::{SockaddrIn, connect},
};
use testbed::{
    Cgroup, Error, Host,
    bpf::{ProgramType, empty_program},
    figures::{self, Figures, Row},
};

use crate::{
    loaded::Loaded,
    packet::FOLLOWED,
    random::Dice,
    shapes::{self, Shape},
    timed::quartile_ns,
};

/// How many calls are timed at once.
const CALLS: u32 = 500;

/// A connected UDP socket's send, beside one in a cgroup without programs.
pub fn sends(rounds: u8) -> Result<Figures> {
    /// Policies of so many rules, with so many flows followed at once.
    const CASES: [(usize, u32); 4] = [(10, FOLLOWED), (1_000, FOLLOWED), (1_000, 0), (100_000, FOLLOWED)];

    let (client, server) = (Host::new("client")?, Host::new("server")?);
    let target = SocketAddrV4::new(client.join(&server)?.right.ipv4, 4000);
    let _sink = server
        .run(|| UdpSocket::bind(target))
        .context("the sink cannot be opened")?;
    let connected = |cgroup: &Cgroup| {
        let socket = cgroup.udp_socket(&client)?;
        socket.connect(target).context("a socket cannot be connected")?;
        Ok(socket)
    };
    let bare = Place::new("no program", None, connected)?;
    let empty = empty_program(ProgramType::CgroupSkb)?;
    let at_egress = (empty.as_fd(), Hook::Egress);
    let mut places = vec![Place::new("an empty program at egress", Some(at_egress), connected)?];
    let mut programs = Vec::new();
    for (rules, flows) in CASES {
        let mut policy = shapes::policy(Shape::Acl, rules, &mut Dice::new(6));
        // The same decision, and no send is refused.
        policy.mode = Mode::Observe;
        let loaded = Loaded::following(flows, &policy)?;
        let mut name = named(rules);
        if flows == 0 {
            name.push_str(", without flows");
        }
        let at_egress = (loaded.egress(), Hook::Egress);
        places.push(Place::new(&name, Some(at_egress), connected)?);
        programs.push(loaded);
    }
    let send = |socket: &UdpSocket| socket.send(&[0; 18]).map(drop);
    let figures = figures::measure(&mut rows(&places, &bare, &send), rounds)?;
    Ok(figures.a("send").above("no program"))
}

/// A TCP socket's connect, beside one in a cgroup without programs.
///
/// No route leads where it is to go, which the kernel finds out right after the program has been asked: a connection that comes
/// about takes so long that nobody would see the program.
pub fn connects(rounds: u8) -> Result<Figures> {
    /// Policies of so many rules.
    const CASES: [usize; 3] = [10, 1_000, 100_000];

    let client = Host::new("client")?;
    let unconnected = |cgroup: &Cgroup| Ok(cgroup.tcp_socket(&client)?);
    let bare = Place::new("no program", None, unconnected)?;
    let empty = empty_program(ProgramType::CgroupConnect4)?;
    let at_connect = (empty.as_fd(), Hook::Connect4);
    let mut places = vec![Place::new("an empty program", Some(at_connect), unconnected)?];
    let mut programs = Vec::new();
    for rules in CASES {
        let loaded = Loaded::with(&about_calls(rules))?;
        ensure!(loaded.refuses_calls(), "{rules} rules are not asked about calls");
        let at_connect = (loaded.connect4(), Hook::Connect4);
        places.push(Place::new(&named(rules), Some(at_connect), unconnected)?);
        programs.push(loaded);
    }
    let nowhere = SockaddrIn::new(198, 18, 0, 1, 443);
    let connect = |socket: &OwnedFd| match connect(socket.as_raw_fd(), &nowhere) {
        Err(Errno::ENETUNREACH) => Ok(()),
        Err(errno) => Err(errno.into()),
        Ok(()) => Err(io::Error::other("somebody is there")),
    };
    let figures = figures::measure(&mut rows(&places, &bare, &connect), rounds)?;
    Ok(figures.a("connect").above("no program"))
}

/// Rules of what goes out, which ask for nothing that is not known of a call: all of them are asked about calls.
fn about_calls(rules: usize) -> Policy {
    let mut policy = shapes::policy(Shape::Acl, rules, &mut Dice::new(6));
    for rule in &mut policy.rules {
        rule.direction = Some(Direction::Egress);
        rule.source.clear();
        rule.source_ports.clear();
    }
    policy
}

fn named(rules: usize) -> String {
    format!("the enforcer, acl, {} rules", grouped(rules as u64))
}

/// A socket in a cgroup of its own, where a program is attached, or none.
struct Place<S> {
    name: String,
    socket: S,
    _link: Option<CgroupLink>,
    _cgroup: Cgroup,
}

type Call<'a, S> = dyn Fn(&S) -> io::Result<()> + Sync + 'a;

/// A row for each place: what a call takes there, beside one without programs.
fn rows<'a, S: Sync>(places: &'a [Place<S>], bare: &'a Place<S>, call: &'a Call<'_, S>) -> Vec<Row<'a>> {
    let row = |place: &'a Place<S>| Row::new(&place.name, || bare.time(call), || place.time(call));
    places.iter().map(row).collect()
}

impl<S: Sync> Place<S> {
    fn new(
        name: &str,
        program: Option<(BorrowedFd<'_>, Hook)>,
        open: impl FnOnce(&Cgroup) -> Result<S>,
    ) -> Result<Self> {
        let cgroup = Cgroup::new("place")?;
        let link = match program {
            None => None,
            Some((program, hook)) => {
                let opened = Hierarchy::find()?.open(cgroup.path())?;
                Some(CgroupLink::attach(program, &opened, hook)?)
            }
        };
        Ok(Self {
            name: name.to_owned(),
            socket: open(&cgroup)?,
            _link: link,
            _cgroup: cgroup,
        })
    }

    /// Nanoseconds a call.
    fn time(&self, call: &Call<'_, S>) -> testbed::Result<u32> {
        quartile_ns(CALLS, || {
            for _ in 0..CALLS {
                call(&self.socket).map_err(|error| Error::system("calling a socket", error))?;
            }
            Ok(())
        })
    }
}
