//! QEMU: the machine's own, else Debian's, unpacked into the project with all of its libraries.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use regex::Regex;

use super::{message::Message, processor::Processor};
use crate::{
    apt::{self, Suite},
    machine::find_in_path,
    setup,
    workspace::Workspace,
};

/// The suite whose QEMU is new enough to be emulated well.
const SUITE: Suite = Suite::main("trixie");

/// How many lines of the console an error shows.
const TAIL: usize = 15;

/// How to start QEMU.
pub struct Qemu {
    processor: Processor,
    program: PathBuf,
    args: Vec<OsString>,
}

impl Qemu {
    /// Finds QEMU; downloads it where this machine has none.
    pub fn obtain(workspace: &Workspace, processor: Processor) -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        // The program, Debian's package of it, and the folder that it is unpacked into.
        let (program, package, folder) = match processor {
            Processor::Amd64 => ("qemu-system-x86_64", "qemu-system-x86", "qemu"),
            Processor::Arm64 => ("qemu-system-aarch64", "qemu-system-arm", "qemu-arm64"),
        };
        if let Some(program) = find_in_path(program, &path) {
            return Ok(Self {
                processor,
                program,
                args: Vec::new(),
            });
        }
        let folder = workspace.tools().join(folder);
        if !folder.is_dir() {
            let _alone = setup::lock(workspace)?;
            // Somebody else may have downloaded it while we waited for the lock.
            if !folder.is_dir() {
                apt::unpack_with_dependencies(workspace, SUITE, package, &folder).with_context(|| {
                    format!("{program} is not installed and cannot be downloaded; on Debian: apt-get install {package}")
                })?;
            }
        }
        Ok(Self::unpacked(processor, program, &folder))
    }

    /// Debian's QEMU with Debian's libraries, whichever this machine has: started by their own loader.
    fn unpacked(processor: Processor, program: &str, folder: &Path) -> Self {
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| folder.join(path));
        let mut args: Vec<OsString> = vec!["--library-path".into()];
        args.push(env::join_paths(libraries).unwrap_or_default());
        args.push(folder.join("usr/bin").join(program).into());
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            args.extend(["-L".into(), folder.join(firmware).into()]);
        }
        Self {
            processor,
            program: folder.join("usr/lib64/ld-linux-x86-64.so.2"),
            args,
        }
    }

    fn command(&self, machine: &Machine, log: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-m", "1024", "-smp", &machine.cpus.to_string()]);
        command.args(match self.processor {
            // Without pointer authentication, which takes long to emulate.
            Processor::Arm64 => ["-machine", "virt", "-accel", "tcg,thread=multi", "-cpu", "neoverse-n1"],
            Processor::Amd64 if kvm_works() => ["-machine", "q35", "-accel", "kvm", "-cpu", "host"],
            // QEMU 7.2 cannot emulate cmpxchg16b as kernels use it (double fault), and they do well without. Nor should
            // they think that `rep movsb` is fast: it is emulated byte by byte.
            Processor::Amd64 => [
                "-machine",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max,-cx16,-erms,-fsrm",
            ],
        });
        command.arg("-kernel").arg(machine.image);
        command.arg("-initrd").arg(machine.initramfs);
        let console = match self.processor {
            Processor::Amd64 => "console=ttyS0",
            Processor::Arm64 => "console=ttyAMA0",
        };
        command.args(["-append", &format!("{console} {}", machine.command_line)]);
        let mut file = OsString::from("file:");
        file.push(log);
        command.arg("-serial").arg(file).args(["-serial", "stdio"]);
        command
    }
}

/// Whether the machine's hardware virtualization can be used.
///
/// Where the module `kvm_pvm` gives it, in a virtual machine without nested virtualization, guests hang at boot.
fn kvm_works() -> bool {
    !Path::new("/sys/module/kvm_pvm").exists() && OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// The kernel's command line.
///
/// A kernel that panics or oopses ends the run at once. The BPF LSM is named, since 5.10 starts without it. All emulated
/// processors tell the time from one counter: 5.10 and 6.1 doubt that, and would ask another, emulated clock instead,
/// which takes long.
pub const COMMAND_LINE: &str = "panic=-1 oops=panic loglevel=5 mitigations=off tsc=reliable \
                                lsm=lockdown,capability,yama,bpf rdinit=/init -- guest";

/// What to boot.
pub struct Machine<'a> {
    /// The kernel's image.
    pub image: &'a Path,
    /// Its first file system.
    pub initramfs: &'a Path,
    /// Its command line.
    pub command_line: &'a str,
    /// How many CPUs it has.
    pub cpus: usize,
}

/// When a guest is taken for hung.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Without a word from it for so long.
    pub silence: Duration,
    /// Running for so long.
    pub whole: Duration,
}

impl Limits {
    /// Long enough for a slow machine without hardware virtualization: in silence a single test goes on, whose own
    /// patience ends before, so that it can say what it has waited for.
    pub const USUAL: Self = Self {
        silence: Duration::from_mins(7),
        whole: Duration::from_mins(30),
    };
}

/// How a guest has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// All done.
    Done,
    /// Otherwise, in these words, with the last lines of the console.
    Failed { why: String, console: Vec<String> },
}

/// Boots `machine` and hands each of its messages to `hear`; `console` is the file for the kernel's console.
pub fn boot(qemu: &Qemu, machine: &Machine, console: &Path, limits: Limits, hear: impl FnMut(Message)) -> Result<End> {
    // What an earlier guest has written there must not be taken for this one's.
    File::create(console).with_context(|| format!("{} cannot be written", console.display()))?;
    supervise(qemu.command(machine, console), console, limits, hear)
}

