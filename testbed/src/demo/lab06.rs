//! Lab 06 is the enforcer: a story of one host, whose policy is observed, enforced, explained, exchanged, and got wrong.

use std::{
    fs,
    io::{IsTerminal as _, Write as _, stdout},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Act, Awaits, Stage, presets::Preset};
use crate::{
    Cgroup, End, Host, Running, Switch,
    traffic::{self, Server},
};

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_millis(700);

/// How long the enforcer may take for anything.
const PATIENCE: Duration = Duration::from_mins(1);

/// How many rules the last policy has, and which of them is about blue.
const MANY: u32 = 100_000;
const OF_BLUE: u32 = 77_777;

const DNS: u16 = 53;
const SNMP: u16 = 161;
const SYSLOG: u16 = 514;

/// The hosts, and what has to live as long as they do.
struct Hosts {
    server: End,
    amber: End,
    blue: End,
    cgroup: Cgroup,
    _keep: (Switch, [Server; 2], UdpSocket),
}

impl Hosts {
    fn new() -> crate::Result<Self> {
        let switch = Switch::new()?;
        let [server, amber, blue] =
            ["server", "amber", "blue"].map(|name| Host::new(name).and_then(|host| switch.connect(&host)));
        let (server, amber, blue) = (server?, amber?, blue?);
        let servers = [Server::udp(&server.host, DNS)?, Server::udp(&server.host, SNMP)?];
        // It listens to what the server logs, and says nothing.
        let listener = amber.host.run(|| UdpSocket::bind((amber.ipv4, SYSLOG)));
        let listener = listener.map_err(|error| crate::Error::system("listening on amber", error))?;
        Ok(Self {
            cgroup: Cgroup::new("enforcer-demo")?,
            server,
            amber,
            blue,
            _keep: (switch, servers, listener),
        })
    }

    fn introduction(&self) -> String {
        format!(
            "The host `server` ({} on {}) exists only while this runs. It answers DNS and, alas, SNMP.\n  \
             amber  {:<12} is welcome\n  \
             blue   {:<12} is known for abuse",
            self.server.ipv4, self.server.interface, self.amber.ipv4, self.blue.ipv4,
        )
    }

    fn policy(&self) -> String {
        format!(
            "version: 1
name: resolver
mode: observe
sets:
  abuse: {{ prefixes: [{}] }}
rules:
  - {{ name: no-abuse, direction: ingress, source: \"@abuse\", action: block }}
  - {{ name: no-snmp, direction: ingress, protocol: udp, destination_ports: {SNMP}, action: block }}
  - {{ name: dns, direction: ingress, destination_ports: {DNS}, action: allow }}
  - {{ name: no-syslog, direction: egress, protocol: udp, destination_ports: {SYSLOG}, action: block }}
",
            self.blue.ipv4
        )
    }
}

/// Without end, for a program that the user has something to say to: `-- run --verbose`, and commands from a second
/// terminal.
pub(super) fn set_up() -> crate::Result<Stage> {
    let hosts = Hosts::new()?;
    let folder = std::env::temp_dir().join("enforcer-demo");
    let policy = folder.join("resolver.yaml");
    let explain = |error| crate::Error::system(format!("writing {}", policy.display()), error);
    fs::create_dir_all(&folder).map_err(explain)?;
    fs::write(&policy, hosts.policy()).map_err(explain)?;
    let preset = |kind: &'static [&'static str], option: &str, value: String, note: String| Preset {
        kind,
        args: vec![option.to_owned(), value],
        note,
    };
    let presets = vec![
        preset(
            &["--policy"],
            "--policy",
            policy.display().to_string(),
            format!(
                "You gave no policy, so {} holds. Edit it, and apply it.",
                policy.display()
            ),
        ),
        preset(
            &["--cgroup", "--no-cg"],
            "--cgroup",
            hosts.cgroup.path().display().to_string(),
            String::new(),
        ),
    ];
    let tries = |from: &End, port: u16, per_second: u32| {
        let (host, target) = (from.host.clone(), SocketAddr::from((hosts.server.ipv4, port)));
        Act {
            per_second,
            times: 3,
            perform: Box::new(move || traffic::udp_exchange(&host, target, 1, TIMEOUT).map(drop)),
        }
    };
    let socket = hosts.cgroup.udp_socket(&hosts.server.host)?;
    let target = SocketAddr::from((hosts.amber.ipv4, SYSLOG));
    let sends = Act {
        per_second: 2,
        times: 3,
        perform: Box::new(move || {
            let _ = socket.send_to(b"hello", target);
            Ok(())
        }),
    };
    Ok(Stage {
        introduction: format!(
            "{}\n\
             amber and blue ask its DNS, amber its SNMP, too, and it sends to amber's syslog.\n\
             In a second terminal, as root: target/debug/enforcer status, stats, mode block, policy apply FILE",
            hosts.introduction()
        ),
        presets,
        awaits: Awaits::Nothing,
        acts: vec![
            tries(&hosts.amber, DNS, 5),
            tries(&hosts.blue, DNS, 3),
            tries(&hosts.amber, SNMP, 1),
            sends,
        ],
        summary: Box::new(|_| None),
        server: hosts.server.clone(),
        _keep: Box::new(hosts),
    })
}

/// The story, with the program at this path.
pub(super) fn tell(program: &Path) -> Result<u8> {
    let hosts = Hosts::new().context("the demo's hosts cannot be made")?;
    let folder = Folder::new().context("a folder for the policies cannot be made")?;
    // The story is told from another folder.
    let program = std::path::absolute(program).with_context(|| format!("{} cannot be found", program.display()))?;
    let story = Story {
        program: &program,
        hosts: &hosts,
        folder: &folder.0,
        pause: if stdout().is_terminal() {
            Duration::from_millis(1200)
        } else {
            Duration::ZERO
        },
    };
    say(&hosts.introduction());
    story.tell()?;
    Ok(0)
}

struct Story<'a> {
    program: &'a Path,
    hosts: &'a Hosts,
    folder: &'a Path,
    pause: Duration,
}

