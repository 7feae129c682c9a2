//! Tests inside virtual machines with other kernels: the very programs that run on this machine's kernel.

mod archive;
pub mod guest;
mod initramfs;
mod kernel;
mod message;
mod modules;
mod qemu;
mod report;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use self::{
    initramfs::Tree,
    kernel::Kernel,
    message::{JOB, Job, Message, Run},
    modules::Modules,
    qemu::{COMMAND_LINE, End, Limits, Machine, Qemu},
    report::{KernelReport, Outcome},
};
use crate::{
    cargo::Executable, interrupt, machine::find_in_path, terminal, test::Tally, usage::UsageError, workspace::Workspace,
};

/// What tests run beside the labs' own programs. One that this machine lacks is not in the guest either, and the tests
/// that want it say so.
const TOOLS: [&str; 15] = [
    "sh", "bpftool", "cat", "echo", "env", "head", "ip", "kill", "nsenter", "readlink", "setpriv", "sleep", "tc",
    "true", "unshare",
];

/// QEMU, and the kernels to test on.
pub struct Lab {
    qemu: Qemu,
    kernels: Vec<Kernel>,
}

impl Lab {
    /// Finds what is needed, and downloads what is missing. `kernel` is a series, `all`, or a file, whose modules lie in
    /// `modules`.
    pub fn obtain(workspace: &Workspace, kernel: &str, modules: Option<&Path>) -> Result<Self> {
        if modules.is_some() && !kernel::is_image(kernel) {
            bail!(UsageError(format!(
                "--modules goes with a kernel that is a file; those of {kernel} come with it"
            )));
        }
        let kernels = if kernel::is_image(kernel) {
            vec![Kernel::given(Path::new(kernel), modules)?]
        } else {
            let all: &[&str] = if kernel == "all" { &kernel::ALL } else { &[kernel] };
            let obtain = |series: &&str| Kernel::of_series(workspace, series);
            all.iter().map(obtain).collect::<Result<_>>()?
        };
        let qemu = Qemu::obtain(workspace)?;
        Ok(Self { qemu, kernels })
    }

    /// Runs kernel tests; `programs` are the labs' own, among others.
    pub fn test(
        &self,
        workspace: &Workspace,
        tests: &[&Executable],
        programs: &[Executable],
        filter: &[String],
    ) -> Result<ExitCode> {
        let guest = Guest::of(workspace, tests, programs, filter)?;
        interrupt::note_only();
        let mut reports = Vec::new();
        for kernel in &self.kernels {
            if interrupt::happened() {
                break;
            }
            reports.push(guest.run(workspace, &self.qemu, kernel)?);
        }
        Ok(conclude(&reports, tests))
    }
}

/// Downloads QEMU where this machine has none, and the kernels of `all` where there are none or newer ones.
pub fn prepare(workspace: &Workspace) -> Result<()> {
    for series in kernel::ALL {
        Kernel::renew(workspace, series)?;
    }
    Qemu::obtain(workspace).map(drop)
}

/// What is the same for all kernels.
struct Guest {
    /// The archive with the programs.
    programs: Vec<u8>,
    runs: Vec<(String, Run)>,
}

impl Guest {
    fn of(workspace: &Workspace, tests: &[&Executable], programs: &[Executable], filter: &[String]) -> Result<Self> {
        let folder = scratch(workspace)?;
        let stripped = |program: &Path| initramfs::stripped(program, &folder);
        let mut tree = Tree::default();
        for folder in ["/dev", "/proc", "/root", "/run", "/sys", "/tmp"] {
            tree.folder(folder);
        }
        tree.ourselves("/init", stripped)?;
        for tool in TOOLS.iter().filter_map(|tool| find_in_path(tool, guest::PATH.as_ref())) {
            tree.program(&tool, initramfs::contents)?;
        }
        for test in tests {
            tree.program(&test.path, stripped)?;
            // A test knows the lab's own program by the path that cargo gave it.
            for program in programs.iter().filter(|program| is_own_program(program, test)) {
                tree.program(&program.path, stripped)?;
            }
            tree.folder(&test.folder);
        }
        Ok(Self {
            programs: tree.archive(),
            runs: tests
                .iter()
                .map(|test| (test.package.clone(), run_of(test, filter)))
                .collect(),
        })
    }

