//! The guide's pages before they are built: what they include exists, what they show was printed by a command, and the
//! commands that they name are commands.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use anyhow::{Context as _, Result};
use regex::Regex;

use super::{Checked, Fault, console, relative};
use crate::exercises::{self, Exercises};

static INCLUDE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\{\{\s*#\s*[a-z_]*include\s+([^\s:}]+)(?::([^\s}]*))?\s*\}\}").expect("a pattern"));
static XTASK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"cargo xtask ([a-z][a-z-]*)([^`#|;\n]*)").expect("a pattern"));

/// What every page may refer to.
struct Guide<'a> {
    root: &'a Path,
    /// The command line of `cargo xtask`.
    xtask: &'a clap::Command,
    /// The files of console output that a command of `book/console.toml` writes.
    console_files: BTreeSet<PathBuf>,
}

/// Checks the pages below `book/src`, and the commands that the other documents name.
pub(super) fn check(root: &Path, xtask: &clap::Command) -> Result<Checked> {
    let definitions = console::Definitions::read(root)?;
    let files = definitions.blocks.iter().map(|block| format!("{}.txt", block.name));
    let guide = Guide {
        root,
        xtask,
        console_files: files.map(|file| root.join(console::FOLDER).join(file)).collect(),
    };

    let mut pages = Vec::new();
    collect(&root.join("book/src"), "md", &mut pages)?;
    let mut included = BTreeSet::new();
    let mut faults = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page).with_context(|| format!("{} cannot be read", page.display()))?;
        let file = relative(root, page);
        faults.extend(guide.includes(page, &text, &mut included));
        faults.extend(guide.fences(page, &text));
        faults.extend(guide.commands(&file, &text));
    }
    for document in ["README.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root.join(document)).with_context(|| format!("{document} cannot be read"))?;
        faults.extend(guide.commands(Path::new(document), &text));
    }
    faults.extend(unlisted(root, &pages)?);
    faults.extend(guide.console(&definitions, &included)?);
    let exercises = guide.exercises(&mut faults)?;

    faults.sort();
    let summary = format!(
        "{} pages, {} files included, {exercises} exercises, every command known",
        pages.len(),
        included.len()
    );
    Ok(Checked { summary, faults })
}

impl Guide<'_> {
    /// Every included file exists, and every anchor in it; mdBook is silent about those.
    fn includes(&self, page: &Path, text: &str, included: &mut BTreeSet<PathBuf>) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (number, line) in numbered(text) {
            for include in INCLUDE.captures_iter(line) {
                let mut fault = |text| faults.push(Fault::new(relative(self.root, page), number, text));
                // mdBook indents the first line only: in a list, the others would end the list.
                if line.starts_with(char::is_whitespace) {
                    fault(format!(
                        "includes {} in an indented line; put it at the start of one",
                        &include[1]
                    ));
                }
                let target = page.with_file_name("").join(&include[1]);
                let Ok(target) = target.canonicalize() else {
                    fault(format!("includes {}, which does not exist", &include[1]));
                    continue;
                };
                if let Some(anchor) = include.get(2)
                    && let Err(cause) =
                        exercises::region(&fs::read_to_string(&target).unwrap_or_default(), anchor.as_str())
                {
                    fault(format!("includes {}: {cause}", &include[1]));
                }
                included.insert(target);
            }
        }
        faults
    }

    /// A block of console output is a file that a command writes, and nothing else.
    fn fences(&self, page: &Path, text: &str) -> Vec<Fault> {
        let lines: Vec<(usize, &str)> = numbered(text).collect();
        let opening = lines
            .iter()
            .filter(|(_, line)| line.trim_start().starts_with("```console"));
        opening
            .filter(|(number, _)| {
                let inside: Vec<&str> = lines[*number..]
                    .iter()
                    .map(|(_, line)| line.trim())
                    .take_while(|line| !line.starts_with("```"))
                    .collect();
                let [only] = inside.as_slice() else { return true };
                let Some(include) = INCLUDE.captures(only) else {
                    return true;
                };
                let target = page.with_file_name("").join(&include[1]).canonicalize();
                !target.is_ok_and(|target| self.console_files.contains(&target))
            })
            .map(|(number, _)| {
                let text = format!(
                    "console output that no command wrote; define it in {} and include its file",
                    console::DEFINITIONS
                );
                Fault::new(relative(self.root, page), *number, text)
            })
            .collect()
    }

    /// Every `cargo xtask COMMAND --OPTION` in `text` is one.
    fn commands(&self, file: &Path, text: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (number, line) in numbered(text) {
            for named in XTASK.captures_iter(line) {
                faults.extend(
                    self.unknown(&named[1], &named[2])
                        .map(|cause| Fault::new(file, number, cause)),
                );
            }
        }
        faults
    }

    fn unknown(&self, name: &str, rest: &str) -> Option<String> {
        let Some(command) = self.xtask.find_subcommand(name) else {
            return Some(format!("`cargo xtask {name}` is no command; see `cargo xtask --help`"));
        };
        let known = |option: &str| {
            option == "help"
                || command
                    .get_arguments()
                    .any(|argument| argument.get_long() == Some(option))
        };
        // What comes after a lone `--` is for another program.
        rest.split_whitespace()
            .take_while(|word| *word != "--")
            .filter_map(|word| word.strip_prefix("--"))
            .map(|option| option.split_once('=').map_or(option, |(option, _)| option))
            .map(|option| option.trim_end_matches(|end: char| !end.is_ascii_alphanumeric()))
            .find(|option| !known(option))
            .map(|option| format!("`cargo xtask {name}` has no option --{option}; see `cargo xtask {name} --help`"))
    }

    /// The definitions of console output and the files are the same set, and each is on a page.
    fn console(&self, definitions: &console::Definitions, included: &BTreeSet<PathBuf>) -> Result<Vec<Fault>> {
        let mut faults = Vec::new();
        for block in &definitions.blocks {
            faults.extend(self.commands(Path::new(console::DEFINITIONS), &block.command));
        }
        let mut files = Vec::new();
        collect(&self.root.join(console::FOLDER), "txt", &mut files)?;
        for file in files {
            let fault = |text| Fault::new(relative(self.root, &file), 0, text);
            if !self.console_files.contains(&file) {
                faults.push(fault(format!(
                    "no command of {} writes it; remove it",
                    console::DEFINITIONS
                )));
            } else if !included.contains(&file) {
                faults.push(fault("no page includes it; remove it and its command".into()));
            }
        }
        Ok(faults)
    }

    /// Every exercise is well-formed, and the lab's page of exercises shows its title and its starter. Returns how many
    /// there are.
    fn exercises(&self, faults: &mut Vec<Fault>) -> Result<usize> {
        let mut count = 0;
        for lab in exercises::labs(self.root)? {
            let exercises = Exercises::read(&lab)?;
            let file = relative(self.root, &lab.join(exercises::FILE));
            faults.extend(
                exercises
                    .faults(&lab)
                    .into_iter()
                    .map(|text| Fault::new(&file, 0, text)),
            );
            let page = exercises::page(self.root, &lab);
            let text = fs::read_to_string(&page).with_context(|| format!("{} cannot be read", page.display()))?;
            let told = unindented(&text);
            for exercise in &exercises.list {
                let heading = format!("## {}", exercise.title);
                if !text.lines().any(|line| line == heading) || !told.contains(&unindented(&exercise.starter)) {
                    let text = format!(
                        "{} does not show the title and the starter of the exercise {:?} as they are",
                        relative(self.root, &page).display(),
                        exercise.id
                    );
                    faults.push(Fault::new(&file, 0, text));
                }
            }
            count += exercises.list.len();
        }
        Ok(count)
    }
}

