//! Lab 05 tells stories: of two programs that start, connect, and end. One of them also calls where it must not; and from
//! outside somebody knocks at a closed port.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::unistd::mkdtemp;

use super::{Act, Awaits, Stage, presets::Preset};
use crate::{
    Cgroup, End, Error, Host, Result, Switch,
    traffic::{self, Server},
};

const TIMEOUT: Duration = Duration::from_millis(500);

/// The port that is closed, at home and elsewhere.
const TELNET: u16 = 23;

/// What of lab05's options says what is watched, and what is blocked.
const WATCHED: [&str; 2] = ["--cgroup", "--no-cgroup"];
const RULES: [&str; 4] = ["--block", "--allow", "--default", "--observe"];

pub(super) fn set_up() -> Result<Stage> {
    let switch = Switch::new()?;
    let [home, mirror, stranger] =
        ["home", "mirror", "stranger"].map(|name| Host::new(name).and_then(|host| switch.connect(&host)));
    let (home, mirror, stranger) = (home?, mirror?, stranger?);
    let servers = (Server::tcp(&mirror.host, 443)?, Server::tcp(&mirror.host, TELNET)?);
    let cgroup = Cgroup::new("demo")?;
    let folder = Folder::new()?;
    let (updater, spy) = (folder.program("updater")?, folder.program("spy")?);
    let watched = Preset {
        kind: &WATCHED,
        args: vec!["--cgroup".into(), cgroup.name()?.to_string_lossy().into_owned()],
        note: String::new(),
    };
    let rules = Preset {
        kind: &RULES,
        args: vec!["--block-port".into(), format!("tcp/{TELNET}")],
        note: format!("You gave no rules, so this holds: --block-port tcp/{TELNET}"),
    };
    let cgroup = std::sync::Arc::new(cgroup);
    let acts = vec![
        calls(&home, &cgroup, updater, &mirror, &[443]),
        calls(&home, &cgroup, spy, &mirror, &[443, TELNET]),
        knocks(&stranger, &home),
    ];
    Ok(Stage {
        introduction: introduction(&home, &mirror, &stranger),
        presets: vec![watched, rules],
        acts,
        awaits: Awaits::Xdp,
        summary: Box::new(|_| None),
        server: home,
        // What is dropped is gone: the switch, the servers, the cgroup, the folder.
        _keep: Box::new((switch, servers, cgroup, folder)),
    })
}

fn introduction(home: &End, mirror: &End, stranger: &End) -> String {
    format!(
        "The host `home` ({}) exists only while this runs. There, once a second,\n  \
         updater   connects to mirror ({}), port 443, and ends\n  \
         spy       does so, too, and then calls its port {TELNET}\n\
         and from outside\n  \
         stranger  ({}) knocks at home's port {TELNET}",
        home.ipv4, mirror.ipv4, stranger.ipv4,
    )
}

/// Set in a process that is a caller: its arguments are an address and ports.
const CALLER: &str = "TESTBED_CALLER";

/// This very program as a caller, under a name of its own and in the cgroup.
fn calls(home: &End, cgroup: &std::sync::Arc<Cgroup>, program: PathBuf, peer: &End, ports: &[u16]) -> Act {
    let (host, cgroup) = (home.host.clone(), std::sync::Arc::clone(cgroup));
    let args: Vec<_> = std::iter::once(peer.ipv4.to_string())
        .chain(ports.iter().map(ToString::to_string))
        .collect();
    Act {
        per_second: 1,
        times: 1,
        perform: Box::new(move || {
            let mut command = cgroup.command(&host, &program)?;
            command.args(&args).env(CALLER, "1");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = crate::spawn(command)?;
            child
                .wait()
                .map(drop)
                .map_err(|error| Error::system("waiting for a caller", error))
        }),
    }
}

fn knocks(from: &End, home: &End) -> Act {
    let (host, target) = (from.host.clone(), SocketAddr::from((home.ipv4, TELNET)));
    Act {
        per_second: 1,
        times: 1,
        // Given up before the kernel tries a second time, so that one knock is one packet.
        perform: Box::new(move || traffic::try_connect(&host, target, TIMEOUT).map(drop)),
    }
}

/// Calls and ends, if this process was started as a caller; its exit status is the number of calls that came to nothing. A
/// program that shows lab05's demo asks this first.
pub fn call_if_asked() {
    if env::var_os(CALLER).is_none() {
        return;
    }
    let mut args = env::args().skip(1);
    let peer: Option<IpAddr> = args.next().and_then(|address| address.parse().ok());
    let ports = args.filter_map(|port| port.parse::<u16>().ok());
    let targets = ports.filter_map(|port| Some(SocketAddr::new(peer?, port)));
    let refused = targets.filter(|target| exchange(*target).is_err()).count();
    std::process::exit(i32::try_from(refused).unwrap_or(i32::MAX));
}

fn exchange(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&[b'?'; 200])?;
    stream.read_exact(&mut [0; 200])
}

/// A folder for programs, removed with what is in it.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> Result<Self> {
        let path = mkdtemp(&env::temp_dir().join("XXXXXX"))
            .map_err(|errno| Error::system("making a folder for the demo's programs", errno))?;
        Ok(Self { path })
    }

    /// This very program under another name, by which it is then known.
    fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let made = env::current_exe().and_then(|this| symlink(this, &path));
        made.map_err(|error| Error::system(format!("making {}", path.display()), error))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.path));
    }
}
