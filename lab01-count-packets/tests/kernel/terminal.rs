//! The command on a terminal: a pseudo-terminal of 60 columns and 12 rows, as a user would sit in front of it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    pty::{Winsize, openpty},
    unistd::setsid,
};
use testbed::{End, Host, Result, traffic::Flood};

use crate::lab::{self, PATIENCE};

testbed::listed_tests![
    the_table_is_redrawn_in_place_and_cut_to_the_terminal,
    log_lines_stand_above_the_table,
    ctrl_c_typed_on_the_terminal_ends_it_politely,
];

const COLUMNS: usize = 60;
const ROWS: usize = 12;

/// What crossterm writes to go up and to clear everything below.
const CLEAR_BELOW: &str = "\x1b[J";

/// The command with a terminal for its input, its output and its errors.
struct OnTerminal {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl OnTerminal {
    fn start(end: &End, args: &[&str]) -> Self {
        let size = Winsize {
            ws_row: ROWS as u16,
            ws_col: COLUMNS as u16,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        let mut command = lab::on(end, args);
        command
            .stdin(Stdio::from(pty.slave.try_clone().unwrap()))
            .stdout(Stdio::from(pty.slave.try_clone().unwrap()))
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
        let child = testbed::spawn(command).unwrap();
        let keyboard = File::from(pty.master);
        let shown = Arc::<Mutex<String>>::default();
        let reader = thread::spawn({
            let mut screen = keyboard.try_clone().unwrap();
            let shown = Arc::clone(&shown);
            move || {
                let mut buffer = [0; 4096];
                // The last program that has it open closes the terminal: an error (EIO).
                while let Ok(length @ 1..) = screen.read(&mut buffer) {
                    shown
                        .lock()
                        .unwrap()
                        .push_str(&String::from_utf8_lossy(&buffer[..length]));
                }
            }
        });
        Self {
            child,
            keyboard,
            shown,
            reader: Some(reader),
        }
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    fn wait_for(&self, text: &str) {
        let start = Instant::now();
        while !self.shown().contains(text) {
            assert!(
                start.elapsed() < testbed::patience(PATIENCE),
                "waited in vain for {text:?}:\n{}",
                self.shown()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Types Ctrl-C; returns whether the command ended with success, and all that was shown.
    fn ctrl_c(mut self) -> (bool, String) {
        self.keyboard.write_all(b"\x03").unwrap();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                start.elapsed() < testbed::patience(PATIENCE),
                "it does not end:\n{}",
                self.shown()
            );
            thread::sleep(Duration::from_millis(10));
        };
        // The last of it may not have been read yet; the terminal is closed now, which ends the reading.
        self.reader.take().unwrap().join().unwrap();
        (status.success(), self.shown())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cable() -> Result<(End, End)> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    Ok((link.left, link.right))
}

fn the_table_is_redrawn_in_place_and_cut_to_the_terminal() -> Result {
    let (client, server) = cable()?;
    let terminal = OnTerminal::start(&server, &["--interval", "100ms"]);
    terminal.wait_for("No packet has arrived yet.");
    // More sources than rows, with rows longer than the terminal is wide.
    Flood::new(&client, &server).ipv6().sources(30).count(300).send()?;
    terminal.wait_for(": 300 packets");
    // The last line that fits: the drawing is complete, so that the echo of Ctrl-C does not make a line longer.
    terminal.wait_for("\n2001:db8:99::8 ");
    let (succeeded, shown) = terminal.ctrl_c();
    assert!(succeeded);

    let drawings: Vec<&str> = shown.split(CLEAR_BELOW).collect();
    assert!(drawings.len() > 2, "{shown:?}");
    for drawing in &drawings {
        // What is left of the next "go up" belongs to the next drawing.
        let lines: Vec<&str> = drawing.lines().filter(|line| !line.contains('\x1b')).collect();
        assert!(lines.len() < ROWS, "{} lines on {ROWS} rows: {drawing:?}", lines.len());
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= COLUMNS, "{widest} columns of {COLUMNS}: {drawing:?}");
    }
    let last = drawings.last().unwrap();
    assert!(
        last.starts_with("eth0, native XDP, ") && last.contains(": 300 packets, 23.4 KiB"),
        "{last:?}"
    );
    assert!(last.contains("2001:db8:99::1 "), "{last:?}");
    // Each drawing goes up by as many lines as the one before had.
    for pair in drawings.windows(2) {
        let lines = pair[0].matches("\r\n").count();
        assert!(
            pair[0].contains(&format!("\x1b[{lines}A")),
            "{lines} lines up: {:?}",
            pair[0]
        );
    }
    Ok(())
}

fn log_lines_stand_above_the_table() -> Result {
    let (client, server) = cable()?;
    let terminal = OnTerminal::start(&server, &["--interval", "100ms"]);
    terminal.wait_for("No packet has arrived yet.");
    client
        .host
        .inject("eth0", &client.frame_to(&server).ether_type(0x0800).build())?;
    terminal.wait_for("ipv4-truncated, 14 bytes");
    // The drawing is complete, so that the echo of Ctrl-C does not come in between.
    terminal.wait_for("1          14 B");
    let (succeeded, shown) = terminal.ctrl_c();
    assert!(succeeded);
    let line = format!(
        "{CLEAR_BELOW}warn: first malformed packet of its kind on this CPU: ipv4-truncated, 14 bytes\r\neth0, native"
    );
    assert!(shown.contains(&line), "{shown:?}");
    Ok(())
}

fn ctrl_c_typed_on_the_terminal_ends_it_politely() -> Result {
    let (_client, server) = cable()?;
    let terminal = OnTerminal::start(&server, &["--interval", "100ms"]);
    terminal.wait_for("No packet has arrived yet.");
    let (succeeded, shown) = terminal.ctrl_c();
    assert!(succeeded, "{shown}");
    assert!(shown.ends_with("No packet has arrived yet.\r\n"), "{shown:?}");
    assert!(!server.has_xdp()?);
    Ok(())
}
