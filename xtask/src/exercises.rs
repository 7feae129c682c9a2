//! The labs' exercises: `labNN-name/exercises.toml`.
//!
//! An exercise is a region of the lab's sources between two `ANCHOR` comments, which the guide includes as the
//! solution, with a starter that stands there instead and does the wrong thing.

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The name of the file in a lab's folder.
pub const FILE: &str = "exercises.toml";

/// How many hints an exercise has: a nudge, the way, nearly the answer.
const HINTS: usize = 3;

/// A lab's exercises, in the order of its chapter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exercises {
    /// The exercises.
    #[serde(rename = "exercise")]
    pub list: Vec<Exercise>,
}

/// One exercise.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exercise {
    /// What commands call it; unique in its lab.
    pub id: String,
    /// Its heading.
    pub title: String,
    /// The file of the region, relative to the lab's folder.
    pub file: PathBuf,
    /// The name of the region.
    pub anchor: String,
    /// What to do, in Markdown.
    pub task: String,
    /// What stands in the region instead of the solution: it compiles and loads, and the tests fail with it.
    pub starter: String,
    /// From a nudge to nearly the answer.
    pub hints: Vec<String>,
    /// The kernel tests that pass with the solution; at least one of them fails with the starter.
    pub tests: Vec<String>,
}

impl Exercises {
    /// Reads those of the lab in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(FILE);
        let text = fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        toml::from_str(&text).with_context(|| format!("{} cannot be understood", file.display()))
    }

    /// What is wrong with them, seen from the lab's sources and tests.
    pub fn faults(&self, folder: &Path) -> Vec<String> {
        let tests = kernel_tests(folder);
        let mut ids = BTreeSet::new();
        let mut faults = Vec::new();
        for exercise in &self.list {
            if !ids.insert(&exercise.id) {
                faults.push(format!("two exercises are called {:?}", exercise.id));
            }
            let of_this = exercise.faults(folder, &tests);
            faults.extend(
                of_this
                    .into_iter()
                    .map(|fault| format!("exercise {:?}: {fault}", exercise.id)),
            );
        }
        faults
    }
}

impl Exercise {
    fn faults(&self, folder: &Path, tests: &str) -> Vec<String> {
        let mut faults = Vec::new();
        match fs::read_to_string(folder.join(&self.file)) {
            Err(error) => faults.push(format!("{} cannot be read: {error}", self.file.display())),
            Ok(source) => match region(&source, &self.anchor) {
                Err(cause) => faults.push(format!("{}: {cause}", self.file.display())),
                Ok(solution) if solution.trim() == self.starter.trim() => {
                    faults.push("the starter is the solution".into());
                }
                Ok(_) => {}
            },
        }
        if self.title.trim().is_empty() || self.task.trim().is_empty() || self.starter.trim().is_empty() {
            faults.push("title, task and starter must say something".into());
        }
        if self.hints.len() != HINTS || self.hints.iter().any(|hint| hint.trim().is_empty()) {
            faults.push(format!(
                "there are {} hints, and there must be {HINTS}",
                self.hints.len()
            ));
        }
        if self.tests.is_empty() {
            faults.push("no test grades it".into());
        }
        for test in &self.tests {
            if !tests.contains(&format!("fn {test}(")) {
                faults.push(format!("there is no kernel test {test} below tests/"));
            }
        }
        faults
    }
}

/// The text of the lab's kernel tests: `tests/kernel.rs`, or the files of the folder `tests/kernel`.
fn kernel_tests(folder: &Path) -> String {
    let mut files = vec![folder.join("tests/kernel.rs")];
    if let Ok(entries) = fs::read_dir(folder.join("tests/kernel")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    // Those that cannot be read have no tests, which is told of every test that is looked for in them.
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
}

/// The folders of the labs in `root` that have exercises, in order.
pub fn labs(root: &Path) -> Result<Vec<PathBuf>> {
    let mut labs = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("{} cannot be read", root.display()))? {
        let folder = entry?.path();
        let is_lab = folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("lab"));
        if is_lab && folder.join(FILE).is_file() {
            labs.push(folder);
        }
    }
    labs.sort();
    Ok(labs)
}

/// The guide's page of exercises of the lab in `folder`: `lab01-exercises.md` for `lab01-count-packets`.
pub fn page(root: &Path, folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let number = name.split('-').next().unwrap_or(&name);
    root.join("book/src").join(format!("{number}-exercises.md"))
}

