//! The table of kernels: what the labs can do on which kernel, as their tests have shown it.
//!
//! A package says in `kernels.toml` which of its features depend on the kernel, and which of its kernel tests show each.
//! What came of those tests is recorded in `book/kernels.json`, of which the tables in the guide and in the README are
//! made. A later run is compared with the record.

mod features;
mod record;
mod tables;

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

pub use self::{
    features::{Declared, read_all},
    record::{Cell, Record},
    tables::{faults, write},
};
use crate::test::Outcome;

/// The outcomes of the tests on a kernel, by package and test.
pub type Outcomes = BTreeMap<(String, String), Outcome>;

/// What a run on a kernel has shown of the declared features of the packages that were tested.
pub struct Shown {
    /// By package and feature.
    pub cells: BTreeMap<(String, String), Cell>,
    /// What is wrong with the declarations, a line each.
    pub faults: Vec<String>,
}

impl Shown {
    /// Sums up the tests by feature. A feature with a failed test is left out: the failure is told anyway.
    pub fn by(outcomes: &Outcomes, declared: &[Declared]) -> Self {
        let mut shown = Self {
            cells: BTreeMap::new(),
            faults: Vec::new(),
        };
        for package in declared {
            // Not among what was tested, or lost with its runner.
            if !outcomes.keys().any(|(of, _)| *of == package.name) {
                continue;
            }
            for feature in &package.features {
                let mut of_feature = Vec::new();
                for test in &feature.tests {
                    match outcomes.get(&(package.name.clone(), test.clone())) {
                        Some(outcome) => of_feature.push(outcome),
                        None => shown.faults.push(format!(
                            "{}: {} names the test {test}, which has not run",
                            package.name,
                            features::FILE
                        )),
                    }
                }
                if let Some(cell) = Cell::of(&of_feature) {
                    shown.cells.insert((package.name.clone(), feature.name.clone()), cell);
                }
            }
        }
        shown
    }

    /// Where this is not what the record says of `kernel`; a line each, with the mend.
    pub fn differences(&self, record: &Record, kernel: &str) -> Vec<String> {
        let different = |((package, feature), cell): (&(String, String), &Cell)| {
            let recorded = record.cell(kernel, package, feature);
            (recorded != Some(cell)).then(|| {
                let recorded = recorded.map_or_else(|| "says nothing of it".to_owned(), |cell| format!("says: {cell}"));
                format!(
                    "{package}: “{feature}” on Linux {kernel}: {cell}; the table of kernels {recorded}; if it is right \
                     now: `cargo xtask test {package} --kernel {kernel} --bless`"
                )
            })
        };
        self.cells.iter().filter_map(different).collect()
    }

    /// Where the kernel of this machine contradicts the record of its series. It may lack what Debian's kernel of the
    /// same series has, or have more: what it is made with differs. But where both can do something, they do it alike.
    pub fn contradictions(&self, record: &Record, series: &str) -> Vec<String> {
        let contradicts = |((package, feature), cell): (&(String, String), &Cell)| {
            let recorded = record.cell(series, package, feature)?;
            let either_lacks_it = cell.is_not_available() || recorded.is_not_available();
            (!either_lacks_it && cell != recorded).then(|| {
                format!("{package}: “{feature}” here: {cell}; the table of kernels says of Linux {series}: {recorded}")
            })
        };
        self.cells.iter().filter_map(contradicts).collect()
    }
}

