//! What host and guest tell each other: a job in a file, and messages, one a line of JSON, over a serial line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the guest finds its job.
pub const JOB: &str = "/job.json";

/// What a guest has to do.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Job {
    /// The kernel modules to be loaded, each after those that it needs.
    pub modules: Vec<Module>,
    /// The programs to be run, one after the other.
    pub runs: Vec<Run>,
}

/// A kernel module.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The file in the guest.
    pub path: String,
    /// Its parameters.
    pub parameters: String,
}

/// A run of a test program.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Run {
    /// The program.
    pub program: PathBuf,
    /// Where it is started.
    pub folder: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, on top of a `PATH`.
    pub variables: Vec<(String, String)>,
}

impl Run {
    /// The same with this environment variable, instead of another value of it.
    pub fn with(&self, variable: (String, String)) -> Self {
        let mut run = self.clone();
        run.variables.retain(|(name, _)| *name != variable.0);
        run.variables.push(variable);
        run
    }
}

/// What a guest tells.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// It is up, with this kernel.
    Booted { release: String, version: String },
    /// The kernel has refused a module.
    ModuleRefused { name: String, error: String },
    /// A line that the test runner has written to its file of results.
    Result(String),
    /// A line that the tests have written to standard output or standard error.
    Output(String),
    /// A run has ended, in these words if not well.
    Ended { failure: Option<String> },
    /// All is done.
    Done,
}

impl Message {
    /// Reads a line; `None` if it is not a message, but noise on the line before the guest was up.
    pub fn of_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }

    /// The line, with its end.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("a message is made of text");
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_line() {
        for message in [
            Message::Booted {
                release: "5.10.0".into(),
                version: "#1 SMP".into(),
            },
            Message::Output("two\nlines, \"quoted\" and \u{1b}[1mbold".into()),
            Message::Ended { failure: None },
            Message::Done,
        ] {
            let line = message.to_line();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(Message::of_line(&line), Some(message));
        }
    }

    #[test]
    fn noise_is_no_message() {
        assert_eq!(Message::of_line("SeaBIOS (version 1.16)"), None);
        assert_eq!(Message::of_line(""), None);
        assert_eq!(Message::of_line("\"unknown\""), None);
    }
}