/// The lines of `source` between `ANCHOR: name` and `ANCHOR_END: name`, as mdBook includes them.
pub fn region(source: &str, name: &str) -> Result<String, String> {
    let lines: Vec<&str> = source.lines().collect();
    Ok(lines[bounds(&lines, name)?].join("\n"))
}

/// `source` with `text` in place of that region.
pub fn with_region(source: &str, name: &str, text: &str) -> Result<String, String> {
    let mut lines: Vec<&str> = source.lines().collect();
    let bounds = bounds(&lines, name)?;
    lines.splice(bounds, text.lines());
    Ok(lines.join("\n") + "\n")
}

/// Between which lines the region is.
fn bounds(lines: &[&str], name: &str) -> Result<Range<usize>, String> {
    let is = |line: &str, mark: &str| {
        line.split_once(mark)
            .is_some_and(|(_, rest)| rest.split_whitespace().next() == Some(name))
    };
    let start = lines.iter().position(|line| is(line, "ANCHOR:"));
    let end = lines.iter().position(|line| is(line, "ANCHOR_END:"));
    match (start, end) {
        (Some(start), Some(end)) if start < end => Ok(start + 1..end),
        (None, _) => Err(format!("there is no anchor {name:?}")),
        _ => Err(format!("the anchor {name:?} has no end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    const EXERCISE: &str = "[[exercise]]\nid = \"a\"\ntitle = \"A\"\nfile = \"lib.rs\"\nanchor = \"here\"\n\
                            task = \"Do\"\nstarter = \"wrong()\"\nhints = [\"1\", \"2\", \"3\"]\ntests = [\"it_works\"]\n";

    /// A lab with `exercises`, a source with the region `here`, and a kernel test `it_works`.
    fn faults(exercises: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tests")).unwrap();
        fs::write(
            folder.path().join("lib.rs"),
            "// ANCHOR: here\nright()\n// ANCHOR_END: here\n",
        )
        .unwrap();
        fs::write(folder.path().join("tests/kernel.rs"), "fn it_works() {}\n").unwrap();
        fs::write(folder.path().join(FILE), exercises).unwrap();
        Exercises::read(folder.path()).unwrap().faults(folder.path())
    }

    #[test]
    fn every_lab_has_sound_exercises() {
        let workspace = Workspace::here();
        let labs = labs(workspace.root()).unwrap();
        assert!(!labs.is_empty());
        for lab in labs {
            let exercises = Exercises::read(&lab).unwrap();
            assert_eq!(exercises.faults(&lab), Vec::<String>::new(), "{}", lab.display());
        }
    }

    #[test]
    fn a_sound_exercise_has_no_fault() {
        assert_eq!(faults(EXERCISE), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_named() {
        for (from, to, fault) in [
            ("\"here\"", "\"there\"", "there is no anchor \"there\""),
            ("lib.rs", "gone.rs", "gone.rs cannot be read"),
            ("\"1\", ", "", "there are 2 hints"),
            ("it_works", "it_flies", "there is no kernel test it_flies"),
            ("\"it_works\"", "", "no test grades it"),
            ("wrong()", "right()", "the starter is the solution"),
        ] {
            let found = faults(&EXERCISE.replace(from, to));
            assert!(found.len() == 1 && found[0].contains(fault), "{fault}: {found:#?}");
        }
        let found = faults(&format!("{EXERCISE}{EXERCISE}"));
        assert_eq!(found, ["two exercises are called \"a\""]);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = format!("{EXERCISE}hint = \"one\"\n");
        let error = toml::from_str::<Exercises>(&text).unwrap_err().to_string();
        assert!(error.contains("unknown field `hint`"), "{error}");
    }

    #[test]
    fn an_anchor_is_found_by_its_whole_name() {
        let source = "// ANCHOR: count_by\na\n// ANCHOR_END: count_by\n// ANCHOR: count\nb\n// ANCHOR_END: count\n";
        assert_eq!(region(source, "count").unwrap(), "b");
        let changed = with_region(source, "count", "c\nd\n").unwrap();
        assert_eq!(changed, source.replace("\nb\n", "\nc\nd\n"));
        assert!(region("// ANCHOR: open\n", "open").unwrap_err().contains("no end"));
    }
}
