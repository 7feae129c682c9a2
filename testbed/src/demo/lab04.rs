//! lab04's demo: the same visitor, once inside the cgroup that the policy is for and once outside, first while the policy
//! is only observed and then while it blocks.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{PATIENCE, Traffic, presets::Preset, signals, sleep_until};
use crate::{
    Cgroup, Host, Running,
    process::{pid, shell_status, spawn},
    traffic::Server,
};

/// What the server offers.
const SERVICES: [(&str, &str, u16); 5] = [
    ("dns", "udp", 53),
    ("web", "tcp", 80),
    ("web", "tcp", 443),
    ("telnet", "tcp", 23),
    ("mail", "tcp", 25),
];

const POLICY: &str = "\
version: 1
name: web-client
match: specific
defaults: { egress: deny }
rules:
  - { name: dns, direction: egress, protocol: udp, destination_ports: 53, action: allow }
  - { name: web, direction: egress, protocol: tcp, destination_ports: [80, 443], action: allow }
";

/// How long the policy is only observed in lively traffic.
const OBSERVED: Duration = Duration::from_secs(6);

/// How often visitors come in lively traffic.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a visitor waits for an answer, which takes a fraction of a millisecond here.
const ANSWER: Duration = Duration::from_millis(500);

/// Set in a process that is a visitor; its value are the services, a line each.
const VISIT: &str = "TESTBED_VISIT";

/// Is a visitor and ends, if this process was started as one. A program that shows lab04's demo calls this first.
pub fn visit_if_asked() {
    let Ok(services) = env::var(VISIT) else { return };
    for service in services.lines() {
        let answered = visit(service).is_some();
        println!("{}", u8::from(answered));
    }
    process::exit(0);
}

/// Asks a service, `udp 10.99.0.2:53`, for something; `None` if it does not answer.
fn visit(service: &str) -> Option<()> {
    let (protocol, address) = service.split_once(' ')?;
    let address: SocketAddr = address.parse().ok()?;
    if protocol == "tcp" {
        return TcpStream::connect_timeout(&address, ANSWER).ok().map(drop);
    }
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.set_read_timeout(Some(ANSWER)).ok()?;
    socket.send_to(b"?", address).ok()?;
    socket.recv(&mut [0; 8]).ok().map(drop)
}

/// The stage, with what its visitors have found.
struct Stage {
    client: Host,
    services: Vec<String>,
    inside: Cgroup,
    /// Asked and answered, by service: inside while it was observed, inside while it blocked, outside.
    visits: [Vec<(u32, u32)>; 3],
}

const OBSERVING: usize = 0;
const BLOCKING: usize = 1;
const OUTSIDE: usize = 2;

/// Sets the stage, runs the program on it, and returns its exit status.
pub(super) fn run(traffic: Traffic, program: &[OsString]) -> Result<u8> {
    let Some((program, args)) = program.split_first() else {
        bail!("no program was named");
    };
    let signals = signals::block().context("signals cannot be blocked")?;
    let (client, server) = (Host::new("client")?, Host::new("server")?);
    let cable = client.join(&server)?;
    let _servers = SERVICES
        .iter()
        .map(|(_, protocol, port)| match *protocol {
            "udp" => Server::udp(&server, *port),
            _ => Server::tcp(&server, *port),
        })
        .collect::<crate::Result<Vec<_>>>()?;
    let inside = Cgroup::new("inside")?;
    let policy = PolicyFile::write()?;
    eprintln!(
        "The host `server` ({}) exists only while this runs. Visitors come from the host `client`,\n\
         one inside the cgroup {}\n\
         and one outside, and ask for dns, web (two ports), telnet and mail.",
        cable.right.ipv4,
        inside.path().display()
    );
    let services =
        SERVICES.map(|(_, protocol, port)| format!("{protocol} {}", SocketAddr::from((cable.right.ipv4, port))));
    let stage = Stage {
        client,
        services: services.to_vec(),
        inside,
        visits: std::array::from_fn(|_| vec![(0, 0); SERVICES.len()]),
    };
    let mut command = stage.client.command(program);
    for preset in [cgroup_preset(&stage.inside), policy_preset(&policy)] {
        if preset.is_wanted(args) {
            command.args(&preset.args);
            if !preset.note.is_empty() {
                eprintln!("{}", preset.note);
            }
        }
    }
    command.args(args);
    signals::unblock_in(&mut command);
    let mut child = spawn(command)?;
    signals::forward_to(signals, pid(&child));

    let stop = Arc::new(AtomicBool::new(false));
    // Whoever says how it is to be does not want it changed.
    let has_mode = args.iter().any(|arg| arg == "--observe" || arg == "--block");
    let has_command = args.iter().any(|arg| arg == "--");
    let playing = thread::spawn({
        let (stop, program) = (Arc::clone(&stop), program.clone());
        move || stage.play(traffic, &program, !has_mode, has_command, &stop)
    });
    let status = child.wait().context("waiting for the program")?;
    stop.store(true, Ordering::Relaxed);
    let Ok(stage) = playing.join() else {
        bail!("the demo's traffic has failed");
    };
    if !has_command {
        eprint!("{}", stage.summary());
    }
    Ok(shell_status(status))
}