    fn run(&self, workspace: &Workspace, qemu: &Qemu, kernel: &Kernel) -> Result<KernelReport> {
        let files = Files::of(&scratch(workspace)?, &kernel.name);
        let modules = match &kernel.modules {
            Some(folder) => Modules::in_folder(folder)?,
            None => Modules::none(),
        };
        let loadable = modules.loadable()?;
        if !loadable.absent.is_empty() {
            println!("Linux {} has no modules {}", kernel.name, loadable.absent.join(", "));
        }
        let mut initramfs = self.programs.clone();
        initramfs.extend(self.job_with(&loadable.modules)?);
        fs::write(&files.initramfs, initramfs)
            .with_context(|| format!("{} cannot be written", files.initramfs.display()))?;

        let machine = Machine {
            image: &kernel.image,
            initramfs: &files.initramfs,
            command_line: COMMAND_LINE,
        };
        let started = Instant::now();
        let mut listener = Listener::new(&kernel.name, self.runs.iter().map(|(package, _)| package.as_str()));
        let end = qemu::boot(qemu, &machine, &files.console, Limits::USUAL, |message| {
            listener.hear(message);
        })?;
        let mut report = listener.finish(end);
        println!("{} in {:.0} s", report.tally(), started.elapsed().as_secs_f64());
        if interrupt::happened() {
            report.failures.clear();
        }
        Ok(report)
    }

    /// A further archive, which the kernel unpacks after the one with the programs: the modules and the job.
    fn job_with(&self, modules: &[modules::Module]) -> Result<Vec<u8>> {
        let mut tree = Tree::default();
        let mut job = Job::default();
        for module in modules {
            let path = format!("/modules/{}.ko", module.name);
            tree.file(&path, 0o644, module.content.clone());
            job.modules.push(message::Module {
                name: module.name.clone(),
                path,
                parameters: module.parameters.to_owned(),
            });
        }
        job.runs = self.runs.iter().map(|(_, run)| run.clone()).collect();
        tree.file(JOB, 0o644, serde_json::to_vec(&job)?);
        Ok(tree.archive())
    }
}

/// The folder for what guests need while they run, and for their consoles.
fn scratch(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    Ok(folder)
}

fn is_own_program(program: &Executable, test: &Executable) -> bool {
    // A test of the program's own code is called after it, with a hash.
    program.package == test.package && program.kind == "bin" && program.path.ends_with(&program.target)
}

fn run_of(test: &Executable, filter: &[String]) -> Run {
    let mut variables = vec![
        ("EBPF_KERNEL_TESTS".to_owned(), "1".to_owned()),
        ("CARGO_MANIFEST_DIR".to_owned(), test.folder.display().to_string()),
    ];
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        variables.extend(env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    Run {
        program: test.path.clone(),
        folder: test.folder.clone(),
        args: filter.to_vec(),
        variables,
    }
}

/// The files of one guest.
struct Files {
    initramfs: PathBuf,
    console: PathBuf,
}

impl Files {
    fn of(folder: &Path, kernel: &str) -> Self {
        let name = kernel.replace('/', "_");
        Self {
            // Several runs may go on at the same time.
            initramfs: folder.join(format!("{name}-{}.cpio", std::process::id())),
            console: folder.join(format!("{name}.console")),
        }
    }
}

/// The console is of use afterwards; the archive is big and made again each time.
impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_file(&self.initramfs).ok();
    }
}

