//! What a web server costs a machine with the enforcer and without: requests by HTTP over a veth pair, from host to host.
//!
//! Client and server are threads that stay on one CPU, and so does what the kernel does for them. One of the two can always
//! go on, so the CPU is never idle, and the time that a request takes is the CPU time of all that happens for it.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::Path,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use enforcer_policy::{
    Policy,
    model::{Action, Direction, Mode, Per, Protocol, Range, Rate, RateLimit, Rule},
    read::read_path,
};
use lab04_cgroup_policy::{
    attach::{CgroupLink, Hook},
    cgroup::Hierarchy,
};
use nix::sys::socket::{Backlog, SockaddrIn, bind, listen};
use testbed::{
    Cgroup, Error, Host, Link,
    bpf::attach_tcx,
    figures::{self, Figures, Row},
    stay_on_cpu,
};

use crate::{
    loaded::Loaded,
    packet::FOLLOWED,
    random::Dice,
    shapes::{self, Shape},
    timed::quartile_ns,
};

/// How many requests each connection carries.
const REQUESTS: u32 = 50;

/// The length of an answer's body, some six full packets.
const BODY: usize = 8 << 10;

const PORT: u16 = 80;

/// Client and server.
struct Site {
    client: Host,
    link: Link,
    cgroup: lab04_cgroup_policy::cgroup::Cgroup,
    _cgroup: Cgroup,
}

/// With the policy of the guide's web server, and with ten thousand rules in front of the one that lets the requests in,
/// beside no program.
pub fn measure(rounds: u8) -> Result<Figures> {
    let site = Site::build()?;
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/web-server.yaml"));
    let mut web_server = read_path(path).policy.context("the example cannot be read")?;
    web_server.mode = Mode::Block;
    let web = web_server.rules.iter_mut().find(|rule| rule.name == "web");
    // One client asks as fast as it can; the bucket is to count, and not to stop it.
    web.context("the example has no rule web")?.action = Action::RateLimit(RateLimit {
        rate: Rate::Packets(1_000_000_000),
        burst: 1_000_000,
        per: Per::Source,
    });
    let programs = [
        ("web-server.yaml", Loaded::following(FOLLOWED, &web_server)?),
        ("acl, 10,000 rules", Loaded::following(FOLLOWED, &many_rules())?),
    ];
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (name, loaded) in &programs {
        let site = &site;
        rows.push(Row::new(*name, || site.request(None), || site.request(Some(loaded))));
    }
    let figures = figures::measure(&mut rows, rounds)?;
    drop(rows);
    Ok(figures.a("request").above("no program"))
}

fn many_rules() -> Policy {
    let mut policy = shapes::policy(Shape::Acl, 9_999, &mut Dice::new(6));
    for rule in &mut policy.rules {
        rule.action = Action::Allow;
    }
    let mut web = Rule::new("web", Action::Allow);
    web.direction = Some(Direction::Ingress);
    web.protocol = Some(Protocol::TCP);
    web.destination_ports = vec![Range::single(PORT)];
    policy.rules.push(web);
    policy
}

impl Site {
    fn build() -> Result<Self> {
        let (client, server) = (Host::new("client")?, Host::new("server")?);
        let link = client.join(&server)?;
        let cgroup = Cgroup::new("served")?;
        let opened = Hierarchy::find()?.open(cgroup.path())?;
        let listener = listener(&cgroup, &server)?;
        // It ends with the process.
        thread::spawn(move || serve(&listener));
        let site = Self {
            client,
            link,
            cgroup: opened,
            _cgroup: cgroup,
        };
        ensure!(site.get()? == BODY, "the server does not answer");
        Ok(site)
    }

    /// Nanoseconds a request, while the programs are attached where the server is.
    fn request(&self, loaded: Option<&Loaded>) -> testbed::Result<u32> {
        let _attached = match loaded {
            None => None,
            Some(loaded) => {
                let egress = CgroupLink::attach(loaded.egress(), &self.cgroup, Hook::Egress);
                let egress =
                    egress.map_err(|error| Error::system("attaching to the cgroup", io::Error::other(error)))?;
                Some((attach_tcx(loaded.ingress(), &self.link.right)?, egress))
            }
        };
        self.client.run(|| {
            quartile_ns(REQUESTS, || {
                let asked = self.ask(REQUESTS).map(drop);
                asked.map_err(|error| Error::system("asking by HTTP", error))
            })
        })
    }

    /// The length of what is answered.
    fn get(&self) -> Result<usize> {
        self.client.run(|| self.ask(1)).context("a request failed")
    }

    /// Makes requests on a new connection; returns how long the last answer's body was.
    fn ask(&self, requests: u32) -> io::Result<usize> {
        let mut stream = TcpStream::connect(SocketAddr::from((self.link.right.ipv4, PORT)))?;
        stream.set_nodelay(true)?;
        let mut body = vec![0; BODY];
        let mut answers = BufReader::new(stream.try_clone()?);
        for _ in 0..requests {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")?;
            let len = read_head(&mut answers)?.unwrap_or_default();
            answers.read_exact(body.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?)?;
            body.truncate(len);
        }
        Ok(body.len())
    }
}

/// What accepts connections in this cgroup.
fn listener(cgroup: &Cgroup, server: &Host) -> Result<TcpListener> {
    let socket = cgroup.tcp_socket(server)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, PORT)).context("the server's socket cannot be bound")?;
    listen(&socket, Backlog::MAXCONN).context("the server cannot listen")?;
    Ok(TcpListener::from(socket))
}

/// Answers one connection after the other.
fn serve(listener: &TcpListener) {
    stay_on_cpu(0).expect("the server stays on a CPU");
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + BODY, b'.');
    for stream in listener.incoming() {
        // A client that is gone makes no more requests; that is no failure of the server.
        let _ = stream.and_then(|stream| answer_all(stream, &answer));
    }
}

/// Answers all requests of a connection.
fn answer_all(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream.try_clone()?);
    while read_head(&mut requests)?.is_some() {
        stream.write_all(answer)?;
    }
    Ok(())
}

/// Reads the head of a message (RFC 9112); returns the length of the body behind it, or nothing at the end.
fn read_head(message: &mut impl io::BufRead) -> io::Result<Option<usize>> {
    let mut len = 0;
    for line in message.lines() {
        let line = line?;
        if line.is_empty() {
            return Ok(Some(len));
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            len = value.parse().map_err(io::Error::other)?;
        }
    }
    Ok(None)
}
