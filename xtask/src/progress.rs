//! Long steps, run so that a user sees them move: one line with the seconds on a terminal, plain lines elsewhere.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, PipeReader, Write as _, stderr},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::terminal;

const REDRAWN_EVERY: Duration = Duration::from_millis(120);
const REPORTED_EVERY: Duration = Duration::from_secs(15);
const SPINNER: [char; 8] = ['⠋', '⠙', '⠸', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// Runs `command` with its output kept in `log`; `what` names the step to the user.
///
/// The error is one line: the last thing the command called an error, and where the whole output lies.
pub fn run(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    }
    let file = File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;

    let (reader, writer) = io::pipe().context("no pipe for the output of a command")?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    // The command holds the pipe's write end too; were it kept, the reader would wait for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let lines = Arc::new(Mutex::new(Lines::default()));
    let copying = thread::spawn({
        let lines = Arc::clone(&lines);
        move || copy(reader, file, &lines)
    });

    let mut line = Line::new(what);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        line.show(started.elapsed(), &last(&lines).newest);
        thread::sleep(REDRAWN_EVERY);
    };
    // A grandchild may keep the pipe open; what it writes is of no interest any more once the command has failed.
    if status.success() {
        copying.join().ok();
    } else {
        thread::sleep(REDRAWN_EVERY);
    }
    line.finish(status, started.elapsed());
    if status.success() {
        return Ok(());
    }
    let lines = last(&lines);
    bail!(
        "{what} failed: {} (all of its output is in {})",
        lines.cause(),
        log.display()
    )
}

/// What a command has written, as far as it matters here.
#[derive(Clone, Default)]
struct Lines {
    newest: String,
    error: Option<String>,
}

impl Lines {
    fn add(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        line.clone_into(&mut self.newest);
        let error = line
            .strip_prefix("error: ")
            .or_else(|| line.strip_prefix("E: "))
            .or_else(|| line.starts_with("error[").then_some(line))
            // As tar says it inside dpkg-deb, which only says that tar has failed.
            .or_else(|| line.ends_with("No space left on device").then_some(line));
        if let Some(error) = error {
            // The first one: what follows is mostly its consequence.
            self.error.get_or_insert_with(|| error.to_owned());
        }
    }

    fn cause(&self) -> &str {
        match (&self.error, self.newest.as_str()) {
            (Some(error), _) => error,
            (None, "") => "it wrote nothing",
            (None, newest) => newest,
        }
    }
}

fn last(lines: &Mutex<Lines>) -> Lines {
    lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn copy(reader: PipeReader, mut log: File, lines: &Mutex<Lines>) {
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        // A log that cannot be written must not stop the step that it describes.
        writeln!(log, "{line}").ok();
        lines.lock().unwrap_or_else(PoisonError::into_inner).add(&line);
    }
}

/// The line by which a step shows that it moves.
struct Line<'a> {
    what: &'a str,
    width: Option<usize>,
    turns: usize,
    reported: Duration,
}

impl<'a> Line<'a> {
    fn new(what: &'a str) -> Self {
        let width = terminal::width();
        if width.is_none() {
            eprintln!("  {what} …");
        }
        Self {
            what,
            width,
            turns: 0,
            reported: Duration::ZERO,
        }
    }

    fn show(&mut self, elapsed: Duration, newest: &str) {
        if let Some(width) = self.width {
            let spinner = SPINNER[self.turns % SPINNER.len()];
            self.turns += 1;
            let text = format!("  {spinner} {} ({} s)  {newest}", self.what, elapsed.as_secs());
            let text: String = text
                .chars()
                .filter(|c| !c.is_control())
                .take(width.saturating_sub(1))
                .collect();
            eprint!("\r\x1b[2K{text}");
            stderr().flush().ok();
        } else if elapsed >= self.reported + REPORTED_EVERY {
            self.reported = elapsed;
            eprintln!("    … {} s", elapsed.as_secs());
        }
    }

    fn finish(&self, status: ExitStatus, elapsed: Duration) {
        let style = terminal::stderr();
        if self.width.is_some() {
            eprint!("\r\x1b[2K");
        }
        let mark = if status.success() {
            style.green("✓")
        } else {
            style.red("✗")
        };
        eprintln!("  {mark} {} ({} s)", self.what, elapsed.as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_step_that_succeeds_leaves_its_output_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log/step");
        run("a step", &mut shell("echo one; echo two >&2"), &log).unwrap();
        assert_eq!(fs::read_to_string(log).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_step_that_fails_names_the_first_error_and_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("step");
        let script = "echo Compiling; echo 'error: no linker' >&2; echo 'error: could not compile' >&2; exit 1";
        let error = run("building", &mut shell(script), &log).unwrap_err().to_string();
        let expected = format!("building failed: no linker (all of its output is in {})", log.display());
        assert_eq!(error, expected);
    }

    #[test]
    fn a_full_disk_is_the_cause_and_not_what_comes_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo 'tar: ./boot: Cannot write: No space left on device'; echo 'tar has failed'; exit 2";
        let error = run("unpacking", &mut shell(script), &folder.path().join("step")).unwrap_err();
        let expected = "unpacking failed: tar: ./boot: Cannot write: No space left on device (";
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn a_step_that_fails_without_an_error_names_its_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let error = run(
            "building",
            &mut shell("echo giving up; exit 3"),
            &folder.path().join("step"),
        )
        .unwrap_err();
        assert!(error.to_string().starts_with("building failed: giving up ("));
    }
}
