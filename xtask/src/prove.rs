//! `cargo xtask prove`: that of each exercise the tests fail with the starter and pass with the solution.
//!
//! It happens in a copy of the project below the build folder, so that the sources stay as they are whatever happens.

mod copy;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    process::{Child, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;

use self::copy::Copy;
use crate::{
    cargo::{self, Executable},
    exercises::{self, Exercise, Exercises, with_region},
    interrupt,
    labs::{self, Lab},
    privilege::Privilege,
    setup, terminal,
    test::{KERNEL, KernelTests, Outcome},
    usage::UsageError,
    workspace::Workspace,
};

/// What to prove.
#[derive(Args)]
pub struct Options {
    /// Only the exercises of this lab: its number as in lab01, or the name of its folder.
    lab: Option<String>,

    /// Only the exercise with this id.
    #[arg(requires = "lab")]
    exercise: Option<String>,
}

/// Proves the exercises, and prints a line for each.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let labs = selected(workspace, options)?;
    setup::ensure(workspace)?;
    let privilege = Privilege::obtain("testing on the kernel")?;
    let copy = Copy::of(workspace)?;
    let results = copy.target().join("results");
    let prover = Prover {
        kernel_tests: KernelTests::new(workspace, privilege, results),
        copy,
    };
    interrupt::note_only();
    let mut unproven = 0;
    for (lab, exercises) in &labs {
        println!("\n{}", terminal::stdout().bold(&format!("── {}", lab.name)));
        unproven += prover.prove(lab, exercises)?;
        if interrupt::happened() {
            return Ok(interrupt::status());
        }
    }
    Ok(if unproven == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The labs that have exercises, or the one that is asked for, with those that are.
fn selected(workspace: &Workspace, options: &Options) -> Result<Vec<(Lab, Vec<Exercise>)>> {
    let mut labs = match &options.lab {
        Some(lab) => vec![labs::find(workspace, lab)?],
        None => labs::all(workspace)?,
    };
    labs.retain(|lab| lab.folder.join(exercises::FILE).is_file());
    let mut selected = Vec::new();
    for lab in labs {
        let mut list = Exercises::read(&lab.folder)?.list;
        if let Some(id) = &options.exercise {
            let ids: Vec<_> = list.iter().map(|exercise| exercise.id.clone()).collect();
            list.retain(|exercise| exercise.id == *id);
            if list.is_empty() {
                let has = ids.join(", ");
                bail!(UsageError(format!("{} has no exercise {id:?}; it has {has}", lab.name)));
            }
        }
        selected.push((lab, list));
    }
    if selected.is_empty() {
        bail!(UsageError("it has no exercises".into()));
    }
    Ok(selected)
}

/// What came of each test that was run, by its name.
type Outcomes = BTreeMap<String, Outcome>;

struct Prover {
    copy: Copy,
    kernel_tests: KernelTests,
}

impl Prover {
    /// Proves the exercises of a lab; how many are not proven.
    fn prove(&self, lab: &Lab, exercises: &[Exercise]) -> Result<usize> {
        let tests: Vec<_> = exercises.iter().flat_map(|exercise| &exercise.tests).collect();
        let with_solutions = self.test(lab, &tests)?;
        let mut unproven = 0;
        for exercise in exercises {
            let tests: Vec<_> = exercise.tests.iter().collect();
            let outcomes = self.with_starter(lab, exercise, || self.test(lab, &tests));
            if interrupt::happened() {
                break;
            }
            let proof = match outcomes {
                Ok(with_starter) => proof(exercise, &with_solutions, &with_starter),
                Err(error) => Err(vec![format!("{error:#}")]),
            };
            let style = terminal::stdout();
            match proof {
                Ok(summary) => println!("{} {}: {summary}", style.green("✓"), exercise.id),
                Err(faults) => {
                    println!("{} {}: {}", style.red("✗"), exercise.id, faults.join("; "));
                    unproven += 1;
                }
            }
        }
        Ok(unproven)
    }

    /// Does something while the starter stands in the copy's sources.
    fn with_starter<T>(&self, lab: &Lab, exercise: &Exercise, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let file = self.copy.workspace().root().join(&lab.name).join(&exercise.file);
        let source = fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        let changed = with_region(&source, &exercise.anchor, &exercise.starter).map_err(|cause| anyhow!(cause))?;
        fs::write(&file, changed).with_context(|| format!("{} cannot be written", file.display()))?;
        let done = action().context("the starter");
        fs::write(&file, source).with_context(|| format!("{} cannot be written", file.display()))?;
        done
    }

    /// Builds the copy and runs these tests of the lab.
    fn test(&self, lab: &Lab, tests: &[&String]) -> Result<Outcomes> {
        let target = self.copy.target();
        let built = cargo::build(
            self.copy.workspace(),
            "it",
            &[
                OsStr::new("test"),
                OsStr::new("--no-run"),
                OsStr::new("--quiet"),
                OsStr::new("--package"),
                OsStr::new(&lab.name),
                OsStr::new("--test"),
                OsStr::new(KERNEL),
                OsStr::new("--target-dir"),
                target.as_os_str(),
            ],
        )?;
        let program = built.executables.iter().find(|program| program.target == KERNEL);
        self.run_tests(program.context("the lab has no kernel tests")?, tests)
    }

    fn run_tests(&self, program: &Executable, tests: &[&String]) -> Result<Outcomes> {
        let only = tests.iter().map(|test| test.as_str()).collect::<Vec<_>>().join(",");
        let only = [("EBPF_KERNEL_ONLY", OsStr::new(&only))];
        let mut command = self.kernel_tests.command::<&str>(program, &[], &only)?;
        // What it prints of tests that fail, as they are to do, would only puzzle.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn();
        wait(child.with_context(|| format!("{} cannot be started", program.path.display()))?)?;
        Ok(self.kernel_tests.outcomes()?.into_iter().collect())
    }
}

/// What a starter does may have a test wait without end.
const PATIENCE: Duration = Duration::from_mins(5);

fn wait(mut child: Child) -> Result<()> {
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > PATIENCE {
            child.kill()?;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What its tests have shown of an exercise, or what is wrong with it.
fn proof(exercise: &Exercise, with_solution: &Outcomes, with_starter: &Outcomes) -> Result<String, Vec<String>> {
    let faults = faults(exercise, with_solution, with_starter);
    if faults.is_empty() {
        Ok(summary(with_starter))
    } else {
        Err(faults)
    }
}

fn faults(exercise: &Exercise, with_solution: &Outcomes, with_starter: &Outcomes) -> Vec<String> {
    let mut faults = Vec::new();
    for test in &exercise.tests {
        match with_solution.get(test) {
            Some(Outcome::Passed | Outcome::FellBack(_)) => {}
            Some(Outcome::Failed(why)) => faults.push(format!("{test} fails with the solution: {}", first_line(why))),
            Some(Outcome::Unsupported(why)) => faults.push(format!("{test} cannot be run here: {why}")),
            None => faults.push(format!("{test} did not come to an end with the solution")),
        }
        match with_starter.get(test) {
            Some(Outcome::Failed(why)) if why.contains("verifier refused") => {
                faults.push(format!("the verifier refuses the starter: {}", first_line(why)));
            }
            Some(_) => {}
            None => faults.push(format!("{test} did not come to an end with the starter")),
        }
    }
    if failed(with_starter).count() == 0 {
        faults.push("no test fails with the starter".into());
    }
    faults
}

fn failed(outcomes: &Outcomes) -> impl Iterator<Item = &str> {
    let failed = outcomes
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
    failed.map(|(name, _)| name.as_str())
}

fn summary(with_starter: &Outcomes) -> String {
    let failed: Vec<_> = failed(with_starter).collect();
    format!(
        "all tests pass with the solution; with the starter {} of {} fail: {}",
        failed.len(),
        with_starter.len(),
        failed.join(", ")
    )
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exercise() -> Exercise {
        Exercise {
            id: "a".into(),
            title: "A".into(),
            file: "lib.rs".into(),
            anchor: "here".into(),
            task: "Do".into(),
            starter: "wrong()".into(),
            hints: Vec::new(),
            tests: vec!["one".into(), "two".into()],
        }
    }

    fn outcomes(one: Outcome, two: Outcome) -> Outcomes {
        [("one".to_owned(), one), ("two".to_owned(), two)].into()
    }

    #[test]
    fn an_exercise_is_proven_when_the_solution_passes_all_tests_and_the_starter_not() {
        let passed = outcomes(Outcome::Passed, Outcome::FellBack("as before".into()));
        let failed = outcomes(Outcome::Passed, Outcome::Failed("2 is not 3".into()));
        assert_eq!(faults(&exercise(), &passed, &failed), Vec::<String>::new());
        assert_eq!(
            faults(&exercise(), &passed, &passed),
            ["no test fails with the starter"]
        );
        assert_eq!(
            faults(&exercise(), &failed, &failed),
            ["two fails with the solution: 2 is not 3"]
        );
    }

    #[test]
    fn what_was_not_run_or_not_loaded_proves_nothing() {
        let passed = outcomes(Outcome::Passed, Outcome::Passed);
        let refused = outcomes(
            Outcome::Passed,
            Outcome::Failed("the kernel's verifier refused the program p: why\nlog".into()),
        );
        let found = faults(&exercise(), &passed, &refused);
        assert!(
            found.len() == 1 && found[0].contains("refuses the starter"),
            "{found:?}"
        );
        let unsupported = outcomes(Outcome::Passed, Outcome::Unsupported("no kprobes".into()));
        let failed = outcomes(Outcome::Failed("so".into()), Outcome::Passed);
        let found = faults(&exercise(), &unsupported, &failed);
        assert_eq!(found, ["two cannot be run here: no kprobes"]);
        let found = faults(&exercise(), &Outcomes::new(), &failed);
        assert!(
            found.iter().all(|fault| fault.contains("did not come to an end")),
            "{found:?}"
        );
    }
}