/// Takes what was shown over into the record in `root`, and writes the tables anew.
pub fn bless(root: &Path, declared: &[Declared], shown: &[(String, String, Shown)]) -> Result<()> {
    let mut record = Record::read(root)?;
    for (kernel, release, shown) in shown {
        record.take_over(kernel, release, &shown.cells);
    }
    record.retain(declared);
    record.write(root)?;
    write(root, &record, declared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::features::Feature;

    fn declared() -> Vec<Declared> {
        let feature = |name: &str, tests: &[&str]| Feature {
            name: name.into(),
            ids: Vec::new(),
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
        };
        vec![Declared {
            name: "lab03".into(),
            title: "Lab 03".into(),
            features: vec![feature("links", &["a", "b"]), feature("hooks", &["c"])],
        }]
    }

    fn outcomes(of: &[(&str, Outcome)]) -> Outcomes {
        let key = |test: &str| ("lab03".to_owned(), test.to_owned());
        of.iter().map(|(test, outcome)| (key(test), outcome.clone())).collect()
    }

    fn no_tcx() -> Outcome {
        Outcome::FellBack("clsact: no TCX".into())
    }

    #[test]
    fn a_feature_works_if_all_of_its_tests_pass_and_is_as_the_least_of_them() {
        let of = |[a, b, c]: [Outcome; 3]| Shown::by(&outcomes(&[("a", a), ("b", b), ("c", c)]), &declared());
        let links = ("lab03".to_owned(), "links".to_owned());
        let shown = of([Outcome::Passed, Outcome::Passed, no_tcx()]);
        assert_eq!(shown.cells[&links], Cell::Works);
        let hooks = ("lab03".to_owned(), "hooks".to_owned());
        assert_eq!(shown.cells[&hooks], Cell::FallsBackTo("clsact: no TCX".into()));
        let lacking = Outcome::Unsupported("no BTF".into());
        let shown = of([lacking, no_tcx(), Outcome::Failed(String::new())]);
        assert_eq!(shown.cells[&links], Cell::NotAvailable("no BTF".into()));
        assert!(!shown.cells.contains_key(&hooks), "a failure is no state of a feature");
    }

    #[test]
    fn a_declared_test_that_has_not_run_is_a_fault_and_a_package_that_was_not_tested_is_none() {
        let shown = Shown::by(&outcomes(&[("a", Outcome::Passed)]), &declared());
        assert_eq!(shown.faults.len(), 2, "{:?}", shown.faults);
        assert!(shown.faults[0].ends_with("names the test b, which has not run"));
        assert!(Shown::by(&Outcomes::new(), &declared()).faults.is_empty());
    }

    fn recorded(kernel: &str, outcome: &Outcome) -> Record {
        let mut record = Record::default();
        let tests = outcomes(&[("a", Outcome::Passed), ("b", Outcome::Passed), ("c", outcome.clone())]);
        record.take_over(kernel, "1", &Shown::by(&tests, &declared()).cells);
        record
    }

    #[test]
    fn what_the_record_does_not_say_or_says_otherwise_is_a_difference() {
        let tests = outcomes(&[("a", Outcome::Passed), ("b", Outcome::Passed), ("c", no_tcx())]);
        let shown = Shown::by(&tests, &declared());
        assert_eq!(
            shown.differences(&recorded("5.10", &no_tcx()), "5.10"),
            Vec::<String>::new()
        );
        assert_eq!(shown.differences(&recorded("6.1", &no_tcx()), "5.10").len(), 2);
        assert_eq!(
            shown.differences(&recorded("5.10", &Outcome::Passed), "5.10"),
            [
                "lab03: “hooks” on Linux 5.10: falls back to clsact: no TCX; the table of kernels says: works; if it \
                 is right now: `cargo xtask test lab03 --kernel 5.10 --bless`"
            ]
        );
    }

    #[test]
    fn this_machines_kernel_may_lack_or_have_more_but_not_do_otherwise() {
        let shown = |outcome| {
            let tests = [("a", Outcome::Passed), ("b", Outcome::Passed), ("c", outcome)];
            Shown::by(&outcomes(&tests), &declared())
        };
        let lacking = || Outcome::Unsupported("not built in".into());
        let against =
            |here: Outcome, there: Outcome| shown(here).contradictions(&recorded("6.18", &there), "6.18").len();
        assert_eq!(against(lacking(), Outcome::Passed), 0);
        assert_eq!(against(Outcome::Passed, lacking()), 0);
        assert_eq!(against(no_tcx(), Outcome::Passed), 1);
        assert_eq!(
            shown(no_tcx()).contradictions(&recorded("6.18", &Outcome::Passed), "6.6"),
            Vec::<String>::new()
        );
    }
}
