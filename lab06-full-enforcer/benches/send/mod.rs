//! What a send costs on a real socket, with the enforcer at its cgroup's egress and without.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    time::Instant,
};

use anyhow::{Context as _, Result};
use enforcer_policy::model::Mode;
use lab01_count_packets::text::grouped;
use lab04_cgroup_policy::{
    attach::{CgroupLink, Hook},
    cgroup::Hierarchy,
};
use testbed::{
    Cgroup, Host,
    bpf::{ProgramType, empty_program},
    figures::{self, Figures, Row},
};

use crate::{
    loaded::Loaded,
    packet::FOLLOWED,
    random::Dice,
    shapes::{self, Shape},
};

/// How many calls are made in a round.
const CALLS: u32 = 20_000;

/// Policies of so many rules, with so many flows followed at once.
const CASES: [(usize, u32); 4] = [(10, FOLLOWED), (1_000, FOLLOWED), (1_000, 0), (100_000, FOLLOWED)];

const PORT: u16 = 4000;

/// A socket in a cgroup of its own, where a program is attached, or none.
struct Place {
    name: String,
    socket: UdpSocket,
    _link: Option<CgroupLink>,
    _cgroup: Cgroup,
}

/// A connected UDP socket's send, beside one in a cgroup without programs.
pub fn measure(rounds: u8) -> Result<Figures> {
    let (client, server) = (Host::new("client")?, Host::new("server")?);
    let cable = client.join(&server)?;
    let target = SocketAddr::from((cable.right.ipv4, PORT));
    let _sink = server
        .run(|| UdpSocket::bind(target))
        .context("the sink cannot be opened")?;
    let place = |name: &str, program: Option<BorrowedFd<'_>>| place(&client, target, name, program);
    let empty = empty_program(ProgramType::CgroupSkb)?;
    let bare = place("without", None)?;
    let mut places = vec![place("an empty program at egress", Some(empty.as_fd()))?];
    let mut programs = Vec::new();
    for (rules, flows) in CASES {
        let mut policy = shapes::policy(Shape::Acl, rules, &mut Dice::new(6));
        // The same decision, and no send is refused.
        policy.mode = Mode::Observe;
        let loaded = Loaded::following(flows, &policy)?;
        let mut name = format!("the enforcer, acl, {} rules", grouped(rules as u64));
        if flows == 0 {
            name.push_str(", without flows");
        }
        places.push(place(&name, Some(loaded.egress()))?);
        programs.push(loaded);
    }
    let mut rows: Vec<Row<'_>> = Vec::new();
    for place in &places {
        let bare = &bare.socket;
        rows.push(Row::new(&place.name, move || send(bare), move || send(&place.socket)));
    }
    Ok(figures::measure(&mut rows, rounds)?.a("send").above("no program"))
}

/// The average time of a send.
fn send(socket: &UdpSocket) -> testbed::Result<u32> {
    let start = Instant::now();
    for _ in 0..CALLS {
        let sent = socket.send(&[0; 18]);
        sent.map_err(|error| testbed::Error::system("sending UDP", error))?;
    }
    Ok((start.elapsed().as_nanos() / u128::from(CALLS)) as u32)
}

/// A socket that was born in a cgroup of its own, to which it belongs wherever this process is.
fn place(client: &Host, target: SocketAddr, name: &str, program: Option<BorrowedFd<'_>>) -> Result<Place> {
    let (home, cgroup) = (Cgroup::new("home")?, Cgroup::new("place")?);
    let link = match program {
        None => None,
        Some(program) => {
            let opened = Hierarchy::find()?.open(cgroup.path())?;
            Some(CgroupLink::attach(program, &opened, Hook::Egress)?)
        }
    };
    cgroup.adopt(std::process::id())?;
    let socket = client.run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(target)?;
        std::io::Result::Ok(socket)
    });
    // Back out, or the cgroup could not be removed; this one stays as long as the process does.
    home.adopt(std::process::id())?;
    std::mem::forget(home);
    Ok(Place {
        name: name.to_owned(),
        socket: socket.context("a socket cannot be opened")?,
        _link: link,
        _cgroup: cgroup,
    })
}
