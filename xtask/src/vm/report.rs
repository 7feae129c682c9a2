//! What the tests have said, by kernel, package and test.

use std::{collections::BTreeMap, time::Duration};

use super::kernel;
use crate::{
    kernels::Outcomes,
    test::{Outcome, Tally},
};

/// What came of one kernel.
#[derive(Debug, Default)]
pub struct KernelReport {
    /// What the user called it.
    pub name: String,
    /// The release that it says it is, once it was up.
    pub release: Option<String>,
    /// The outcomes by package and test.
    pub tests: Outcomes,
    /// What went wrong beside the tests, a line each.
    pub failures: Vec<String>,
    /// How long its guests have run.
    pub took: Option<Duration>,
}

impl KernelReport {
    /// Whether it is a kernel of Debian, not one given as a file.
    pub fn is_of_debian(&self) -> bool {
        !kernel::is_image(&self.name)
    }

    /// How many tests passed, failed and were skipped; what went wrong beside them counts as failed.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally {
            failed: self.failures.len() as u64,
            ..Tally::default()
        };
        for outcome in self.tests.values() {
            match outcome {
                Outcome::Passed | Outcome::FellBack(_) => tally.passed += 1,
                Outcome::Failed(_) => tally.failed += 1,
                Outcome::Unsupported(_) => tally.skipped += 1,
            }
        }
        tally
    }

    /// How long it took, after what came of it.
    pub fn duration(&self) -> String {
        self.took
            .map_or_else(String::new, |took| format!(" in {} s", took.as_secs()))
    }

    /// The heading of its column: what the user called it, and the release where that does not say it.
    fn title(&self) -> String {
        match &self.release {
            Some(release) if !release.starts_with(&self.name) && !self.name.ends_with(release) => {
                format!("{} ({})", self.name, release.trim_end_matches("-cloud-amd64"))
            }
            _ => self.name.clone(),
        }
    }

    /// How many tests of a package passed out of those that have run, as a cell of the table.
    fn cell(&self, package: &str) -> String {
        let of_package = || self.tests.iter().filter(|((of, _), _)| of == package);
        let count = |wanted: fn(&Outcome) -> bool| of_package().filter(|(_, outcome)| wanted(outcome)).count();
        let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
        let unsupported = count(|outcome| matches!(outcome, Outcome::Unsupported(_)));
        let passed = of_package().count() - failed - unsupported;
        if passed + failed + unsupported == 0 {
            return "not run".into();
        }
        let part = |count: usize, what: &str| {
            if count > 0 {
                format!(", {count} {what}")
            } else {
                String::new()
            }
        };
        format!(
            "{passed} ok{}{}",
            part(failed, "FAILED"),
            part(unsupported, "unsupported")
        )
    }
}

