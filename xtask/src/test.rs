//! `cargo xtask test`: everything that has a verdict. Tests of the host run as the user; tests on the kernel, which
//! stand in targets named `kernel` (or `kernel_…`), run as root.

mod failures;
mod kernel_tests;
mod outcome;
mod tally;

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Write, stdout},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::failures::Failures;
pub use self::{
    kernel_tests::KernelTests,
    outcome::{Line, Outcome, RESULTS},
    tally::Tally,
};
use crate::{
    cargo::{self, Executable, Package},
    interrupt,
    kernels::{self, Declared, Outcomes, Record, Shown},
    labs,
    privilege::Privilege,
    setup, terminal,
    usage::UsageError,
    vm,
    workspace::Workspace,
};

/// The name of the test targets that need a kernel to load programs into, and root.
pub const KERNEL: &str = "kernel";

/// Asks tests for their long form: `testbed::harness::LONG`.
const LONG: &str = "EBPF_LONG_TESTS";

/// How many inputs a property test tries: 256 if unset.
const CASES: &str = "PROPTEST_CASES";

/// The number from which the property tests draw their inputs: another one each time if unset, and a test of one commit
/// would fail by luck. So the ordinary tests have one that does not change; the long ones seek what those have missed.
const SEED: &str = "PROPTEST_RNG_SEED";

/// What to test.
#[derive(Args)]
pub struct Options {
    /// Only this lab: its number as in lab01, or the name of its folder.
    lab: Option<String>,

    /// Only the tests on the kernel, in a virtual machine with this one: a series such as 5.10, several with commas
    /// between them, `newest`, `all` (5.10, 6.1, 6.12, 6.18 and the newest), or an image such as ./bzImage. Needs neither
    /// root nor hardware virtualization.
    #[arg(long, value_name = "VERSION|all|FILE")]
    kernel: Option<String>,

    /// The folder with the modules of the kernel that is given as a file.
    #[arg(long, value_name = "FOLDER", requires = "kernel")]
    modules: Option<PathBuf>,

    /// The processor of the virtual machine. For arm64 everything is built, linked and emulated with what is downloaded
    /// into the project.
    #[arg(long, value_enum, value_name = "amd64|arm64", default_value_t, hide_possible_values = true, requires = "kernel",
          conflicts_with_all = ["modules", "bless"])]
    arch: vm::Processor,

    /// Take what these kernels can do over into the guide's table of kernels, instead of comparing.
    #[arg(long, requires = "kernel", conflicts_with_all = ["modules", "filter"])]
    bless: bool,

    /// Only the tests that show a feature of the table of kernels.
    #[arg(long, requires = "kernel", conflicts_with = "filter")]
    features: bool,

    /// Have tests that try many cases try as many as they can be asked for; takes minutes.
    #[arg(long, conflicts_with = "kernel")]
    long: bool,

    /// What the test runners are given: a part of the names of the tests to run, or options such as --nocapture.
    #[arg(last = true, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Runs the tests and prints, as the last line, how many passed and failed.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let packages = selected(workspace, options.lab.as_deref())?;
    setup::ensure(workspace)?;
    if let Some(kernel) = &options.kernel {
        return run_in_vm(workspace, options, kernel, &packages);
    }
    let started = Instant::now();
    let built = cargo::build(workspace, "what is to be tested", &build_args(&packages))?;

    interrupt::note_only();
    let mut session = Session {
        workspace,
        filter: &options.filter,
        long: options.long,
        screen: Box::new(stdout()),
        tally: Tally::default(),
        failures: Vec::new(),
        outcomes: Outcomes::new(),
        took: vec![("building".into(), started.elapsed())],
    };
    session.run_on_host(&packages)?;
    let kernel_tests: Vec<_> = built
        .executables
        .iter()
        .filter(|program| is_kernel_test(program))
        .collect();
    if !kernel_tests.is_empty() {
        session.run_on_kernel(&kernel_tests)?;
        if options.filter.is_empty() {
            session.compare_with_the_table_of_kernels(&packages)?;
        }
    }
    Ok(session.conclude())
}