/// Shows what a guest says, and keeps the outcomes.
struct Listener<'a> {
    report: KernelReport,
    /// The packages whose tests have not ended yet; the first is the one that runs.
    packages: Vec<&'a str>,
    /// How many outcomes of the running package there are.
    counted: usize,
    /// Whether the runner's last line, with its counts, has come.
    summed: bool,
    /// The modules that the kernel has refused, by its reason.
    refused: BTreeMap<String, Vec<String>>,
}

impl<'a> Listener<'a> {
    fn new(kernel: &str, packages: impl Iterator<Item = &'a str>) -> Self {
        Self {
            report: KernelReport {
                name: kernel.to_owned(),
                ..KernelReport::default()
            },
            packages: packages.collect(),
            counted: 0,
            summed: false,
            refused: BTreeMap::new(),
        }
    }

    fn hear(&mut self, message: Message) {
        let style = terminal::stdout();
        match message {
            Message::Booted { release, version } => {
                println!("\n{}", style.bold(&format!("══ Linux {release} ({version})")));
                self.report.release = Some(release);
                self.announce();
            }
            Message::ModuleRefused { name, error } => self.refused.entry(error).or_default().push(name),
            Message::Result(line) => {
                if let Some((test, outcome)) = Outcome::of_line(&line) {
                    let package = self.packages.first().copied().unwrap_or_default().to_owned();
                    self.report.tests.insert((package, test), outcome);
                    self.counted += 1;
                }
                self.summed |= line.starts_with("test result: ");
                println!("{line}");
            }
            Message::Output(line) => println!("{line}"),
            Message::Ended { failure } => self.ended(failure),
            Message::Done => {}
        }
    }

    /// A runner fails when a test of it does, which is told already.
    fn ended(&mut self, failure: Option<String>) {
        let Some(package) = self.packages.first().map(|package| (*package).to_owned()) else {
            self.report.failures.extend(failure);
            return;
        };
        self.packages.remove(0);
        let failed = |((of, _), outcome): (&(String, String), &Outcome)| *of == package && *outcome == Outcome::Failed;
        match failure {
            Some(failure) if !self.summed || !self.report.tests.iter().any(failed) => {
                self.fail(format!("{package}: {failure}"));
            }
            None if self.counted == 0 => self.fail(format!("{package}: ended without having tested anything")),
            _ => {}
        }
        (self.counted, self.summed) = (0, false);
        self.announce();
    }

    fn announce(&self) {
        if let Some(package) = self.packages.first() {
            println!("\n{}", terminal::stdout().bold(&format!("── {package}")));
        }
    }

    fn fail(&mut self, why: String) {
        println!("{} {why}", terminal::stdout().red("✗"));
        self.report.failures.push(why);
    }

    fn finish(mut self, end: End) -> KernelReport {
        for (error, modules) in std::mem::take(&mut self.refused) {
            let modules = modules.join(", ");
            self.fail(format!(
                "the kernel has refused modules ({error}), as it does with those of another kernel: {modules}"
            ));
        }
        match end {
            End::Done => {
                for package in std::mem::take(&mut self.packages) {
                    self.fail(format!("{package}: not run"));
                }
            }
            End::Failed { console, .. } if interrupt::happened() => drop(console),
            End::Failed { why, console } => {
                let during = match (&self.report.release, self.packages.first()) {
                    (None, _) => "while booting".to_owned(),
                    (Some(_), Some(package)) => format!("during the tests of {package}"),
                    (Some(_), None) => "at the end".to_owned(),
                };
                println!("\nthe last lines of the console:");
                for line in console {
                    println!("  {line}");
                }
                self.fail(format!("the guest was lost {during}: {why}"));
            }
        }
        self.report
    }
}