/// A line for each package with a column for each kernel.
pub fn table(kernels: &[KernelReport], packages: &[String]) -> String {
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(kernels.iter().map(KernelReport::title));
    for package in packages {
        let mut row = vec![package.clone()];
        row.extend(kernels.iter().map(|kernel| kernel.cell(package)));
        rows.push(row);
    }
    let widths: Vec<_> = (0..=kernels.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// The tests that failed, fell back or are unsupported somewhere, each reason once, with the kernels that it holds on.
pub fn remarks(kernels: &[KernelReport]) -> Vec<(bool, String)> {
    let mut by_remark: BTreeMap<(bool, String), Vec<&str>> = BTreeMap::new();
    for kernel in kernels {
        for ((package, test), outcome) in &kernel.tests {
            let remark = match outcome {
                Outcome::Passed => continue,
                Outcome::FellBack(what) => (false, format!("{package}: {test} falls back to {what}")),
                Outcome::Failed(why) => (true, format!("{package}: {test} failed{}", told(why))),
                Outcome::Unsupported(reason) => (false, format!("{package}: {test} is unsupported: {reason}")),
            };
            by_remark.entry(remark).or_default().push(&kernel.name);
        }
        for failure in &kernel.failures {
            by_remark.entry((true, failure.clone())).or_default().push(&kernel.name);
        }
    }
    let remark = |((failed, remark), kernels): ((bool, String), Vec<&str>)| {
        (failed, format!("{remark} (on {})", kernels.join(", ")))
    };
    by_remark.into_iter().map(remark).collect()
}

/// The first lines of a test's message, as what follows a colon.
fn told(why: &str) -> String {
    const LINES: usize = 6;
    let mut lines: Vec<_> = why.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.len() > LINES {
        lines.truncate(LINES);
        lines.push("…");
    }
    lines.iter().enumerate().fold(String::new(), |told, (place, line)| {
        told + if place == 0 { ": " } else { "\n    " } + line
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, tests: &[(&str, &str, Outcome)]) -> KernelReport {
        let tests = tests
            .iter()
            .map(|(package, test, outcome)| (((*package).to_owned(), (*test).to_owned()), outcome.clone()));
        KernelReport {
            name: name.into(),
            tests: tests.collect(),
            ..KernelReport::default()
        }
    }

    #[test]
    fn the_table_has_a_cell_for_each_package_and_kernel() {
        let kernels = [
            report(
                "5.10",
                &[
                    ("lab01", "a", Outcome::Passed),
                    ("lab01", "b", Outcome::Unsupported("no".into())),
                ],
            ),
            report(
                "6.1",
                &[
                    ("lab01", "a", Outcome::Failed("no packet".into())),
                    ("lab01", "b", Outcome::Passed),
                ],
            ),
        ];
        let table = table(&kernels, &["lab01".into(), "lab02".into()]);
        let expected = "        5.10                  6.1\n\
                        lab01   1 ok, 1 unsupported   1 ok, 1 FAILED\n\
                        lab02   not run               not run\n";
        assert_eq!(table, expected);
    }

    #[test]
    fn a_kernel_whose_name_does_not_say_its_release_is_shown_with_it() {
        let title = |name: &str, release: &str| {
            let mut report = report(name, &[]);
            report.release = Some(release.into());
            report.title()
        };
        assert_eq!(title("5.10", "5.10.0-46-cloud-amd64"), "5.10");
        assert_eq!(title("newest", "7.2.12+deb13-cloud-amd64"), "newest (7.2.12+deb13)");
        assert_eq!(title("vmlinuz-5.10.0-46", "5.10.0-46"), "vmlinuz-5.10.0-46");
        assert_eq!(title("bzImage", "6.6.1"), "bzImage (6.6.1)");
    }

    #[test]
    fn a_failure_is_told_with_its_reason() {
        let failed = |why: &str| {
            let kernels = [report("5.10", &[("lab01", "a", Outcome::Failed(why.into()))])];
            remarks(&kernels).remove(0).1
        };
        assert_eq!(failed("no packet came"), "lab01: a failed: no packet came (on 5.10)");
        assert_eq!(
            failed("left: 1\n right: 2\n"),
            "lab01: a failed: left: 1\n    right: 2 (on 5.10)"
        );
        assert_eq!(failed(""), "lab01: a failed (on 5.10)");
        assert_eq!(failed(&"line\n".repeat(100)).lines().count(), 7);
    }

    #[test]
    fn a_remark_is_made_once_for_all_kernels_it_holds_on() {
        let unsupported = || Outcome::Unsupported("no TCX".into());
        let mut kernels = [
            report("5.10", &[("lab03", "a", unsupported())]),
            report("6.1", &[("lab03", "a", unsupported())]),
        ];
        kernels[1].failures.push("it was silent for 120 s".into());
        let expected = [
            (false, "lab03: a is unsupported: no TCX (on 5.10, 6.1)".to_owned()),
            (true, "it was silent for 120 s (on 6.1)".to_owned()),
        ];
        assert_eq!(remarks(&kernels), expected);
        assert_eq!(kernels[1].tally().failed, 1);
    }
}
