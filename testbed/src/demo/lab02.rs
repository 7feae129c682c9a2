//! Lab 02 is a firewall: somebody is blocked, somebody knocks at a closed port, somebody sends too much, somebody sends
//! fragments and broken frames, and one host does nothing wrong and shall not notice any of it.

use std::{net::SocketAddr, time::Duration};

use super::{
    Act, Awaits, Stage, Traffic,
    pings::{self, Pings},
    presets::Preset,
};
use crate::{
    End, Host, Result, Switch,
    packets::{self, Mutate as _},
    traffic::{self, Server},
};

const TIMEOUT: Duration = Duration::from_millis(500);

/// The port that is knocked at.
const TELNET: u16 = 23;

/// Frames that are sent at once in the flood, and how often a second that is. Few and often, so that the flood takes its
/// source's tokens as they come and leaves none between.
const BURST: u32 = 5;
const BURSTS_PER_SECOND: u32 = 400;

pub(super) fn set_up(traffic: Traffic) -> Result<Stage> {
    let switch = Switch::new()?;
    let [server, amber, blue, coral, denim, ecru] = ["server", "amber", "blue", "coral", "denim", "ecru"]
        .map(|name| Host::new(name).and_then(|host| switch.connect(&host)));
    let (server, amber, blue) = (server?, amber?, blue?);
    let (coral, denim, ecru) = (coral?, denim?, ecru?);
    let servers = (
        Server::tcp(&server.host, 7)?,
        Server::tcp(&server.host, TELNET)?,
        Server::udp(&server.host, 53)?,
    );

    let pings = [
        Pings::of(&amber, amber.ipv4),
        Pings::of(&blue, blue.ipv4),
        Pings::of(&coral, coral.ipv6),
        Pings::of(&denim, denim.ipv4),
        Pings::of(&ecru, ecru.ipv4),
    ];
    let [of_amber, of_blue, of_coral, of_denim, of_ecru] = &pings;
    let mut acts = vec![
        of_amber.act(&amber, &server, 2, 8),
        asks_port_53(&amber, &server),
        talks_tcp(&amber, &server),
        of_blue.act(&blue, &server, 4, 3),
        of_coral.act(&coral, &server, 2, 4),
        knocks(&coral, &server),
        floods(&denim, &server)?,
        // After the flood, so that it meets the limit too where there is one.
        of_denim.act(&denim, &server, 2, 1),
        of_ecru.act(&ecru, &server, 2, 2),
    ];
    acts.extend(sends_fragments_and_broken_frames(&ecru, &server)?);

    Ok(Stage {
        introduction: introduction(&server, [&amber, &blue, &coral, &denim, &ecru]),
        presets: presets(traffic, &blue),
        awaits: Awaits::Xdp,
        acts,
        summary: Box::new(move |_| pings::summary(&pings)),
        server,
        // The switch goes when it is dropped, and the servers do.
        _keep: Box::new((switch, servers)),
    })
}

fn introduction(server: &End, [amber, blue, coral, denim, ecru]: [&End; 5]) -> String {
    format!(
        "The host `server` ({}, {} on {}) exists only while this runs. To it send:\n  \
         amber  {:<15}  pings, questions to UDP port 53, a little TCP: what is to pass\n  \
         blue   {:<15}  pings; so can you: sudo {} ping {}\n  \
         coral  {:<15}  pings, and knocks at TCP port {TELNET}\n  \
         denim  {:<15}  pings, and a flood of {} packets a second\n  \
         ecru   {:<15}  pings, fragments, and now and then a broken frame",
        server.ipv4,
        server.ipv6,
        server.interface,
        amber.ipv4,
        blue.ipv4,
        blue.host.enter_hint(),
        server.ipv4,
        coral.ipv6,
        denim.ipv4,
        BURST * BURSTS_PER_SECOND,
        ecru.ipv4,
    )
}

/// What of lab02's options makes rules.
const RULES: [&str; 7] = [
    "--block",
    "--allow",
    "--default",
    "--rate-limit",
    "--burst",
    "--fragments",
    "--malformed",
];

fn presets(traffic: Traffic, blue: &End) -> Vec<Preset> {
    // How much of a flood passes at a rate depends on how long it takes; so slow a one does not let a packet pass in the
    // time of a fixed run, beyond the burst.
    let limit = match traffic {
        Traffic::Lively => "--rate-limit 200",
        Traffic::Fixed => "--rate-limit 8bit --burst 20000",
    };
    let rules = format!("--block-ip {} --block-port tcp/{TELNET} {limit}", blue.ipv4);
    let rules = Preset {
        kind: &RULES,
        args: rules.split(' ').map(str::to_owned).collect(),
        note: format!(
            "You gave no rules, so these hold: {rules}\n\
             Expect drops by address (blue), port (coral), rate (denim), and as malformed (ecru)."
        ),
    };
    let interval = Preset {
        kind: &["--stats-interval"],
        args: vec!["--stats-interval".to_owned(), "1s".to_owned()],
        note: String::new(),
    };
    vec![rules, interval]
}

fn asks_port_53(from: &End, server: &End) -> Act {
    let (host, target) = (from.host.clone(), SocketAddr::from((server.ipv4, 53)));
    Act {
        per_second: 20,
        times: 40,
        perform: Box::new(move || traffic::udp_exchange(&host, target, 1, TIMEOUT).map(drop)),
    }
}

fn talks_tcp(from: &End, server: &End) -> Act {
    let (host, target) = (from.host.clone(), SocketAddr::from((server.ipv4, 7)));
    Act {
        per_second: 2,
        times: 5,
        perform: Box::new(move || traffic::tcp_question(&host, target, 400, TIMEOUT)),
    }
}

fn knocks(from: &End, server: &End) -> Act {
    let (host, target) = (from.host.clone(), SocketAddr::from((server.ipv6, TELNET)));
    Act {
        per_second: 4,
        times: 2,
        // Given up before the kernel tries a second time, so that one knock is one packet.
        perform: Box::new(move || traffic::try_connect(&host, target, TIMEOUT).map(drop)),
    }
}

fn floods(from: &End, server: &End) -> Result<Act> {
    let frame = from.frame_to(server).ipv4(from.ipv4, server.ipv4).udp(2000, 9);
    sends(
        from,
        vec![frame.payload([0; 18]).build(); BURST as usize],
        BURSTS_PER_SECOND,
        200,
    )
}

fn sends_fragments_and_broken_frames(from: &End, server: &End) -> Result<[Act; 3]> {
    let packet = || from.frame_to(server).ipv4(from.ipv4, server.ipv4);
    let datagram = packet().udp(2000, 9).payload([0; 3000]).build();
    let cut_off = packet().udp(2000, 9).build().truncate_to(14 + 12);
    // Eight bytes of TCP: the ports, and not the flags, which would come in a second fragment (RFC 1858).
    let [high, low] = TELNET.to_be_bytes();
    let tiny = packet()
        .first_fragment(23)
        .protocol(6)
        .payload([7, 208, high, low, 0, 0, 0, 0]);
    Ok([
        sends(from, packets::split(&datagram, 1500, 1), 2, 5)?,
        sends(from, vec![cut_off], 1, 3)?,
        sends(from, vec![tiny.build()], 1, 2)?,
    ])
}

fn sends(from: &End, frames: Vec<Vec<u8>>, per_second: u32, times: u32) -> Result<Act> {
    let injector = from.host.injector(&from.interface)?;
    Ok(Act {
        per_second,
        times,
        perform: Box::new(move || injector.send_all(&frames).map(drop)),
    })
}