/// Runs the tests on the kernel in a virtual machine; those of the host do not depend on the kernel.
fn run_in_vm(workspace: &Workspace, options: &Options, kernel: &str, selected: &[Package]) -> Result<ExitCode> {
    let mut packages: Vec<_> = selected
        .iter()
        .filter(|package| package.has_target("test", KERNEL))
        .cloned()
        .collect();
    if packages.is_empty() {
        bail!(UsageError("it has no tests on the kernel".into()));
    }
    let declared = kernels::read_all(&packages)?;
    if options.features {
        packages.retain(|package| declared.iter().any(|declared| declared.name == package.name));
        if packages.is_empty() {
            bail!(UsageError("no kernels.toml names its features".into()));
        }
    }
    let lab = vm::Lab::obtain(workspace, kernel, options.modules.as_deref(), options.arch)?;
    let mut args = vec!["test", "--no-run", "--test", KERNEL];
    // All of them, as for the tests on this machine, so that nothing is built with other features than for those.
    args.extend(package_args(selected));
    let (built, arm64) = match options.arch {
        vm::Processor::Amd64 => (cargo::build(workspace, "what is to be tested", &args)?, None),
        vm::Processor::Arm64 => {
            let root = vm::arm64::Root::obtain(workspace)?;
            let programs = root.build(workspace, &args)?;
            (programs.tests, Some((root, programs.init)))
        }
    };
    let is_wanted = |test: &&Executable| packages.iter().any(|package| package.name == test.package);
    let mut tests: Vec<_> = built
        .executables
        .iter()
        .filter(|program| is_kernel_test(program))
        .filter(is_wanted)
        .collect();
    // Not in the order in which they happened to be built.
    tests.sort_by(|one, other| one.package.cmp(&other.package));
    let what = vm::What {
        tests: &tests,
        programs: &built.executables,
        filter: &options.filter,
        only: options.features.then_some(&declared),
        arm64: arm64.as_ref().map(|(root, init)| (root, init.as_path())),
    };
    let mut reports = lab.test(workspace, &what)?;
    if options.filter.is_empty() && !interrupt::happened() {
        use_table_of_kernels(workspace, &declared, &mut reports, options.bless)?;
    }
    Ok(vm::conclude(&reports, &tests))
}

/// Compares what the kernels of Debian have shown with the table, or takes it over.
fn use_table_of_kernels(
    workspace: &Workspace,
    declared: &[Declared],
    reports: &mut [vm::KernelReport],
    bless: bool,
) -> Result<()> {
    let record = Record::read(workspace.root())?;
    let mut blessed = Vec::new();
    for report in reports.iter_mut().filter(|report| report.is_of_debian()) {
        let shown = Shown::by(&report.tests, declared);
        report.failures.extend(shown.faults.iter().cloned());
        if !bless {
            report.failures.extend(shown.differences(&record, &report.name));
        } else if let Some(release) = report.release.clone() {
            blessed.push((report.name.clone(), release, shown));
        }
    }
    if bless {
        // Those of packages that were not tested stay as they are.
        let all = kernels::read_all(&cargo::packages(workspace)?)?;
        kernels::bless(workspace.root(), &all, &blessed)?;
        println!("\nThe table of kernels was written.");
    }
    Ok(())
}

/// The packages to test: the default ones, or those in the lab's folder. None of them is built for BPF.
fn selected(workspace: &Workspace, lab: Option<&str>) -> Result<Vec<Package>> {
    let mut packages = cargo::packages(workspace)?;
    packages.retain(|package| package.is_default);
    if let Some(lab) = lab {
        let lab = labs::find(workspace, lab)?;
        packages.retain(|package| package.folder.starts_with(&lab.folder));
    }
    Ok(packages)
}

fn build_args(packages: &[Package]) -> Vec<&str> {
    let mut args = vec!["test", "--no-run"];
    args.extend(package_args(packages));
    args
}

fn package_args<'a>(packages: impl IntoIterator<Item = &'a Package>) -> impl Iterator<Item = &'a str> {
    packages.into_iter().flat_map(|package| ["--package", &package.name])
}

fn is_kernel_test(program: &Executable) -> bool {
    program.kind == "test" && is_kernel_target(&program.target)
}

/// Besides `kernel` itself, `kernel_…`: what needs a kernel and is too slow for an emulated one.
fn is_kernel_target(name: &str) -> bool {
    name.strip_prefix(KERNEL)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// One run of the tests.
struct Session<'a> {
    workspace: &'a Workspace,
    filter: &'a [String],
    /// Whether tests are asked for their long form.
    long: bool,
    /// Where the output of the runners goes.
    screen: Box<dyn Write>,
    tally: Tally,
    /// What went wrong, a line each, to be repeated at the end.
    failures: Vec<String>,
    /// What came of each test on the kernel.
    outcomes: Outcomes,
    /// What has taken how long.
    took: Vec<(String, Duration)>,
}

