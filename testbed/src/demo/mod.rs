//! The network and the traffic that a lab's program is shown with, one file a lab.

mod lab01;
mod lab02;
mod lab03;
mod lab04;
mod lab05;
mod lab06;
mod pings;
mod presets;
mod signals;

use std::{
    any::Any,
    ffi::{OsStr, OsString},
    path::Path,
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::presets::Preset;
pub use self::{lab04::visit_if_asked, lab05::call_if_asked};
use crate::{End, Running, process};

/// A demo, by the lab that it is for.
#[derive(Clone, Copy, Debug)]
pub struct Demo {
    lab: &'static str,
    show: Show,
}

/// How a lab is shown.
#[derive(Clone, Copy, Debug)]
enum Show {
    /// On a host that others talk to.
    Host(fn(Traffic) -> crate::Result<Stage>),
    /// By a story, told with the program from its start to its end; where the user says something to the program, on a host.
    Story(fn(&Path) -> Result<u8>, fn(Traffic) -> crate::Result<Stage>),
    /// In its own way.
    Itself(fn(Traffic, &[OsString]) -> Result<u8>),
}

/// Every demo that there is.
const DEMOS: [Demo; 6] = [
    Demo {
        lab: "lab01",
        show: Show::Host(|_| lab01::set_up()),
    },
    Demo {
        lab: "lab02",
        show: Show::Host(lab02::set_up),
    },
    Demo {
        lab: "lab03",
        show: Show::Host(lab03::set_up),
    },
    Demo {
        lab: "lab04",
        show: Show::Itself(lab04::run),
    },
    Demo {
        lab: "lab05",
        show: Show::Host(|_| lab05::set_up()),
    },
    Demo {
        lab: "lab06",
        show: Show::Story(lab06::tell, |_| lab06::set_up()),
    },
];

impl Demo {
    /// The demo for a lab, by its number (`lab01`) or its full name (`lab01-count-packets`).
    pub fn find(lab: &str) -> Result<Self, String> {
        DEMOS
            .into_iter()
            .find(|demo| lab.split('-').next() == Some(demo.lab))
            .ok_or_else(|| format!("there is a demo for {}", DEMOS.map(|demo| demo.lab).join(", ")))
    }
}

/// What the hosts of a demo send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Without end, at rates that differ.
    Lively,
    /// A fixed number of each kind, once.
    Fixed,
}

/// The hosts of a demo, set up.
pub(crate) struct Stage {
    /// Where the program runs.
    server: End,
    /// What a newcomer is to know of it, in a few short lines.
    introduction: String,
    /// What the program is told, beside the interface, where the user says nothing of the kind.
    presets: Vec<Preset>,
    /// What traffic waits for.
    awaits: Awaits,
    acts: Vec<Act>,
    /// What is told of the acts at the end, which was then.
    summary: Box<dyn Fn(Instant) -> Option<String> + Send>,
    /// What else has to live as long: switches, servers.
    _keep: Box<dyn Any + Send>,
}

/// When a program is ready for traffic.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Awaits {
    /// At once.
    Nothing,
    /// When it has attached to XDP.
    Xdp,
    /// When a second process of it, with this command and the stage's interface, finds it.
    Answer(&'static str),
}

/// One thing that one host does over and over.
pub(crate) struct Act {
    /// How often a second, in lively traffic.
    per_second: u32,
    /// How often in fixed traffic.
    times: u32,
    /// Does it once; a failure is what programs under test may cause, and no reason to stop.
    perform: Box<dyn FnMut() -> crate::Result<()> + Send>,
}

