//! Lab 03 follows connections: whoever the server has asked may answer, a stranger may not ask, and what the server sends
//! is held to a rate.

use std::{
    fmt::Write as _,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Act, Awaits, Stage, Traffic, presets::Preset};
use crate::{
    End, Error, Host, Result, Switch,
    traffic::{self, Connection, Server},
};

/// How long an answer is waited for. On these hosts it takes a fraction of a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long one is waited for that shall not come: less than TCP waits before it sends a SYN again.
const MOMENT: Duration = Duration::from_millis(300);

/// What is begun so shortly before the program ends is nobody's.
const LAST_MOMENT: Duration = Duration::from_secs(1);

const DNS: u16 = 53;
const WEB: u16 = 443;
const MAIL: u16 = 25;
const VIDEO: u16 = 9;

/// The payload of a packet of 1024 bytes.
const PAYLOAD: [u8; 996] = [0; 996];
const IP_BYTES: u64 = 1024;
/// Packets sent at once, and how often a second: about 20 Mbit/s.
const BURST: u64 = 25;
const BURSTS_PER_SECOND: u32 = 100;

pub(super) fn set_up(traffic: Traffic) -> Result<Stage> {
    let switch = Switch::new()?;
    let [server, amber, blue] =
        ["server", "amber", "blue"].map(|name| Host::new(name).and_then(|host| switch.connect(&host)));
    let (server, amber, blue) = (server?, amber?, blue?);
    let servers = [
        Server::udp(&server.host, DNS)?,
        Server::tcp(&server.host, WEB)?,
        Server::udp(&amber.host, DNS)?,
        Server::tcp(&amber.host, MAIL)?,
    ];
    let watched = Server::udp(&amber.host, VIDEO)?;

    let tries = [
        Tries::of("server asks amber's DNS", "a reply is let in"),
        Tries::of("amber opens the server's port 443", "a listed port is open"),
        Tries::of("blue asks the server's DNS", "a stranger is kept out"),
        Tries::of("server sends mail to amber", "port 25 is denied"),
    ];
    let [replies, listed, stranger, denied] = &tries;
    let stream = Arc::new(Stream::default());
    let acts = vec![
        replies.act(4, 5, asks_dns(&server, &amber, PATIENCE)),
        listed.act(2, 3, connects(&amber, &server, WEB, PATIENCE)),
        stranger.act(3, 3, asks_dns(&blue, &server, MOMENT)),
        denied.act(1, 2, connects(&server, &amber, MAIL, MOMENT)),
        stream.act(&server, &amber)?,
    ];
    Ok(Stage {
        introduction: introduction(&server, &amber, &blue),
        presets: presets(traffic, &amber),
        awaits: Awaits::Answer("flows"),
        acts,
        summary: Box::new(move |ended| Some(summary(&tries, &stream, &watched, ended))),
        server,
        _keep: Box::new((switch, servers)),
    })
}

fn introduction(server: &End, amber: &End, blue: &End) -> String {
    format!(
        "The host `server` ({} on {}) exists only while this runs.\n  \
         amber  {:<11}  is asked by it, opens its port {WEB}, and is sent {:.0} Mbit/s by it\n  \
         blue   {:<11}  is a stranger: nobody has asked it anything, and it asks",
        server.ipv4,
        server.interface,
        amber.ipv4,
        (IP_BYTES * BURST * u64::from(BURSTS_PER_SECOND) * 8) as f64 / 1e6,
        blue.ipv4,
    )
}

/// What of lab03's options makes rules.
const RULES: [&str; 5] = ["--stateful", "--allow-port", "--deny", "--shape", "--burst"];

fn presets(traffic: Traffic, amber: &End) -> Vec<Preset> {
    // At the lower rate not one packet leaves in the time of a fixed run beyond the burst.
    let rate = match traffic {
        Traffic::Lively => "10mbit",
        Traffic::Fixed => "8kbit",
    };
    let rules = format!(
        "--stateful --allow-port tcp/{WEB} --deny tcp/{MAIL} --shape {}={rate} --burst 65536",
        amber.ipv4
    );
    let rules = Preset {
        kind: &RULES,
        args: rules.split(' ').map(str::to_owned).collect(),
        note: format!("You gave no rules, so these hold: {rules}"),
    };
    let interval = Preset {
        kind: &["--stats-interval"],
        args: vec!["--stats-interval".to_owned(), "1s".to_owned()],
        note: String::new(),
    };
    vec![rules, interval]
}