impl Session<'_> {
    fn run_on_host(&mut self, packages: &[Package]) -> Result<()> {
        if let Some(targets) = host_targets(packages) {
            let args = package_args(packages).chain(targets);
            self.run_cargo_test("tests of the host", args)?;
        }
        let libraries: Vec<_> = packages.iter().filter(|package| has_library(package)).collect();
        if !libraries.is_empty() {
            let args = package_args(libraries).chain(["--doc"]);
            self.run_cargo_test("examples in the documentation", args)?;
        }
        Ok(())
    }

    fn run_cargo_test<'b>(&mut self, what: &str, args: impl Iterator<Item = &'b str>) -> Result<()> {
        heading(what);
        let mut cargo = cargo::command(self.workspace);
        cargo
            .args(["test", "--no-fail-fast", "--quiet"])
            .args(args)
            .arg("--")
            .args(self.filter)
            .envs(self.variables());
        self.run(what, &mut cargo)
    }

    /// What the tests are told.
    fn variables(&self) -> Vec<(&'static str, &'static OsStr)> {
        let mut variables = Vec::new();
        if self.long {
            variables.extend([(LONG, OsStr::new("1")), (CASES, OsStr::new("25600"))]);
        } else if env::var_os(SEED).is_none() {
            variables.push((SEED, OsStr::new("1")));
        }
        variables
    }

    fn run_on_kernel(&mut self, kernel_tests: &[&Executable]) -> Result<()> {
        let privilege = match Privilege::obtain("testing on the kernel") {
            Ok(privilege) => privilege,
            Err(error) => {
                self.fail(format!("{error:#}"));
                return Ok(());
            }
        };
        let target = self.workspace.target();
        fs::create_dir_all(&target).with_context(|| format!("{} cannot be made", target.display()))?;
        let results = target.join("kernel-results");
        let args: Vec<_> = threads(self.filter)
            .into_iter()
            .chain(self.filter.iter().cloned())
            .collect();
        let tests = KernelTests::new(self.workspace, privilege, results);
        for program in kernel_tests {
            let what = match program.target.strip_prefix(KERNEL).unwrap_or_default() {
                "" => format!("{} on the kernel", program.package),
                part => format!("{} on the kernel ({})", program.package, part.trim_start_matches('_')),
            };
            heading(&what);
            self.run(&what, &mut tests.command(program, &args, &self.variables())?)?;
            for (name, outcome) in tests.outcomes().unwrap_or_default() {
                self.outcomes.insert((program.package.clone(), name), outcome);
            }
        }
        Ok(())
    }

    fn compare_with_the_table_of_kernels(&mut self, packages: &[Package]) -> Result<()> {
        if interrupt::happened() {
            return Ok(());
        }
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let series = release.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        let record = Record::read(self.workspace.root())?;
        let shown = Shown::by(&self.outcomes, &kernels::read_all(packages)?);
        let contradictions = shown.contradictions(&record, &series);
        for fault in shown.faults.into_iter().chain(contradictions) {
            self.fail(fault);
        }
        Ok(())
    }

    /// Runs `command`, shows its output and adds the counts in it. One that fails without having counted a failure
    /// has crashed, and one that counted nothing has tested nothing: either is a failure.
    fn run(&mut self, what: &str, command: &mut Command) -> Result<()> {
        if interrupt::happened() {
            return Ok(());
        }
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        let mut counted: Option<Tally> = None;
        let mut failed = Failures::default();
        for line in BufReader::new(child.stdout.take().context("the output of the tests is lost")?).split(b'\n') {
            let line = line.context("the output of the tests cannot be read")?;
            self.screen.write_all(&line)?;
            self.screen.write_all(b"\n")?;
            let line = String::from_utf8_lossy(&line);
            failed.hear(&line);
            if let Some(tally) = Tally::of_line(&line) {
                counted.get_or_insert_default().add(tally);
            }
        }
        let status = child.wait()?;
        self.took.push((what.to_owned(), started.elapsed()));

        let tally = counted.unwrap_or_default();
        self.tally.add(tally);
        if interrupt::happened() {
            return Ok(());
        }
        match counted {
            Some(_) if tally.failed > 0 => {
                let mut lines = vec![format!("{what}: {} failed", tally.failed)];
                lines.extend(failed.told());
                self.failures.push(lines.join("\n"));
            }
            Some(_) if !status.success() => self.fail(format!("{what}: the runner ended with {status}")),
            None if status.success() => self.fail(format!("{what}: ended without having tested anything")),
            None => self.fail(format!("{what}: ended with {status} before any result")),
            Some(_) => {}
        }
        Ok(())
    }

    fn fail(&mut self, why: String) {
        self.tally.failed += 1;
        self.failures.push(why);
    }

    fn conclude(&self) -> ExitCode {
        let style = terminal::stdout();
        println!();
        for (what, took) in &self.took {
            println!("{:>5} s  {what}", took.as_secs());
        }
        println!();
        for failure in &self.failures {
            println!("{} {failure}", style.red("✗"));
        }
        if interrupt::happened() {
            println!("interrupted; so far:");
        }
        println!("{}", self.tally);
        match (interrupt::happened(), self.tally.failed) {
            (true, _) => interrupt::status(),
            (false, 0) => ExitCode::SUCCESS,
            (false, _) => ExitCode::FAILURE,
        }
    }
}

