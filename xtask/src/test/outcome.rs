//! What came of a test on the kernel, as the tests' own runner tells it: `testbed::harness`, a line of JSON for each.

use serde::Deserialize;

/// The environment variable that names the file for these lines.
pub const RESULTS: &str = "EBPF_KERNEL_RESULTS";

/// How a test has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// As it should, though in another way than on a newer kernel: in which, and why.
    FellBack(String),
    /// Not as it should, in these words.
    Failed(String),
    /// Not run, for this reason.
    Unsupported(String),
}

/// The reason of a test that was not run since it is about what happens between two CPUs.
const ONE_CPU: &str = "two CPUs are needed, and there is one";

impl Outcome {
    /// Whether a machine with two CPUs would have run it.
    pub fn needs_two_cpus(&self) -> bool {
        matches!(self, Self::Unsupported(why) if why == ONE_CPU)
    }
}

/// A line of the file.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// A test has ended.
    Test {
        name: String,
        outcome: Outcome,
        seconds: f64,
    },
    /// The runner has come to its end.
    Ended,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Raw {
    Test {
        test: String,
        outcome: String,
        why: Option<String>,
        seconds: f64,
    },
    Ended {
        ended: bool,
    },
}

impl Line {
    /// Reads a line; `None` if it is none.
    pub fn of(line: &str) -> Option<Self> {
        match serde_json::from_str(line).ok()? {
            Raw::Ended { ended } => ended.then_some(Self::Ended),
            Raw::Test {
                test,
                outcome,
                why,
                seconds,
            } => {
                let why = why.unwrap_or_default();
                let outcome = match outcome.as_str() {
                    "passed" => Outcome::Passed,
                    "failed" => Outcome::Failed(why),
                    "fell_back" => Outcome::FellBack(why),
                    "unsupported" => Outcome::Unsupported(why),
                    "needs_two_cpus" => Outcome::Unsupported(ONE_CPU.into()),
                    _ => return None,
                };
                Some(Self::Test {
                    name: test,
                    outcome,
                    seconds,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(line: &str) -> Outcome {
        match Line::of(line) {
            Some(Line::Test { outcome, .. }) => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_outcome_is_read_from_its_line() {
        let line = r#"{"outcome":"passed","seconds":0.25,"test":"it_counts","why":null}"#;
        let expected = Line::Test {
            name: "it_counts".into(),
            outcome: Outcome::Passed,
            seconds: 0.25,
        };
        assert_eq!(Line::of(line), Some(expected));
        let line = |outcome: &str| format!(r#"{{"outcome":"{outcome}","seconds":1,"test":"a","why":"no TCX"}}"#);
        assert_eq!(outcome(&line("failed")), Outcome::Failed("no TCX".into()));
        assert_eq!(outcome(&line("fell_back")), Outcome::FellBack("no TCX".into()));
        assert_eq!(outcome(&line("unsupported")), Outcome::Unsupported("no TCX".into()));
        assert!(outcome(&line("needs_two_cpus")).needs_two_cpus());
        assert!(!outcome(&line("unsupported")).needs_two_cpus());
        assert_eq!(Line::of(r#"{"ended":true}"#), Some(Line::Ended));
    }

    #[test]
    fn another_line_is_none() {
        for line in ["", "test a ... ok", "{}", r#"{"outcome":"new","seconds":1,"test":"a"}"#] {
            assert_eq!(Line::of(line), None, "{line}");
        }
    }
}
