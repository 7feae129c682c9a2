//! Programs that run beside a test, and end with it.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read},
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Error, Result, patience, wait::wait_for};

/// Starts a command of [`Host::command`](crate::Host::command), which dies with this process, not with this thread.
///
/// The kernel ties such a child to the thread that started it; this one never ends.
pub fn spawn(command: Command) -> Result<Child> {
    type Request = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, to_do) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in to_do {
                // Whoever asked may be gone.
                let _ = answer.send(command.spawn());
            }
        });
        requests
    });
    let what = format!("starting {}", command.get_program().display());
    let (answer, child) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts programs has ended");
    let sent = spawner.send((command, answer));
    let child = match sent {
        Ok(()) => child.recv().unwrap_or_else(|_| Err(gone())),
        Err(_) => Err(gone()),
    };
    child.map_err(|error| Error::system(what, error))
}

/// Copies a program to where anybody may run it.
///
/// Not by [`std::fs::copy`]: a child that another thread starts meanwhile has the open file too, until it is another
/// program itself, and so long the copy cannot be run ("Text file busy").
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result {
    let (from, to) = (from.as_ref(), to.as_ref());
    let what = || format!("copying {} to {}", from.display(), to.display());
    let mut copy = Command::new("sh");
    copy.args(["-c", r#"cat "$0" > "$1""#]).args([from, to]);
    let status = copy.status().map_err(|error| Error::system(what(), error))?;
    if !status.success() {
        return Err(Error::system(what(), io::Error::other(status.to_string())));
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(|error| Error::system(what(), error))
}

/// A program that runs beside the test, and whose output is collected. Dropping this kills it.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
}

/// What a program has printed, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

#[derive(Debug, Default)]
struct Output {
    text: Mutex<Text>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    stdout: String,
    stderr: String,
    /// How many of the two have been closed: both, when the program has ended.
    closed: u8,
}

impl Running {
    /// Starts a command with its output collected and without input.
    pub fn start(mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let name = command.get_program().display().to_string();
        let mut child = spawn(command)?;
        let output = Arc::new(Output::default());
        let stdout = child
            .stdout
            .take()
            .map(|pipe| output.read(pipe, |text| &mut text.stdout));
        let stderr = child
            .stderr
            .take()
            .map(|pipe| output.read(pipe, |text| &mut text.stderr));
        Ok(Self {
            name,
            child,
            output,
            readers: stdout.into_iter().chain(stderr).collect(),
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has printed `text`, to either output. The error tells what it printed instead, at once if it has
    /// ended.
    pub fn wait_for(&self, text: &str, timeout: Duration) -> Result<()> {
        let timeout = patience(timeout);
        let printed = self.output.lock();
        let (printed, waited) = self
            .output
            .changed
            .wait_timeout_while(printed, timeout, |printed| !printed.has(text) && printed.closed < 2)
            .unwrap_or_else(PoisonError::into_inner);
        if !printed.has(text) {
            if !waited.timed_out() {
                let said = format!("it has ended, and printed:\n{}{}", printed.stdout, printed.stderr);
                let what = format!("waiting for {} to print {text:?}", self.name);
                return Err(Error::system(what, io::Error::other(said)));
            }
            let what = format!(
                "{} to print {text:?}; it printed:\n{}{}",
                self.name, printed.stdout, printed.stderr
            );
            return Err(Error::TimedOut {
                what,
                waited_s: timeout.as_secs(),
            });
        }
        Ok(())
    }

    /// What it has printed to standard output so far.
    pub fn stdout(&self) -> String {
        self.output.lock().stdout.clone()
    }

    /// What it has printed to standard error so far.
    pub fn stderr(&self) -> String {
        self.output.lock().stderr.clone()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it catches a signal, which would end it at once before: a program may be at work before it is prepared
    /// for being asked to stop.
    pub fn wait_until_it_catches(&self, signal: Signal) -> Result<()> {
        let path = format!("/proc/{}/status", self.id());
        wait_for(&format!("{} to catch {signal}", self.name), || {
            let status = fs::read_to_string(&path).map_err(|error| Error::system(format!("reading {path}"), error))?;
            Ok(catches(&status, signal))
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(&self.child), signal)
            .map_err(|errno| Error::system(format!("sending {signal} to {}", self.name), errno))
    }

    /// Asks it to end, as Ctrl-C does, and waits for it; kills it when it has not ended in time, which is an error.
    pub fn interrupt(self, timeout: Duration) -> Result<Finished> {
        self.signal(Signal::SIGINT)?;
        self.wait(timeout)
    }

    /// Waits until it ends by itself; kills it when it has not ended in time, which is an error.
    pub fn wait(mut self, timeout: Duration) -> Result<Finished> {
        let timeout = patience(timeout);
        let start = Instant::now();
        let status = loop {
            let status = self.child.try_wait();
            match status.map_err(|error| Error::system(format!("waiting for {}", self.name), error))? {
                Some(status) => break status,
                None if start.elapsed() > timeout => {
                    return Err(Error::TimedOut {
                        what: format!("{} to end; it printed:\n{}{}", self.name, self.stdout(), self.stderr()),
                        waited_s: timeout.as_secs(),
                    });
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let text = std::mem::take(&mut *self.output.lock());
        Ok(Finished {
            status,
            stdout: text.stdout,
            stderr: text.stderr,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Text {
    fn has(&self, text: &str) -> bool {
        self.stdout.contains(text) || self.stderr.contains(text)
    }
}

impl Output {
    fn read(
        self: &Arc<Self>,
        pipe: impl Read + Send + 'static,
        which: impl Fn(&mut Text) -> &mut String + Send + 'static,
    ) -> JoinHandle<()> {
        let output = Arc::clone(self);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                which(&mut output.lock()).push_str(&String::from_utf8_lossy(&line));
                output.changed.notify_all();
                line.clear();
            }
            output.lock().closed += 1;
            output.changed.notify_all();
        })
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a signal is in the mask `SigCgt` of `/proc/PID/status` (`proc_pid_status(5)`).
fn catches(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (signal as u32 - 1) != 0)
}

pub(crate) fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// The exit status that a shell would report: the program's own, or 128 and the signal's number.
pub(crate) fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_are_caught_are_read_from_the_mask() {
        let status = "Name:\tsleep\nSigIgn:\tffffffffffffffff\nSigCgt:\t0000000000004002\n";
        assert!(catches(status, Signal::SIGINT) && catches(status, Signal::SIGTERM));
        assert!(!catches(status, Signal::SIGHUP));
        assert!(!catches("", Signal::SIGINT));
    }
}