/// Twice as many threads as there are processors: most of these tests wait for packets most of the time.
fn threads(filter: &[String]) -> Option<String> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let is_told = filter.iter().any(|arg| arg.starts_with("--test-threads"));
    (!is_told).then(|| format!("--test-threads={}", 2 * processors))
}

/// The options that make cargo test everything but the tests on the kernel; `None` if nothing is left.
fn host_targets(packages: &[Package]) -> Option<Vec<&str>> {
    let targets = || packages.iter().flat_map(|package| &package.targets);
    let mut options = Vec::new();
    if packages.iter().any(has_library) {
        options.push("--lib");
    }
    if targets().any(|(kind, _)| kind == "bin") {
        options.push("--bins");
    }
    let mut names: Vec<_> = targets()
        .filter(|(kind, name)| kind == "test" && !is_kernel_target(name))
        .map(|(_, name)| name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    options.extend(names.into_iter().flat_map(|name| ["--test", name]));
    (!options.is_empty()).then_some(options)
}

fn has_library(package: &Package) -> bool {
    package.targets.iter().any(|(kind, _)| kind == "lib")
}

fn heading(what: &str) {
    println!("\n{}", terminal::stdout().bold(&format!("── {what}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, targets: &[(&str, &str)]) -> Package {
        let targets = targets
            .iter()
            .map(|(kind, name)| ((*kind).to_owned(), (*name).to_owned()));
        Package {
            name: name.into(),
            folder: "/w".into(),
            targets: targets.collect(),
            is_default: true,
        }
    }

    #[test]
    fn tests_on_the_kernel_are_not_among_those_of_the_host() {
        let packages = [
            package("lab01", &[("lib", "lab01"), ("bin", "lab01"), ("test", "kernel")]),
            package("common", &[("lib", "common"), ("test", "parser")]),
            package("other", &[("test", "parser")]),
        ];
        assert_eq!(
            host_targets(&packages).unwrap(),
            ["--lib", "--bins", "--test", "parser"]
        );
    }

    #[test]
    fn a_package_with_kernel_tests_only_has_nothing_for_the_host() {
        assert_eq!(host_targets(&[package("lab01", &[("test", "kernel")])]), None);
    }

    fn session_of<'a>(workspace: &'a Workspace, script: &str) -> Session<'a> {
        let mut session = Session {
            workspace,
            filter: &[],
            long: false,
            // Were it shown, a run of these very tests would be counted wrongly.
            screen: Box::new(std::io::sink()),
            tally: Tally::default(),
            failures: Vec::new(),
            outcomes: Outcomes::new(),
            took: Vec::new(),
        };
        session.run("runner", Command::new("sh").args(["-c", script])).unwrap();
        session
    }

    #[test]
    fn a_runner_that_crashes_after_its_counts_is_a_failure() {
        let workspace = Workspace::at("/");
        let script = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'; exit 3";
        let session = session_of(&workspace, script);
        assert_eq!((session.tally.passed, session.tally.failed), (2, 1));
        assert_eq!(session.failures, ["runner: the runner ended with exit status: 3"]);
    }

    #[test]
    fn a_runner_that_tested_nothing_is_a_failure() {
        let workspace = Workspace::at("/");
        assert_eq!(session_of(&workspace, "true").tally.failed, 1);
        assert_eq!(session_of(&workspace, "kill -9 $$").tally.failed, 1);
    }

    #[test]
    fn all_runners_are_summed_and_failures_are_not_counted_twice() {
        let workspace = Workspace::at("/");
        let script = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored'; \
                      echo 'test result: FAILED. 3 passed; 1 failed; 0 ignored'; exit 101";
        let session = session_of(&workspace, script);
        assert_eq!(session.tally.to_string(), "5 passed, 1 failed, 1 skipped");
        assert_eq!(session.failures, ["runner: 1 failed"]);
    }

    #[test]
    fn a_failed_tests_name_and_reason_are_told_again() {
        let workspace = Workspace::at("/");
        let script = "echo '---- it_counts ----'; echo 'no packet came'; echo; echo 'failures:'; echo '    it_counts'; \
                      echo 'test result: FAILED. 3 passed; 1 failed; 0 ignored'; exit 101";
        let session = session_of(&workspace, script);
        assert_eq!(session.failures, ["runner: 1 failed\n  it_counts\n    no packet came"]);
    }
}
