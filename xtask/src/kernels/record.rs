//! What was seen on each kernel: `book/kernels.json`.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Declared;
use crate::test::Outcome;

/// Where it is kept.
const FILE: &str = "book/kernels.json";

/// How far a feature works on a kernel.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// As on the newest.
    Works,
    /// In another way, for a reason: `clsact: no TCX before Linux 6.6`.
    FallsBackTo(String),
    /// Not, for this reason.
    NotAvailable(String),
}

impl Cell {
    /// Sums up the tests of a feature; `None` where there is none, or one has failed.
    pub fn of(outcomes: &[&Outcome]) -> Option<Self> {
        let mut cell = None;
        for outcome in outcomes {
            cell = Some(match (outcome, cell) {
                (Outcome::Failed(_), _) => return None,
                (_, Some(Self::NotAvailable(why))) => Self::NotAvailable(why),
                (Outcome::Unsupported(why), _) => Self::NotAvailable(why.clone()),
                (_, Some(Self::FallsBackTo(what))) => Self::FallsBackTo(what),
                (Outcome::FellBack(what), _) => Self::FallsBackTo(what.clone()),
                (Outcome::Passed, _) => Self::Works,
            });
        }
        cell
    }

    /// Whether it does not work at all.
    pub fn is_not_available(&self) -> bool {
        matches!(self, Self::NotAvailable(_))
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => formatter.write_str("works"),
            Self::FallsBackTo(what) => write!(formatter, "falls back to {what}"),
            Self::NotAvailable(why) => write!(formatter, "not available: {why}"),
        }
    }
}

/// The record.
#[derive(Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    kernels: BTreeMap<String, Kernel>,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
struct Kernel {
    /// What it said it is when it was last tested.
    release: String,
    /// By package and feature.
    features: BTreeMap<String, BTreeMap<String, Cell>>,
}

impl Record {
    /// Reads it; an absent one is empty.
    pub fn read(root: &Path) -> Result<Self> {
        let Ok(text) = fs::read_to_string(root.join(FILE)) else {
            return Ok(Self::default());
        };
        serde_json::from_str(&text).with_context(|| format!("{FILE} cannot be understood"))
    }

    /// Writes it.
    pub fn write(&self, root: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(root.join(FILE), text).with_context(|| format!("{FILE} cannot be written"))
    }

    /// What is recorded of a feature on a kernel.
    pub fn cell(&self, kernel: &str, package: &str, feature: &str) -> Option<&Cell> {
        self.kernels.get(kernel)?.features.get(package)?.get(feature)
    }

    /// The release of a kernel when it was last tested.
    pub fn release(&self, kernel: &str) -> Option<&str> {
        Some(self.kernels.get(kernel)?.release.as_str())
    }

    /// Replaces what is recorded of these features on a kernel.
    pub fn take_over(&mut self, kernel: &str, release: &str, cells: &BTreeMap<(String, String), Cell>) {
        let kernel = self.kernels.entry(kernel.to_owned()).or_default();
        release.clone_into(&mut kernel.release);
        for ((package, feature), cell) in cells {
            let features = kernel.features.entry(package.clone()).or_default();
            features.insert(feature.clone(), cell.clone());
        }
    }

    /// Forgets what is declared no more.
    pub fn retain(&mut self, declared: &[Declared]) {
        for kernel in self.kernels.values_mut() {
            for (package, features) in &mut kernel.features {
                let declared = declared.iter().find(|declared| declared.name == *package);
                let is_declared =
                    |name: &str| declared.is_some_and(|package| package.features.iter().any(|one| one.name == name));
                features.retain(|name, _| is_declared(name));
            }
            kernel.features.retain(|_, features| !features.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_an_absent_record_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("book")).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), Record::default());
        let mut record = Record::default();
        let key = |feature: &str| ("lab".to_owned(), feature.to_owned());
        let cells = [
            (key("a"), Cell::Works),
            (key("b"), Cell::FallsBackTo("x".into())),
            (key("c"), Cell::NotAvailable("y".into())),
        ];
        record.take_over("5.10", "5.10.0-46", &cells.into());
        record.write(folder.path()).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), record);
        record.retain(&[]);
        assert_eq!(record.cell("5.10", "lab", "a"), None);
        assert_eq!(record.release("5.10"), Some("5.10.0-46"));
    }
}