/// How long a program may take until it has attached.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sets the stage, runs the program on it, and returns its exit status.
pub fn run(demo: Demo, traffic: Traffic, program: &[OsString]) -> Result<u8> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the demo's hosts need root: use `cargo xtask run {}`, or sudo",
            demo.lab
        );
    }
    let set_up = match (demo.show, program) {
        (Show::Itself(run), _) => return run(traffic, program),
        (Show::Story(tell, _), [program]) => return tell(Path::new(program)),
        (Show::Host(set_up) | Show::Story(_, set_up), _) => set_up,
    };
    let signals = signals::block().context("signals cannot be blocked")?;
    let mut stage = set_up(traffic).context("the demo's hosts cannot be made")?;
    eprintln!("{}", stage.introduction);

    let mut child = stage.start(program)?;
    signals::forward_to(signals, process::pid(&child));
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = thread::spawn({
        let (stop, program) = (Arc::clone(&stop), program.first().cloned().unwrap_or_default());
        move || {
            stage.play(traffic, &program, &stop);
            // The hosts are to stay until the program has ended.
            stage
        }
    });
    let status = child.wait().context("waiting for the program")?;
    let ended = Instant::now();
    stop.store(true, Ordering::Relaxed);
    let Ok(stage) = traffic.join() else {
        bail!("the demo's traffic has failed");
    };
    if let Some(summary) = (stage.summary)(ended) {
        eprintln!("{summary}");
    }
    Ok(process::shell_status(status))
}

impl Stage {
    fn start(&self, program: &[OsString]) -> Result<Child> {
        let Some((program, args)) = program.split_first() else {
            bail!("no program was named");
        };
        let mut command = self.server.host.command(program);
        command.args(args);
        let interface = presets::interface(&self.server.interface);
        for preset in self.presets.iter().chain([&interface]) {
            if preset.is_wanted(args) {
                command.args(&preset.args);
                if !preset.note.is_empty() {
                    eprintln!("{}", preset.note);
                }
            }
        }
        signals::unblock_in(&mut command);
        Ok(process::spawn(command)?)
    }

    fn play(&mut self, traffic: Traffic, program: &OsStr, stop: &Arc<AtomicBool>) {
        if !self.wait_for_program(program, stop) {
            return;
        }
        match traffic {
            Traffic::Lively => self.play_until(stop),
            Traffic::Fixed => self.play_once(stop),
        }
    }

    /// Whether the program has attached, and not ended before it could.
    fn wait_for_program(&self, program: &OsStr, stop: &AtomicBool) -> bool {
        let start = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            if self.is_ready(program) {
                return true;
            }
            if start.elapsed() > PATIENCE {
                // Let it be seen what it does without having attached.
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    fn is_ready(&self, program: &OsStr) -> bool {
        match self.awaits {
            Awaits::Nothing => true,
            Awaits::Xdp => self.server.has_xdp().unwrap_or(false),
            Awaits::Answer(ask) => {
                let mut command = self.server.host.command(program);
                command.args([ask, "--iface", &self.server.interface]);
                let finished = Running::start(command).and_then(|running| running.wait(PATIENCE));
                finished.is_ok_and(|finished| finished.status.success())
            }
        }
    }

    fn play_until(&mut self, stop: &Arc<AtomicBool>) {
        thread::scope(|scope| {
            for act in &mut self.acts {
                scope.spawn(move || {
                    let pause = Duration::from_secs(1) / act.per_second.max(1);
                    let mut due = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        let _ = (act.perform)();
                        due += pause;
                        sleep_until(due, stop);
                    }
                });
            }
        });
    }

    fn play_once(&mut self, stop: &AtomicBool) {
        for act in &mut self.acts {
            for _ in 0..act.times {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let _ = (act.perform)();
            }
        }
    }
}

/// Sleeps in short naps, so that the end is not waited for.
fn sleep_until(due: Instant, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_is_found_by_the_number_and_by_the_name_of_its_lab() {
        assert!(Demo::find("lab01").is_ok());
        assert!(Demo::find("lab02-xdp-firewall").is_ok());
        assert_eq!(
            Demo::find("lab1").unwrap_err(),
            "there is a demo for lab01, lab02, lab03, lab04, lab05, lab06"
        );
    }
}
