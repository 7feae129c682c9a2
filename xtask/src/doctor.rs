//! `cargo xtask doctor`: what this machine has against what the labs need, with the mend for each thing missing.

mod checks;

use std::{fmt::Write as _, process::ExitCode};

use self::checks::{Check, Verdict};
use crate::{
    facts::Facts,
    machine::Machine,
    terminal::{self, Style},
    workspace::Workspace,
};

/// Reads the facts, judges them and prints one line a requirement. Fails if something required is missing.
pub fn run(workspace: &Workspace) -> ExitCode {
    let facts = Facts::of(&Machine::here(), workspace);
    let checks = checks::all(&facts);
    print!("{}", render(&checks, terminal::stdout()));
    if missing(&checks).is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn missing(checks: &[Check]) -> Vec<&'static str> {
    checks
        .iter()
        .filter(|check| matches!(check.verdict, Verdict::Missing { .. }))
        .map(|check| check.subject)
        .collect()
}

fn render(checks: &[Check], style: Style) -> String {
    let width = checks
        .iter()
        .map(|check| check.subject.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    // Writing to a string cannot fail.
    for check in checks {
        let subject = format!("{:width$}", check.subject);
        let (mark, found) = match &check.verdict {
            Verdict::Met(found) => (style.green("✓"), found.clone()),
            Verdict::Missing { found, .. } => (style.red("✗"), style.red(found)),
            Verdict::Open(why) => (style.dim("–"), style.dim(why)),
        };
        writeln!(text, "{mark} {subject}  {found}").ok();
        if let Verdict::Missing { mend, .. } = &check.verdict {
            writeln!(text, "  {:width$}  mend: {mend}", "").ok();
        }
    }
    text.push('\n');
    let missing = missing(checks);
    if missing.is_empty() {
        text.push_str("All that the labs need is there.\n");
    } else {
        writeln!(text, "To be mended: {}.", missing.join(", ")).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_requirement_is_a_line_and_each_mend_stands_under_it() {
        let checks = [
            Check {
                subject: "Rust",
                verdict: Verdict::Met("1.95.0".into()),
            },
            Check {
                subject: "bpf-linker",
                verdict: Verdict::Missing {
                    found: "not installed".into(),
                    mend: "cargo xtask setup".into(),
                },
            },
            Check {
                subject: "memlock",
                verdict: Verdict::Open("does not matter since 5.11".into()),
            },
        ];
        let expected = "\
✓ Rust        1.95.0
✗ bpf-linker  not installed
              mend: cargo xtask setup
– memlock     does not matter since 5.11

To be mended: bpf-linker.
";
        assert_eq!(render(&checks, Style::plain()), expected);
    }

    #[test]
    fn what_is_left_open_is_no_failure() {
        let checks = [Check {
            subject: "memlock",
            verdict: Verdict::Open("does not matter".into()),
        }];
        assert!(render(&checks, Style::plain()).ends_with("All that the labs need is there.\n"));
    }
}