fn supervise(mut command: Command, console: &Path, limits: Limits, mut hear: impl FnMut(Message)) -> Result<End> {
    let log = console.with_extension("qemu");
    let errors = File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    // SAFETY: prctl is async-signal-safe, and takes no pointers here.
    unsafe {
        // An emulator that outlives us would take a processor for itself.
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let child = command
        .spawn()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    let mut emulator = Emulator { child };
    let stdout = emulator.child.stdout.take().context("QEMU has no output")?;
    let (tell, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    let started = Instant::now();
    let mut last_heard = started;
    let why = loop {
        let left = limits.whole.saturating_sub(started.elapsed());
        let silence = limits.silence.saturating_sub(last_heard.elapsed());
        match lines.recv_timeout(left.min(silence)) {
            Ok(line) => match Message::of_line(&String::from_utf8_lossy(&line)) {
                Some(Message::Done) => return Ok(End::Done),
                Some(message) => {
                    last_heard = Instant::now();
                    hear(message);
                }
                None => {}
            },
            Err(RecvTimeoutError::Disconnected) => {
                let status = emulator.child.wait().context("QEMU cannot be waited for")?;
                break ended_early(status, &log, console);
            }
            Err(RecvTimeoutError::Timeout) if left <= silence => {
                break format!("it was not done after {} s", limits.whole.as_secs());
            }
            Err(RecvTimeoutError::Timeout) => break format!("it was silent for {} s", limits.silence.as_secs()),
        }
    };
    let console = tail(&fs::read(console).unwrap_or_default());
    Ok(End::Failed { why, console })
}

fn ended_early(status: ExitStatus, log: &Path, console: &Path) -> String {
    let said = fs::read_to_string(log).unwrap_or_default();
    match (said.lines().last(), status.signal()) {
        (Some(said), _) if !status.success() => format!("QEMU failed: {said}"),
        (_, Some(signal)) => format!("QEMU was ended by signal {signal}"),
        _ => {
            let console = fs::read(console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let panic = console.lines().find_map(|line| line.split_once("Kernel panic - "));
            panic.map_or_else(
                || "the kernel has turned the machine off or restarted it".to_owned(),
                |(_, cause)| format!("the kernel has panicked, {}", cause.trim_end()),
            )
        }
    }
}

/// The last lines of a console, without what moves a terminal's cursor.
fn tail(console: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(console);
    let commands = Regex::new(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]").expect("a constant");
    let text = commands.replace_all(&text, "");
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    lines[lines.len().saturating_sub(TAIL)..].to_vec()
}

/// A running emulator, which ends with this.
struct Emulator {
    child: Child,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of an "emulator" that is a shell script, with what was heard.
    fn supervised(script: &str, limits: Limits) -> (End, Vec<Message>) {
        let folder = tempfile::tempdir().unwrap();
        let console = folder.path().join("console");
        fs::write(
            &console,
            "[ 0.1] Linux version\r\n\x1b[K[ 0.2] Kernel panic - not syncing: no init\r\n",
        )
        .unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut heard = Vec::new();
        let end = supervise(command, &console, limits, |message| heard.push(message)).unwrap();
        (end, heard)
    }

    fn why(end: End) -> String {
        match end {
            End::Failed { why, console } => {
                assert_eq!(console.last().unwrap(), "[ 0.2] Kernel panic - not syncing: no init");
                why
            }
            End::Done => panic!("it was done"),
        }
    }

    const SHORT: Limits = Limits {
        silence: Duration::from_millis(300),
        whole: Duration::from_mins(1),
    };

    #[test]
    fn a_guest_that_says_done_is_done_though_it_does_not_turn_off() {
        let (end, heard) = supervised(
            r#"echo noise; echo '{"output":"a"}'; echo '"done"'; sleep 60"#,
            Limits::USUAL,
        );
        assert_eq!(end, End::Done);
        assert_eq!(heard, [Message::Output("a".into())]);
    }

    #[test]
    fn a_silent_guest_is_ended_with_the_tail_of_its_console() {
        let (end, heard) = supervised(r#"echo '{"output":"a"}'; exec sleep 60"#, SHORT);
        assert_eq!(heard.len(), 1);
        assert!(why(end).starts_with("it was silent for"));
    }

    #[test]
    fn a_guest_that_never_ends_is_ended_though_it_talks() {
        let limits = Limits {
            whole: Duration::from_millis(300),
            ..Limits::USUAL
        };
        let (end, _) = supervised(r#"while true; do echo '{"output":"a"}'; sleep 0.05; done"#, limits);
        assert!(why(end).starts_with("it was not done after"));
    }

    #[test]
    fn a_guest_that_ends_without_being_done_is_told_with_the_reason() {
        let (end, _) = supervised("exit 0", SHORT);
        assert_eq!(why(end), "the kernel has panicked, not syncing: no init");
        let (end, _) = supervised("echo 'could not load kernel' >&2; exit 1", SHORT);
        assert_eq!(why(end), "QEMU failed: could not load kernel");
    }

    #[test]
    fn only_the_end_of_a_long_console_is_shown() {
        let console = (0..100)
            .map(|line| format!("line {line}"))
            .collect::<Vec<_>>()
            .join("\n");
        let tail = tail(console.as_bytes());
        assert_eq!(tail.len(), TAIL);
        assert_eq!(tail.last().unwrap(), "line 99");
    }
}