fn asks_dns(from: &End, to: &End, timeout: Duration) -> impl FnMut() -> Result<bool> + Send + 'static {
    let (host, target) = (from.host.clone(), SocketAddr::from((to.ipv4, DNS)));
    move || Ok(traffic::udp_exchange(&host, target, 1, timeout)?.is_complete())
}

fn connects(from: &End, to: &End, port: u16, timeout: Duration) -> impl FnMut() -> Result<bool> + Send + 'static {
    let (host, target) = (from.host.clone(), SocketAddr::from((to.ipv4, port)));
    move || Ok(traffic::try_connect(&host, target, timeout)? == Connection::Connected)
}

/// What somebody tries over and over.
struct Tries {
    what: &'static str,
    lesson: &'static str,
    /// When each began, and whether it was answered.
    outcomes: Mutex<Vec<(Instant, bool)>>,
}

impl Tries {
    fn of(what: &'static str, lesson: &'static str) -> Arc<Self> {
        Arc::new(Self {
            what,
            lesson,
            outcomes: Mutex::default(),
        })
    }

    fn act(
        self: &Arc<Self>,
        per_second: u32,
        times: u32,
        mut attempt: impl FnMut() -> Result<bool> + Send + 'static,
    ) -> Act {
        let tries = Arc::clone(self);
        Act {
            per_second,
            times,
            perform: Box::new(move || {
                let began = Instant::now();
                let answered = attempt()?;
                if let Ok(mut outcomes) = tries.outcomes.lock() {
                    outcomes.push((began, answered));
                }
                Ok(())
            }),
        }
    }

    /// How many were answered, and how many there were, of those that began before `end`.
    fn answered_before(&self, end: Instant) -> (usize, usize) {
        let outcomes = self
            .outcomes
            .lock()
            .map(|outcomes| outcomes.clone())
            .unwrap_or_default();
        let before = || outcomes.iter().filter(|(began, _)| *began < end);
        (before().filter(|(_, answered)| *answered).count(), before().count())
    }
}

/// What the server sends without being asked.
#[derive(Default)]
struct Stream {
    packets: AtomicU64,
    times: Mutex<Option<(Instant, Instant)>>,
}

impl Stream {
    fn act(self: &Arc<Self>, from: &End, to: &End) -> Result<Act> {
        let socket = from
            .host
            .run(|| UdpSocket::bind((from.ipv4, 0)))
            .map_err(|error| Error::system("opening a socket on server", error))?;
        let (stream, target) = (Arc::clone(self), SocketAddr::from((to.ipv4, VIDEO)));
        Ok(Act {
            per_second: BURSTS_PER_SECOND,
            times: 4,
            perform: Box::new(move || {
                let now = Instant::now();
                if let Ok(mut times) = stream.times.lock() {
                    *times = Some((times.map_or(now, |(first, _)| first), now));
                }
                for _ in 0..BURST {
                    // The kernel says so when a packet is dropped on the way out; the next one is sent all the same.
                    let _ = socket.send_to(&PAYLOAD, target);
                    stream.packets.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }),
        })
    }
}

fn summary(tries: &[Arc<Tries>], stream: &Stream, watched: &Server, ended: Instant) -> String {
    let end = ended.checked_sub(LAST_MOMENT).unwrap_or(ended);
    let mut text = String::from("What came of it:");
    for tries in tries {
        let (answered, all) = tries.answered_before(end);
        let _ = write!(
            text,
            "\n  {:<34}  {answered:>4} of {all:>4} answered   {}",
            tries.what, tries.lesson
        );
    }
    let (sent, arrived) = (stream.packets.load(Ordering::Relaxed), watched.packets());
    let _ = write!(
        text,
        "\n  {:<34}  {arrived:>4} of {sent:>4} arrived    ",
        "server sends to amber"
    );
    let times = stream.times.lock().ok().and_then(|times| *times);
    let seconds = times.map_or(0.0, |(first, last)| last.duration_since(first).as_secs_f64());
    // Over less than that the burst is most of it.
    if seconds > 2.0 {
        let rate = |packets: u64| (packets * IP_BYTES * 8) as f64 / seconds / 1e6;
        let _ = write!(text, "{:.1} of {:.1} Mbit/s", rate(arrived), rate(sent));
    } else {
        text.push_str("the burst, and no more");
    }
    text
}
