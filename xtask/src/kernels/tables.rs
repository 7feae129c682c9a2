//! The tables that the guide and the README show, between two comments each.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{Cell, Declared, Record};
use crate::vm::{ALL_KERNELS, NEWEST};

/// What stands around a table.
const BEGIN: &str = "<!-- kernels: written by `cargo xtask test --kernel all --bless` -->\n";
const END: &str = "<!-- kernels: end -->\n";

const GUIDE: &str = "book/src/kernels.md";
const README: &str = "README.md";

/// Writes the tables into the guide and the README.
pub fn write(root: &Path, record: &Record, declared: &[Declared]) -> Result<()> {
    for (file, table) in tables(record, declared) {
        let path = root.join(file);
        let page = fs::read_to_string(&path).with_context(|| format!("{file} cannot be read"))?;
        fs::write(&path, replaced(file, &page, &table)?).with_context(|| format!("{file} cannot be written"))?;
    }
    Ok(())
}

/// What is wrong with the tables: the file, and cause and mend.
pub fn faults(root: &Path, record: &Record, declared: &[Declared]) -> Vec<(&'static str, String)> {
    let mut faults = Vec::new();
    for (file, table) in tables(record, declared) {
        let page = fs::read_to_string(root.join(file)).unwrap_or_default();
        match replaced(file, &page, &table) {
            Ok(expected) if expected == page => {}
            Ok(_) => faults.push((
                file,
                "its table of kernels is not that of book/kernels.json; `cargo xtask book --bless` writes it".into(),
            )),
            Err(error) => faults.push((file, error.to_string())),
        }
    }
    for package in declared {
        for feature in &package.features {
            let is_missing = |kernel: &&&str| record.cell(kernel, &package.name, &feature.name).is_none();
            let missing: Vec<_> = ALL_KERNELS.iter().filter(is_missing).copied().collect();
            if !missing.is_empty() {
                let text = format!(
                    "“{}” of {} was not seen on Linux {}: `cargo xtask test {} --kernel {} --bless`",
                    feature.name,
                    package.name,
                    missing.join(", "),
                    package.name,
                    missing.join(","),
                );
                faults.push((GUIDE, text));
            }
        }
    }
    faults
}

