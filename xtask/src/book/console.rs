//! The guide's console output: every block is a file in `book/console` that a command wrote, and writes again.

use std::{
    env, fs,
    fs::File,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use regex::Regex;
use serde::Deserialize;

use super::{Checked, Fault, Tally, diff};
use crate::{cargo, privilege::Privilege, workspace::Workspace};

/// Where the blocks are defined.
pub const DEFINITIONS: &str = "book/console.toml";
/// Where their output is kept.
pub const FOLDER: &str = "book/console";

/// How long a command may take. Those of the guide take seconds, unless they wait for another cargo; this ends one that
/// hangs.
const TIME_LIMIT: Duration = Duration::from_mins(10);

/// `book/console.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definitions {
    /// The blocks.
    #[serde(rename = "console")]
    pub blocks: Vec<Block>,
}

/// A command whose output the guide shows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// The name of its file in `book/console`, without `.txt`.
    pub name: String,
    /// The command, as a reader would type it in the project's folder: one command, or a pipeline.
    pub command: String,
    /// Whether it needs root. Where there is none, and none to be had without a password, it is not compared.
    #[serde(default)]
    root: bool,
    /// The series of kernels, such as `6.18`, for output that differs between them. On another one it is not compared.
    kernel: Option<String>,
    /// The packages to build before, for a command that runs what lies in `target/debug` or `target/release`.
    #[serde(default)]
    build: Vec<String>,
    /// What of its output is shown.
    #[serde(default)]
    show: Streams,
    /// The exit status that it has to end with.
    #[serde(default)]
    status: i32,
    /// What differs from run to run, and what stands for it.
    #[serde(default)]
    replace: Vec<Replacement>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Streams {
    #[default]
    Both,
    Output,
    Errors,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replacement {
    pattern: String,
    with: String,
}

impl Definitions {
    /// Those of the guide in `root`.
    pub fn read(root: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(root.join(DEFINITIONS)).with_context(|| format!("{DEFINITIONS} cannot be read"))?;
        toml::from_str(&text).with_context(|| format!("{DEFINITIONS} cannot be understood"))
    }
}

/// Runs every command again and compares, or writes what it printed where `bless` says so.
pub(super) fn check(workspace: &Workspace, bless: bool, tally: &mut Tally) -> Result<()> {
    let definitions = Definitions::read(workspace.root())?;
    let mut faults = Vec::new();
    let mut compared = 0;
    for block in &definitions.blocks {
        if let Err(why) = block.can_run_here() {
            Tally::left_out("console", &format!("{} was not compared: {why:#}", block.name));
            continue;
        }
        faults.extend(block.check(workspace, bless)?);
        compared += 1;
    }
    let done = if bless { "written" } else { "compared" };
    let summary = format!("{compared} commands were run, and what they printed was {done}");
    tally.add("console", &Checked { summary, faults });
    Ok(())
}

impl Block {
    fn can_run_here(&self) -> Result<()> {
        if let Some(series) = &self.kernel {
            let release =
                fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release is not known")?;
            if !is_of_series(release.trim(), series) {
                bail!("it is about Linux {series}, and this is {}", release.trim());
            }
        }
        if self.root {
            Privilege::obtain(&format!("`{}`", self.command))?;
        }
        Ok(())
    }

    fn check(&self, workspace: &Workspace, bless: bool) -> Result<Option<Fault>> {
        let file = Path::new(FOLDER).join(format!("{}.txt", self.name));
        let path = workspace.root().join(&file);
        let printed = self.regenerate(workspace)?;
        if bless {
            fs::write(&path, printed).with_context(|| format!("{} cannot be written", file.display()))?;
            return Ok(None);
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        let difference = diff::lines(&kept, &printed);
        if difference.is_empty() {
            return Ok(None);
        }
        let text = format!(
            "`{}` prints something else now; if that is right: `cargo xtask book --bless`\n    {}",
            self.command,
            difference.join("\n    ")
        );
        Ok(Some(Fault::new(file, 0, text)))
    }

    /// The file's text: the command as it is typed, and what it prints now.
    fn regenerate(&self, workspace: &Workspace) -> Result<String> {
        if !self.build.is_empty() {
            let packages: Vec<_> = self.build.iter().map(String::as_str).collect();
            let mut args = vec!["--quiet"];
            if self.command.contains("target/release/") {
                args.push("--release");
            }
            cargo::build_programs(workspace, &packages.join(", "), &packages, &args)?;
        }
        let printed = self.run(workspace)?;
        Ok(format!("$ {}\n{}", self.command, self.normalise(&printed)?))
    }

    fn run(&self, workspace: &Workspace) -> Result<String> {
        let folder = workspace.target().join("book");
        fs::create_dir_all(&folder)?;
        let shown = folder.join(format!("{}.out", self.name));
        let out = File::create(&shown)?;
        let mut command = Command::new("sh");
        command
            .args(["-c", &runnable(&self.command)?])
            .current_dir(workspace.root())
            .stdin(Stdio::null())
            .envs([("NO_COLOR", "1"), ("LC_ALL", "C.UTF-8"), ("TERM", "dumb")])
            .env_remove("RUST_LOG")
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if self.show != Streams::Errors {
            command.stdout(out.try_clone()?);
        }
        if self.show != Streams::Output {
            command.stderr(out);
        }
        let status = self.wait(&mut command)?;
        let printed = fs::read_to_string(&shown).with_context(|| format!("`{}` printed no text", self.command))?;
        if status != Some(self.status) {
            let ended = status.map_or("a signal".into(), |status| format!("status {status}"));
            bail!(
                "`{}`, which the guide shows, ended with {ended} and not with status {}; it printed: {}",
                self.command,
                self.status,
                printed.trim()
            );
        }
        Ok(printed)
    }

    fn wait(&self, command: &mut Command) -> Result<Option<i32>> {
        let mut child = command.spawn().context("sh cannot be started")?;
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code());
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("`{}`, which the guide shows, does not end", self.command);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn normalise(&self, printed: &str) -> Result<String> {
        let mut text = String::new();
        for line in printed.trim_end().lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for replacement in &self.replace {
            let pattern = Regex::new(&format!("(?m){}", replacement.pattern))
                .with_context(|| format!("{DEFINITIONS}: a pattern of {} is wrong", self.name))?;
            text = pattern.replace_all(&text, replacement.with.as_str()).into_owned();
        }
        Ok(text)
    }
}

/// Whether a kernel's release, such as `6.1.2-amd64`, is of a series such as `6.1`.
fn is_of_series(release: &str, series: &str) -> bool {
    release
        .strip_prefix(series)
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

/// The command as it is run here: `cargo xtask` is this very program, and `sudo` is left out where we are root.
fn runnable(command: &str) -> Result<String> {
    let xtask = env::current_exe().context("this program's own path is not known")?;
    let command = command.replacen("cargo xtask ", &format!("'{}' ", xtask.display()), 1);
    let command = match command.strip_prefix("sudo ") {
        Some(rest) if crate::privilege::is_root() => rest,
        _ => &command,
    };
    // So that ending the shell, should it take too long, ends the command.
    Ok(format!("exec {command}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(replace: &[(&str, &str)]) -> Block {
        Block {
            name: "example".into(),
            command: "true".into(),
            root: false,
            kernel: None,
            build: Vec::new(),
            show: Streams::Both,
            status: 0,
            replace: replace
                .iter()
                .map(|(pattern, with)| Replacement {
                    pattern: (*pattern).into(),
                    with: (*with).into(),
                })
                .collect(),
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = "[[console]]\nname = \"a\"\ncommand = \"true\"\nexit = 1\n";
        let error = toml::from_str::<Definitions>(text).err().unwrap().to_string();
        assert!(error.contains("unknown field `exit`"), "{error}");
    }

    #[test]
    fn what_differs_from_run_to_run_is_replaced_and_trailing_space_goes() {
        let block = block(&[(r"\d+ packets/s", "R packets/s")]);
        let text = block.normalise("12 packets, 7 packets/s  \n\n").unwrap();
        assert_eq!(text, "12 packets, R packets/s\n");
    }

    #[test]
    fn a_kernel_is_of_its_series_and_of_no_other() {
        assert!(is_of_series("6.1.2-amd64", "6.1") && is_of_series("6.1", "6.1"));
        assert!(!is_of_series("6.18.4", "6.1") && !is_of_series("7.6.1", "6.1"));
    }

    #[test]
    fn a_command_that_ends_otherwise_than_expected_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut block = block(&[]);
        block.command = "sh -c 'echo broken; exit 3'".into();
        let error = block.run(&Workspace::at(folder.path())).unwrap_err().to_string();
        assert!(error.contains("status 3") && error.contains("broken"), "{error}");
        block.status = 3;
        assert_eq!(block.run(&Workspace::at(folder.path())).unwrap(), "broken\n");
    }

    #[test]
    fn only_the_wanted_stream_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let mut block = block(&[]);
        block.command = "sh -c 'echo out; echo err >&2'".into();
        for (show, expected) in [
            (Streams::Both, "out\nerr\n"),
            (Streams::Output, "out\n"),
            (Streams::Errors, "err\n"),
        ] {
            block.show = show;
            assert_eq!(block.run(&Workspace::at(folder.path())).unwrap(), expected);
        }
    }

    #[test]
    fn no_replacement_of_the_guide_hides_a_number_of_packets() {
        let workspace = Workspace::here();
        let count = Regex::new(r"packets=\d+|[\d,]+ packets\b").unwrap();
        for block in Definitions::read(workspace.root()).unwrap().blocks {
            let kept = fs::read_to_string(workspace.root().join(FOLDER).join(format!("{}.txt", block.name))).unwrap();
            for found in count.find_iter(&kept) {
                // One packet more must be seen.
                let changed = found.as_str().replacen(|digit: char| digit.is_ascii_digit(), "987", 1);
                let text = format!("{}{changed}{}", &kept[..found.start()], &kept[found.end()..]);
                assert_ne!(
                    block.normalise(&text).unwrap(),
                    block.normalise(&kept).unwrap(),
                    "{}: {:?} is hidden",
                    block.name,
                    found.as_str()
                );
            }
        }
    }
}
