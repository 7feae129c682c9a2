//! A pseudo-terminal, for testing what a program shows on one and how it takes what is typed.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::{OpenptyResult, Winsize, openpty},
    sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr},
    unistd::setsid,
};

use crate::{Error, Result, patience, process::spawn};

/// A program with a terminal of its own for input, output and errors. Dropping this kills it.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Starts a command on a terminal of this size. What is typed is not echoed, and Ctrl-C throws nothing away: what the
    /// program shows is all that is shown, wherever it happens to be drawing.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Result<Self> {
        let failed = |error: std::io::Error| Error::system("making a terminal", error);
        let pty = open(columns, rows).map_err(|errno| failed(errno.into()))?;
        command
            .stdin(Stdio::from(pty.slave.try_clone().map_err(failed)?))
            .stdout(Stdio::from(pty.slave.try_clone().map_err(failed)?))
            .stderr(Stdio::from(pty.slave));
        // SAFETY: between fork and exec only async-signal-safe system calls are made.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                // Standard input becomes the controlling terminal, so that Ctrl-C is a signal.
                let taken = libc::ioctl(0, libc::TIOCSCTTY, 0);
                Errno::result(taken).map(drop).map_err(Into::into)
            });
        }
        let child = spawn(command)?;
        let keyboard = File::from(pty.master);
        let shown = Arc::<Mutex<String>>::default();
        let mut screen = keyboard.try_clone().map_err(failed)?;
        let reader = thread::spawn({
            let shown = Arc::clone(&shown);
            move || {
                let mut buffer = [0; 4096];
                // When the last program that has it open closes it, reading fails (EIO).
                while let Ok(length @ 1..) = screen.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    shown.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                }
            }
        });
        Ok(Self {
            child,
            keyboard,
            shown,
            reader,
        })
    }

    /// All that was shown so far, control sequences included.
    pub fn shown(&self) -> String {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `text` was shown.
    pub fn wait_for(&self, text: &str, timeout: Duration) -> Result {
        let timeout = patience(timeout);
        let start = Instant::now();
        while !self.shown().contains(text) {
            if start.elapsed() > timeout {
                return Err(self.in_vain(&format!("{text:?} to be shown"), timeout));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Types something; `\x03` is Ctrl-C.
    pub fn type_in(&mut self, text: &str) -> Result {
        self.keyboard
            .write_all(text.as_bytes())
            .map_err(|error| Error::system("typing on a terminal", error))
    }

    /// Waits until the program ends; returns how, and all that was shown.
    pub fn wait(mut self, timeout: Duration) -> Result<(ExitStatus, String)> {
        let timeout = patience(timeout);
        let start = Instant::now();
        loop {
            let status = self.child.try_wait();
            match status.map_err(|error| Error::system("waiting for a program on a terminal", error))? {
                // The last of what it has shown may not have been read yet.
                Some(status) if self.reader.is_finished() => return Ok((status, self.shown())),
                Some(_) if start.elapsed() > timeout => return Err(self.in_vain("a terminal to be closed", timeout)),
                None if start.elapsed() > timeout => return Err(self.in_vain("a program to end", timeout)),
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn in_vain(&self, what: &str, waited: Duration) -> Error {
        Error::TimedOut {
            what: format!("{what}; this was:\n{}", self.shown()),
            waited_s: waited.as_secs(),
        }
    }
}

/// Opens a pseudo-terminal, which programs that are started meanwhile do not keep open.
fn open(columns: u16, rows: u16) -> nix::Result<OpenptyResult> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(Some(&size), None)?;
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let mut settings = tcgetattr(&pty.slave)?;
    settings.local_flags.remove(LocalFlags::ECHO);
    settings.local_flags.insert(LocalFlags::NOFLSH);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &settings)?;
    Ok(pty)
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