fn tables(record: &Record, declared: &[Declared]) -> [(&'static str, String); 2] {
    [
        (GUIDE, for_the_guide(record, declared)),
        (README, for_the_readme(record, declared)),
    ]
}

fn replaced(file: &str, page: &str, table: &str) -> Result<String> {
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    match parts {
        Some((before, after)) => Ok(format!("{before}{BEGIN}{table}{END}{after}")),
        None => bail!(
            "{file} has no place for the table of kernels: the lines `{}` and `{}`",
            BEGIN.trim(),
            END.trim()
        ),
    }
}

/// A table for each package, with the reasons below it, and the kernels' releases at the end.
fn for_the_guide(record: &Record, declared: &[Declared]) -> String {
    // Writing to a string cannot fail.
    let mut text = String::new();
    for package in declared {
        writeln!(text, "\n## {}\n", package.title).ok();
        let mut reasons: Vec<String> = Vec::new();
        let rows = package.features.iter().map(|feature| {
            let ids = if feature.ids.is_empty() {
                String::new()
            } else {
                format!(" ({})", feature.ids.join(", "))
            };
            let cells = ALL_KERNELS.iter().map(|kernel| {
                let (said, why) = match record.cell(kernel, &package.name, &feature.name) {
                    None => return "?".to_owned(),
                    Some(Cell::Works) => return "works".to_owned(),
                    Some(cell @ Cell::FallsBackTo(_)) => ("falls back", cell.to_string()),
                    Some(cell @ Cell::NotAvailable(_)) => ("no", cell.to_string()),
                };
                let number = reasons.iter().position(|reason| *reason == why).unwrap_or_else(|| {
                    reasons.push(why);
                    reasons.len() - 1
                });
                format!("{said} [{}]", number + 1)
            });
            let mut row = vec![format!("{}{ids}", feature.name)];
            row.extend(cells);
            row
        });
        let rows: Vec<_> = rows.collect();
        text += &table(record, "feature", rows);
        if !reasons.is_empty() {
            text.push('\n');
        }
        for (number, reason) in reasons.iter().enumerate() {
            writeln!(text, "{}. {reason}", number + 1).ok();
        }
    }
    let releases: Vec<_> = ALL_KERNELS
        .iter()
        .filter_map(|kernel| record.release(kernel))
        .map(|release| release.trim_end_matches("-cloud-amd64"))
        .collect();
    writeln!(text, "\nSeen on Debian's Linux {}.", releases.join(", ")).ok();
    text
}

/// A line for each package.
fn for_the_readme(record: &Record, declared: &[Declared]) -> String {
    let row = |package: &Declared| {
        let mut row = vec![package.title.clone()];
        row.extend(ALL_KERNELS.iter().map(|kernel| summary(record, package, kernel)));
        row
    };
    table(record, "", declared.iter().map(row).collect())
}

fn summary(record: &Record, package: &Declared, kernel: &str) -> String {
    let (mut fall_back, mut not_available) = (0, 0);
    for feature in &package.features {
        match record.cell(kernel, &package.name, &feature.name) {
            None => return "?".into(),
            Some(Cell::Works) => {}
            Some(Cell::FallsBackTo(_)) => fall_back += 1,
            Some(Cell::NotAvailable(_)) => not_available += 1,
        }
    }
    match (fall_back, not_available) {
        (0, 0) => "works".into(),
        (some, 0) => format!("works, {some} in another way"),
        (0, some) => format!("all but {some}"),
        (some, others) => format!("all but {others}, {some} in another way"),
    }
}

fn table(record: &Record, corner: &str, rows: Vec<Vec<String>>) -> String {
    let mut head = vec![corner.to_owned()];
    head.extend(ALL_KERNELS.iter().map(|kernel| column(record, kernel)));
    let rule = vec!["---".to_owned(); head.len()];
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    [head, rule].into_iter().chain(rows).map(line).collect()
}

/// The newest kernel is called by its number.
fn column(record: &Record, kernel: &str) -> String {
    match record.release(kernel) {
        Some(release) if kernel == NEWEST => {
            let numbers: Vec<_> = release.splitn(3, '.').take(2).collect();
            numbers.join(".")
        }
        _ => kernel.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::features::Feature;

    fn declared() -> Vec<Declared> {
        let feature = |name: &str, ids: &[&str]| Feature {
            name: name.into(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            tests: vec!["t".into()],
        };
        vec![Declared {
            name: "lab03".into(),
            title: "Lab 03: shaping".into(),
            features: vec![feature("links", &["F3", "A2"]), feature("timers", &[])],
        }]
    }

    fn record() -> Record {
        let mut record = Record::default();
        let no_tcx = Cell::FallsBackTo("clsact: no TCX".into());
        let no_timers = Cell::NotAvailable("no timers".into());
        for (kernel, release, links, timers) in [
            ("5.10", "5.10.0-46", &no_tcx, &no_timers),
            ("6.1", "6.1.0-56", &no_tcx, &Cell::Works),
            ("6.12", "6.12.9", &Cell::Works, &Cell::Works),
            ("6.18", "6.18.9", &Cell::Works, &Cell::Works),
            (NEWEST, "7.3.4+deb13", &Cell::Works, &Cell::Works),
        ] {
            let key = |feature: &str| ("lab03".to_owned(), feature.to_owned());
            let cells = [(key("links"), links.clone()), (key("timers"), timers.clone())];
            record.take_over(kernel, release, &cells.into());
        }
        record
    }

    #[test]
    fn the_guides_table_tells_each_reason_once() {
        let expected = "\n## Lab 03: shaping\n\n\
            | feature | 5.10 | 6.1 | 6.12 | 6.18 | 7.3 |\n\
            | --- | --- | --- | --- | --- | --- |\n\
            | links (F3, A2) | falls back [1] | falls back [1] | works | works | works |\n\
            | timers | no [2] | works | works | works | works |\n\n\
            1. falls back to clsact: no TCX\n\
            2. not available: no timers\n\n\
            Seen on Debian's Linux 5.10.0-46, 6.1.0-56, 6.12.9, 6.18.9, 7.3.4+deb13.\n";
        assert_eq!(for_the_guide(&record(), &declared()), expected);
    }

    #[test]
    fn the_readmes_table_has_a_line_for_each_lab() {
        let table = for_the_readme(&record(), &declared());
        let last = table.lines().last().unwrap();
        assert_eq!(
            last,
            "| Lab 03: shaping | all but 1, 1 in another way | works, 1 in another way | works | works | works |"
        );
    }

    #[test]
    fn a_page_that_differs_or_has_no_place_and_a_cell_that_was_not_seen_are_faults() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("book/src")).unwrap();
        let texts = |record: &Record| -> Vec<String> {
            let faults = faults(root, record, &declared());
            faults
                .into_iter()
                .map(|(file, text)| format!("{file}: {text}"))
                .collect()
        };
        fs::write(root.join(README), "# Labs\n").unwrap();
        fs::write(root.join(GUIDE), format!("# Kernels\n{BEGIN}{END}More.\n")).unwrap();
        let faults = texts(&record());
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("is not that of book/kernels.json"), "{faults:?}");
        assert!(faults[1].contains("README.md has no place"), "{faults:?}");

        fs::write(root.join(README), format!("# Labs\n{BEGIN}old\n{END}")).unwrap();
        write(root, &record(), &declared()).unwrap();
        assert_eq!(texts(&record()), Vec::<String>::new());
        assert!(fs::read_to_string(root.join(GUIDE)).unwrap().ends_with("More.\n"));

        let mut lacking = record();
        lacking.retain(&[]);
        write(root, &lacking, &declared()).unwrap();
        let faults = texts(&lacking);
        assert!(
            faults[0].ends_with(
                "was not seen on Linux 5.10, 6.1, 6.12, 6.18, newest: \
                 `cargo xtask test lab03 --kernel 5.10,6.1,6.12,6.18,newest --bless`"
            ),
            "{faults:?}"
        );
    }
}