/// Pages that the table of contents does not name: mdBook leaves them out.
fn unlisted(root: &Path, pages: &[PathBuf]) -> Result<Vec<Fault>> {
    let source = root.join("book/src");
    let summary = fs::read_to_string(source.join("SUMMARY.md")).context("book/src/SUMMARY.md cannot be read")?;
    let faults = pages.iter().filter_map(|page| {
        let name = relative(&source, page);
        let listed = name == Path::new("SUMMARY.md") || summary.contains(&format!("({})", name.display()));
        (!listed).then(|| {
            Fault::new(
                relative(root, page),
                0,
                "SUMMARY.md does not name it, so nobody can read it",
            )
        })
    });
    Ok(faults.collect())
}

fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, extension, files)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn unindented(text: &str) -> String {
    text.trim().lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn xtask() -> clap::Command {
        let setup = clap::Command::new("setup").arg(Arg::new("book").long("book").action(ArgAction::SetTrue));
        clap::Command::new("xtask")
            .subcommand(setup)
            .subcommand(clap::Command::new("run"))
    }

    /// A guide whose page `page.md` is `text`, beside a source with one anchor and a block of console output.
    fn faults(text: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for (file, content) in [
            ("lib.rs", "// ANCHOR: here\nfn f() {}\n// ANCHOR_END: here\n"),
            ("README.md", "`cargo xtask run lab01`\n"),
            ("CONTRIBUTING.md", ""),
            (
                "book/console.toml",
                "[[console]]\nname = \"true\"\ncommand = \"true\"\n",
            ),
            ("book/console/true.txt", "$ true\n"),
            ("book/src/SUMMARY.md", "- [Page](page.md)\n- [Other](other.md)\n"),
            (
                "book/src/other.md",
                "```console\n{{#include ../console/true.txt}}\n```\n",
            ),
            ("book/src/page.md", text),
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), content).unwrap();
        }
        let checked = check(&root, &xtask()).unwrap();
        checked.faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_page_that_tells_the_truth_has_no_fault() {
        let page = "```rust\n{{#include ../../lib.rs:here}}\n```\n\
                    ```console\n{{#include ../console/true.txt}}\n```\n\
                    `cargo xtask setup --book`, `cargo xtask run lab01 -- --any`.\n";
        assert_eq!(faults(page), Vec::<String>::new());
    }

    #[test]
    fn an_anchor_or_a_file_that_is_gone_is_found() {
        let found = faults("{{#include ../../lib.rs:there}}\n{{#include ../../main.rs}}\n");
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(
            found[0].starts_with("book/src/page.md:1:") && found[0].contains("\"there\""),
            "{found:#?}"
        );
        assert!(found[1].contains("main.rs, which does not exist"), "{found:#?}");
    }

    #[test]
    fn an_include_in_a_list_which_would_end_the_list_is_found() {
        let found = faults("- item\n\n  ```rust\n  {{#include ../../lib.rs:here}}\n  ```\n");
        assert!(
            found.len() == 1 && found[0].contains("in an indented line"),
            "{found:#?}"
        );
    }

    #[test]
    fn console_output_that_was_typed_is_found() {
        let found = faults("text\n\n```console\n$ true\nall is well\n```\n");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].starts_with("book/src/page.md:3: console output that no command wrote"),
            "{found:#?}"
        );
    }

    #[test]
    fn commands_and_options_that_do_not_exist_are_found() {
        let found = faults("`cargo xtask fly` and `cargo xtask setup --wings`");
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].contains("`cargo xtask fly` is no command"), "{found:#?}");
        assert!(found[1].contains("has no option --wings"), "{found:#?}");
    }
}
