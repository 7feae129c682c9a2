//! Lab 01 counts packets by source and protocol: there are sources and protocols, and not all are equally busy.

use std::{net::SocketAddr, time::Duration};

use super::{Act, Awaits, Stage};
use crate::{
    End, Host, Injector, Result, Switch,
    packets::{self, Mutate as _},
    traffic::{self, Server},
};

const TIMEOUT: Duration = Duration::from_millis(500);

pub(super) fn set_up() -> Result<Stage> {
    let switch = Switch::new()?;
    let [server, amber, blue, coral, denim] = ["server", "amber", "blue", "coral", "denim"]
        .map(|name| Host::new(name).and_then(|host| switch.connect(&host)));
    let (server, amber, blue, coral, denim) = (server?, amber?, blue?, coral?, denim?);
    let echo = (Server::tcp(&server.host, 7)?, Server::udp(&server.host, 53)?);

    let introduction = introduction(&server, [&amber, &blue, &coral, &denim]);
    let mut acts = vec![
        blue_asks_port_53(&blue, &server),
        amber_talks_tcp(&amber, &server),
        coral_asks_over_ipv6(&coral, &server),
        amber_pings(&amber, &server),
    ];
    acts.extend(denim_sends_tagged_and_broken_frames(&denim, &server)?);
    Ok(Stage {
        server,
        introduction,
        presets: Vec::new(),
        awaits: Awaits::Xdp,
        acts,
        summary: Box::new(|_| None),
        // The switch goes when it is dropped, and the servers do.
        _keep: Box::new((switch, echo)),
    })
}

fn introduction(server: &End, clients: [&End; 4]) -> String {
    let [amber, blue, coral, denim] = clients;
    format!(
        "The host `server` ({}, {} on {}) exists only while this runs. It gets:\n  \
         from amber ({}) pings and TCP,\n  \
         from blue ({}) UDP to port 53, and from coral ({}) the same over IPv6,\n  \
         from denim ({}) frames with one and two VLAN tags, and now and then a broken one.\n\
         A shell on the server, from another terminal, as root: {}",
        server.ipv4,
        server.ipv6,
        server.interface,
        amber.ipv4,
        blue.ipv4,
        coral.ipv6,
        denim.ipv4,
        server.host.enter_hint(),
    )
}

fn blue_asks_port_53(blue: &End, server: &End) -> Act {
    let (host, target) = (blue.host.clone(), SocketAddr::from((server.ipv4, 53)));
    Act {
        per_second: 60,
        times: 120,
        perform: Box::new(move || traffic::udp_exchange(&host, target, 1, TIMEOUT).map(drop)),
    }
}

fn amber_talks_tcp(amber: &End, server: &End) -> Act {
    let (host, target) = (amber.host.clone(), SocketAddr::from((server.ipv4, 7)));
    Act {
        per_second: 5,
        times: 5,
        perform: Box::new(move || traffic::tcp_question(&host, target, 400, TIMEOUT)),
    }
}

fn coral_asks_over_ipv6(coral: &End, server: &End) -> Act {
    let (host, target) = (coral.host.clone(), SocketAddr::from((server.ipv6, 53)));
    Act {
        per_second: 20,
        times: 40,
        perform: Box::new(move || traffic::udp_exchange(&host, target, 1, TIMEOUT).map(drop)),
    }
}

fn amber_pings(amber: &End, server: &End) -> Act {
    let (host, target) = (amber.host.clone(), server.ipv4);
    Act {
        per_second: 4,
        times: 8,
        perform: Box::new(move || traffic::ping(&host, target, 1, TIMEOUT).map(drop)),
    }
}

fn denim_sends_tagged_and_broken_frames(denim: &End, server: &End) -> Result<[Act; 3]> {
    let datagram = |packet: packets::Packet, source: &str| {
        let server = server.ipv4;
        packet.ipv4(source, server).udp(2000, 9).payload([0; 100])
    };
    let to_server = || denim.frame_to(server);
    let tagged = datagram(to_server().vlan(10), "10.10.0.7").build();
    let twice_tagged = datagram(to_server().service_vlan(20).vlan(10), "10.20.0.7").build();
    let cut_off = datagram(to_server(), "192.0.2.66").build().truncate_to(14 + 12);
    Ok([
        sends(denim, tagged, 10, 20)?,
        sends(denim, twice_tagged, 6, 12)?,
        sends(denim, cut_off, 1, 3)?,
    ])
}

fn sends(from: &End, frame: Vec<u8>, per_second: u32, times: u32) -> Result<Act> {
    let injector: Injector = from.host.injector(&from.interface)?;
    Ok(Act {
        per_second,
        times,
        perform: Box::new(move || injector.send(&frame)),
    })
}