fn cgroup_preset(cgroup: &Cgroup) -> Preset {
    Preset {
        kind: &["--cgroup"],
        args: vec!["--cgroup".into(), cgroup.path().display().to_string()],
        note: String::new(),
    }
}

fn policy_preset(policy: &PolicyFile) -> Preset {
    Preset {
        kind: &["--policy"],
        args: vec!["--policy".into(), policy.path.display().to_string()],
        note: "You gave no policy, so this one holds: dns and web are allowed, and everything else is denied.\n\
               At first that is only observed, and then it blocks."
            .into(),
    }
}

/// The demo's policy in a file, which goes when this is dropped.
struct PolicyFile {
    path: PathBuf,
}

impl PolicyFile {
    fn write() -> Result<Self> {
        let path = env::temp_dir().join(format!("testbed-lab04-{}.yaml", process::id()));
        fs::write(&path, POLICY).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for PolicyFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Stage {
    fn play(
        mut self,
        traffic: Traffic,
        program: &OsString,
        switch: bool,
        has_command: bool,
        stop: &AtomicBool,
    ) -> Self {
        if has_command || !self.wait_for_program(program, stop) {
            return self;
        }
        let start = Instant::now();
        let mut mode = self.mode(program, None);
        loop {
            let place = if mode.as_deref() == Some("block") {
                BLOCKING
            } else {
                OBSERVING
            };
            self.visit(place, stop);
            self.visit(OUTSIDE, stop);
            let is_time = traffic == Traffic::Fixed || start.elapsed() > OBSERVED;
            if switch && place == OBSERVING && is_time {
                mode = self.mode(program, Some("block"));
            } else if traffic == Traffic::Fixed {
                return self;
            }
            if stop.load(Ordering::Relaxed) {
                return self;
            }
            if traffic == Traffic::Lively {
                sleep_until(Instant::now() + PAUSE, stop);
            }
        }
    }

    /// Whether the program answers, and has not ended before it could.
    fn wait_for_program(&self, program: &OsString, stop: &AtomicBool) -> bool {
        let start = Instant::now();
        while !stop.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
            if self.mode(program, None).is_some() {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Has a second process of the program's tell or set the mode.
    fn mode(&self, program: &OsString, mode: Option<&str>) -> Option<String> {
        let mut command = Command::new(program);
        command
            .arg("mode")
            .arg("--cgroup")
            .arg(self.inside.path())
            .args(mode)
            .stderr(Stdio::null());
        let output = command.output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Sends a visitor, inside or outside, and notes what it found.
    fn visit(&mut self, place: usize, stop: &AtomicBool) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(ourselves) = env::current_exe() else { return };
        let mut command = self.client.command(ourselves);
        command.env(VISIT, self.services.join("\n"));
        if place != OUTSIDE && self.inside.enrol(&mut command).is_err() {
            return;
        }
        let finished = Running::start(command).and_then(|running| running.wait(PATIENCE));
        // One that was under way when the program ended is nobody's.
        let (Ok(finished), false) = (finished, stop.load(Ordering::Relaxed)) else {
            return;
        };
        for ((asked, answered), line) in self.visits[place].iter_mut().zip(finished.stdout.lines()) {
            *asked += 1;
            *answered += u32::from(line == "1");
        }
    }

    fn summary(&self) -> String {
        let mut text = String::from("What the server answered:\n");
        let _ = writeln!(
            text,
            "  {:<18}  {:>18}  {:>18}  {:>10}",
            "", "inside, observed", "inside, blocked", "outside"
        );
        for (place, (name, protocol, port)) in SERVICES.iter().enumerate() {
            let of = |visits: &[(u32, u32)]| {
                let (asked, answered) = visits[place];
                if asked == 0 {
                    "-".to_owned()
                } else {
                    format!("{answered} of {asked}")
                }
            };
            let [observed, blocked, outside] = self.visits.each_ref().map(|visits| of(visits));
            let service = format!("{name}, {protocol} {port}");
            let _ = writeln!(text, "  {service:<18}  {observed:>18}  {blocked:>18}  {outside:>10}");
        }
        text
    }
}