impl Story<'_> {
    fn tell(&self) -> Result<()> {
        self.chapter("1. A policy, in observe mode: what it would block is counted, and passes.");
        let policy = self.hosts.policy();
        self.file("resolver.yaml", &policy)?;
        show("cat resolver.yaml");
        say(policy.trim_end());
        let enforcer = self.start("resolver.yaml")?;
        self.everybody_asks()?;
        self.run("stats")?;

        self.chapter("2. The same policy, in block mode, from the next packet on.");
        self.run("mode block")?;
        self.everybody_asks()?;
        self.run("stats")?;

        self.chapter("3. Why is blue blocked? Asked of the classifier that the kernel runs.");
        let (blue, server) = (self.hosts.blue.ipv4, self.hosts.server.ipv4);
        self.run(&format!(
            "policy explain --src {blue} --dst {server} --proto udp --dport {DNS}"
        ))?;

        self.chapter(
            "4. Another policy takes its place, whole, between two packets. Rules keep their counters by name.",
        );
        let strict = policy
            .replace(
                "name: resolver\nmode: observe",
                "name: strict\nmode: block\ndefaults: { ingress: deny }",
            )
            .replace(
                "  - { name: no-snmp,",
                &format!(
                    "  - {{ name: amber-may, direction: ingress, source: {}, action: allow }}\n  - {{ name: no-snmp,",
                    self.hosts.amber.ipv4
                ),
            );
        self.file("strict.yaml", &strict)?;
        self.run("policy diff strict.yaml")?;
        self.run("policy apply strict.yaml")?;
        self.everybody_asks()?;
        self.run("stats")?;

        self.chapter("5. A policy with a mistake changes nothing.");
        self.file(
            "typo.yaml",
            &strict.replace("destination_ports: 514", "destination_port: 514"),
        )?;
        self.run_refused("policy apply typo.yaml")?;
        self.run("mode")?;

        self.chapter("6. It stops, and detaches everything.");
        show("kill %1");
        let finished = enforcer.interrupt(PATIENCE)?;
        if let Some(last) = finished.stderr.lines().last() {
            say(last);
        }
        self.everybody_asks()?;

        self.chapter("7. A hundred thousand rules, one of which is about blue's questions.");
        self.file("many.json", &self.many_rules())?;
        self.run("policy check many.json")?;
        let enforcer = self.start("many.json")?;
        self.everybody_asks()?;
        self.run(&format!(
            "policy explain --src {blue} --dst {server} --proto udp --dport {DNS}"
        ))?;
        enforcer.interrupt(PATIENCE)?;
        say("\nYour turn: `cargo xtask run lab06 -- run` keeps it running, for commands from a second terminal.");
        Ok(())
    }

    /// Starts the enforcer with the policy of this name.
    fn start(&self, policy: &str) -> Result<Running> {
        let cgroup = self.hosts.cgroup.path().display().to_string();
        let interface = &self.hosts.server.interface;
        show(&format!(
            "enforcer run --policy {policy} --iface {interface} --cgroup … &"
        ));
        let args = ["run", "--policy", policy, "--iface", interface, "--cgroup", &cgroup];
        let enforcer = Running::start(self.command(&args))?;
        enforcer.wait_for("listening on", PATIENCE)?;
        Ok(enforcer)
    }

    /// A policy of a hundred thousand rules of three kinds, in JSON, which is read fastest.
    fn many_rules(&self) -> String {
        let rule = |number: u32| {
            let source = Ipv4Addr::from_bits(0x0a00_0000 + (number << 4));
            let condition = match number {
                OF_BLUE => format!(r#""source":"{}","destination_ports":{DNS}"#, self.hosts.blue.ipv4),
                _ if number.is_multiple_of(3) => format!(r#""source":"{source}/28""#),
                _ if number % 3 == 1 => format!(r#""source":"{source}/28","destination_ports":"{DNS}-{SNMP}""#),
                _ => format!(
                    r#""destination":"{source}","destination_ports":{}"#,
                    1 + number % 65_535
                ),
            };
            let action = if number.is_multiple_of(2) { "allow" } else { "block" };
            format!(
                r#"{{"name":"rule-{number}","direction":"ingress","protocol":"udp",{condition},"action":"{action}"}}"#
            )
        };
        let rules: Vec<String> = (0..MANY).map(rule).collect();
        format!(
            "{{\"version\":1,\"name\":\"many\",\"mode\":\"block\",\"rules\":[\n{}\n]}}\n",
            rules.join(",\n")
        )
    }

    fn chapter(&self, title: &str) {
        say(&format!("\n{title}"));
        thread::sleep(self.pause);
    }

    fn file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.hosts.server.host.command(self.program);
        command
            .args(args)
            .current_dir(self.folder)
            .env("ENFORCER_SOCKET", self.folder.join("enforcer.sock"));
        command
    }

    /// Runs a command of the enforcer's, and shows it with what it prints.
    fn run(&self, command: &str) -> Result<()> {
        let status = self.run_and_show(command)?;
        if !status {
            bail!("enforcer {command} has failed");
        }
        Ok(())
    }

    fn run_refused(&self, command: &str) -> Result<()> {
        let status = self.run_and_show(command)?;
        if status {
            bail!("enforcer {command} was expected to be refused");
        }
        Ok(())
    }

    fn run_and_show(&self, command: &str) -> Result<bool> {
        show(&format!("enforcer {command}"));
        let args: Vec<&str> = command.split(' ').collect();
        let finished = Running::start(self.command(&args))?.wait(PATIENCE)?;
        say(format!("{}{}", finished.stdout, finished.stderr).trim_end());
        Ok(finished.status.success())
    }

    fn everybody_asks(&self) -> Result<()> {
        let Hosts {
            server,
            amber,
            blue,
            cgroup,
            ..
        } = self.hosts;
        say("");
        for (who, from, port, what) in [
            ("amber", amber, DNS, "asks DNS"),
            ("blue", blue, DNS, "asks DNS"),
            ("amber", amber, SNMP, "asks SNMP"),
        ] {
            let exchange = traffic::udp_exchange(&from.host, (server.ipv4, port).into(), 1, TIMEOUT)?;
            let outcome = if exchange.is_complete() {
                "answered"
            } else {
                "no answer"
            };
            say(&format!("  {who:<6}  {what:<20}  {outcome}"));
        }
        let sent = cgroup.udp_socket(&server.host)?.send_to(b"hello", (amber.ipv4, SYSLOG));
        let outcome = match sent {
            Ok(_) => "sent",
            Err(_) => "operation not permitted",
        };
        say(&format!("  server  sends to syslog       {outcome}"));
        thread::sleep(self.pause);
        Ok(())
    }
}

fn show(command: &str) {
    say(&format!("\n$ {command}"));
}

/// Nobody may be reading any more, which is no failure.
fn say(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}

/// A folder that goes when this does.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("enforcer-demo-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