/// Repeats at the end what is not as it should be; the last line counts, as after a run on this machine's kernel.
fn conclude(reports: &[KernelReport], tests: &[&Executable]) -> ExitCode {
    let style = terminal::stdout();
    let packages: Vec<_> = tests.iter().map(|test| test.package.clone()).collect();
    println!("\n{}", report::table(reports, &packages));
    for (failed, remark) in report::remarks(reports) {
        let mark = if failed { style.red("✗") } else { "–".to_owned() };
        println!("{mark} {remark}");
    }
    if interrupt::happened() {
        println!("interrupted; so far:");
    }
    let mut tally = Tally::default();
    for report in reports {
        tally.add(report.tally());
    }
    println!("{tally}");
    match (interrupt::happened(), tally.failed) {
        (true, _) => interrupt::status(),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The failures beside the tests that come of what a guest with these packages says.
    fn failures(packages: &[&str], messages: Vec<Message>, end: End) -> Vec<String> {
        let mut listener = Listener::new("5.10", packages.iter().copied());
        for message in messages {
            listener.hear(message);
        }
        listener.finish(end).failures
    }

    fn result(line: &str) -> Message {
        Message::Result(line.into())
    }

    fn ended(failure: Option<&str>) -> Message {
        let failure = failure.map(Into::into);
        Message::Ended { failure }
    }

    const FAILED: Option<&str> = Some("the runner ended with exit status 101");

    #[test]
    fn a_runner_that_failed_with_its_tests_is_no_further_failure() {
        let messages = vec![
            result("test a ... FAILED"),
            result("test result: FAILED. 0 passed; 1 failed; 0 ignored;"),
            ended(FAILED),
        ];
        assert!(failures(&["lab01"], messages, End::Done).is_empty());
    }

    #[test]
    fn a_runner_that_crashed_is_a_failure_though_a_test_had_failed_before() {
        let messages = vec![result("test a ... FAILED"), ended(FAILED)];
        let expected = ["lab01: the runner ended with exit status 101"];
        assert_eq!(failures(&["lab01"], messages, End::Done), expected);
    }

    #[test]
    fn a_runner_that_tested_nothing_or_was_never_started_is_a_failure() {
        let expected = ["lab01: ended without having tested anything", "lab02: not run"];
        assert_eq!(failures(&["lab01", "lab02"], vec![ended(None)], End::Done), expected);
    }

    #[test]
    fn a_lost_guest_is_told_by_where_it_was_lost() {
        let lost = || End::Failed {
            why: "it was silent for 120 s".into(),
            console: Vec::new(),
        };
        let booted = || Message::Booted {
            release: "5.10.0".into(),
            version: "#1".into(),
        };
        let told = |packages: &[&str], messages| failures(packages, messages, lost()).concat();
        assert!(told(&["lab01"], vec![]).contains("while booting"));
        assert!(told(&["lab01"], vec![booted()]).contains("during the tests of lab01"));
        let tested = vec![booted(), result("test a ... ok"), ended(None)];
        assert!(told(&["lab01"], tested).contains("at the end: it was silent"));
    }

    #[test]
    fn refused_modules_are_one_failure() {
        let refused = |name: &str| Message::ModuleRefused {
            name: name.into(),
            error: "Exec format error".into(),
        };
        let messages = vec![refused("veth"), refused("tun"), result("test a ... ok"), ended(None)];
        let failures = failures(&["lab01"], messages, End::Done);
        assert_eq!(failures.len(), 1);
        assert!(failures[0].ends_with("another kernel: veth, tun"), "{failures:?}");
    }

    #[test]
    fn a_labs_own_program_is_told_from_the_tests_of_its_code() {
        let executable = |kind: &str, target: &str, path: &str| Executable {
            package: "lab01".into(),
            folder: "/w/lab01".into(),
            target: target.into(),
            kind: kind.into(),
            path: path.into(),
        };
        let test = executable("test", "kernel", "/w/target/release/deps/kernel-1");
        assert!(is_own_program(
            &executable("bin", "lab01", "/w/target/release/lab01"),
            &test
        ));
        for other in ["/w/target/release/deps/lab01-0123", "/w/target/release/deps/kernel-1"] {
            assert!(!is_own_program(&executable("bin", "lab01", other), &test));
        }
    }
}
