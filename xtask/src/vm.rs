//! Tests inside virtual machines with other kernels (Z13): the very programs that run on this machine's kernel.

mod archive;
pub mod arm64;
pub mod guest;
mod initramfs;
mod kernel;
mod message;
mod modules;
mod processor;
mod qemu;
mod report;

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions, TryLockError},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};

use self::{
    initramfs::Tree,
    kernel::Kernel,
    message::{JOB, Job, Message, Run},
    modules::Modules,
    qemu::{COMMAND_LINE, End, Limits, Machine, Qemu},
};
pub use self::{
    kernel::{ALL as ALL_KERNELS, NEWEST, beside},
    processor::Processor,
    report::KernelReport,
};
use crate::{
    bpftool,
    cargo::Executable,
    interrupt,
    kernels::Declared,
    machine::find_in_path,
    terminal,
    test::{Line, Outcome, Tally},
    workspace::Workspace,
};

/// What tests run beside the labs' own programs. One that this machine lacks is not in the guest either, and the tests
/// that want it say so.
const TOOLS: [&str; 16] = [
    "sh", "cat", "echo", "env", "head", "ip", "kill", "mkdir", "nsenter", "readlink", "rm", "setpriv", "sleep", "tc",
    "true", "unshare",
];

/// How the names of guests' archives end.
const ARCHIVE: &str = ".cpio";

/// QEMU, and the kernels to test on.
pub struct Lab {
    qemu: Qemu,
    kernels: Vec<Kernel>,
}

impl Lab {
    /// Finds what is needed, and downloads what is missing. `kernels` are series with commas between them, `all`, or a
    /// file, whose modules lie in `modules`.
    pub fn obtain(workspace: &Workspace, kernels: &str, modules: Option<&Path>, processor: Processor) -> Result<Self> {
        let kernels = kernel::Choice::of(kernels, modules)?.obtain(workspace, processor)?;
        let qemu = Qemu::obtain(workspace, processor)?;
        Ok(Self { qemu, kernels })
    }

    /// Runs kernel tests on each kernel: those of each package in a guest of their own, so that as many guests as this
    /// machine has processors share the work.
    pub fn test(&self, workspace: &Workspace, what: &What) -> Result<Vec<KernelReport>> {
        // The later labs' take longest, and come first: what is left in the end should be short.
        let tests = what.tests.iter().rev();
        let guests = tests
            .map(|test| Guest::of(workspace, test, what))
            .collect::<Result<Vec<_>>>()?;
        let jobs: Vec<_> = self
            .kernels
            .iter()
            .flat_map(|kernel| guests.iter().map(move |guest| (kernel, guest)))
            .collect();
        let parts = side_by_side(&jobs, |(kernel, guest)| {
            guest.test(workspace, &self.qemu, kernel, jobs.len() == 1)
        })?;
        let mut reports = Vec::new();
        for kernel in &self.kernels {
            let parts = parts.iter().filter(|part| part.report.name == kernel.name);
            let mut report = Part::join(&kernel.name, parts);
            if !what.filter.is_empty() && report.tests.is_empty() && report.failures.is_empty() {
                report
                    .failures
                    .push("there is no test on the kernel of such a name".into());
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// Runs `program` on each kernel, once with each of these files as its argument.
    pub fn ask(&self, workspace: &Workspace, program: &Path, files: &[PathBuf], args: &[&str]) -> Result<Vec<Answers>> {
        let guest = Guest::that_runs(workspace, program, files, args)?;
        side_by_side(&self.kernels, |kernel| guest.ask(workspace, &self.qemu, kernel))
    }
}

/// Does something with each of these, with as many of them at the same time as this machine has processors.
fn side_by_side<J: Sync, T: Send>(jobs: &[J], work: impl Fn(&J) -> Result<T> + Sync) -> Result<Vec<T>> {
    interrupt::note_only();
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let next = AtomicUsize::new(0);
    let some = || {
        let mut done = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            match jobs.get(place) {
                Some(job) if !interrupt::happened() => done.push((place, work(job)?)),
                _ => return Ok(done),
            }
        }
    };
    let done: Result<Vec<Vec<(usize, T)>>> = thread::scope(|scope| {
        let workers = (0..processors.min(jobs.len())).map(|_| scope.spawn(some));
        let workers: Vec<_> = workers.collect();
        let done = workers
            .into_iter()
            .map(|worker| worker.join().expect("no worker panics"));
        done.collect()
    });
    let mut done: Vec<_> = done?.into_iter().flatten().collect();
    done.sort_by_key(|(place, _)| *place);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// What came of one package's tests on a kernel.
struct Part {
    report: KernelReport,
    started: Instant,
    ended: Instant,
}

impl Part {
    /// What came of all of a kernel's, and how long it took from the first to the last.
    fn join<'a>(kernel: &str, parts: impl Iterator<Item = &'a Self>) -> KernelReport {
        let mut whole = KernelReport {
            name: kernel.to_owned(),
            ..KernelReport::default()
        };
        let mut time: Option<(Instant, Instant)> = None;
        for part in parts {
            whole.release = whole.release.or_else(|| part.report.release.clone());
            whole.tests.extend(part.report.tests.clone());
            whole.failures.extend(part.report.failures.iter().cloned());
            let (started, ended) = time.unwrap_or((part.started, part.ended));
            time = Some((started.min(part.started), ended.max(part.ended)));
        }
        whole.took = time.map(|(started, ended)| ended - started);
        whole
    }
}

/// What a program has said on a kernel.
#[derive(Debug, Default)]
pub struct Answers {
    /// What the user called the kernel.
    pub kernel: String,
    /// What the program printed in each run that came to its end.
    pub outputs: Vec<String>,
    /// What went wrong, a line each.
    pub failures: Vec<String>,
}

impl Answers {
    /// Whether the kernel is one of Debian, not one given as a file.
    pub fn is_of_debian(&self) -> bool {
        !kernel::is_image(&self.kernel)
    }

    /// `output` is what the current run has printed so far.
    fn hear(&mut self, output: &mut String, message: Message) {
        match message {
            Message::Output(line) => output.extend([line.as_str(), "\n"]),
            Message::Ended { failure } => {
                let output = std::mem::take(output);
                match failure {
                    Some(failure) => self.failures.push(format!("{failure}: {}", output.trim())),
                    None => self.outputs.push(output),
                }
            }
            _ => {}
        }
    }
}

/// What to run in the guests.
pub struct What<'a> {
    /// The test programs.
    pub tests: &'a [&'a Executable],
    /// The labs' own programs, among others.
    pub programs: &'a [Executable],
    /// What the test programs are given as arguments.
    pub filter: &'a [String],
    /// Only the tests that show one of these features.
    pub only: Option<&'a Vec<Declared>>,
    /// For arm64: what the guest's file system is made of, and its first program.
    pub arm64: Option<(&'a arm64::Root, &'a Path)>,
}

/// Downloads QEMU where this machine has none, and the kernels of `all` where there are none or newer ones.
pub fn prepare(workspace: &Workspace) -> Result<()> {
    for series in kernel::ALL {
        Kernel::renew(workspace, series)?;
    }
    Qemu::obtain(workspace, Processor::default()).map(drop)
}

/// What is the same for all kernels.
struct Guest {
    /// The package whose tests are run; nothing if it is asked something else.
    package: String,
    /// The archive with the programs.
    programs: Vec<u8>,
    /// Whether a filter may leave a run without a test.
    filtered: bool,
    runs: Vec<Run>,
}

impl Guest {
    fn of(workspace: &Workspace, test: &Executable, what: &What) -> Result<Self> {
        // A test knows the lab's own program by the path that cargo gave it.
        let own = what.programs.iter().filter(|program| is_own_program(program, test));
        let programs = [test].into_iter().chain(own).map(|program| program.path.as_path());
        let mut tree = match what.arm64 {
            Some((root, init)) => arm64_tree(root, init, programs)?,
            None => tree_of_this_machine(workspace, programs)?,
        };
        tree.folder(&test.folder);
        Ok(Self {
            package: test.package.clone(),
            programs: tree.archive(),
            filtered: !what.filter.is_empty(),
            runs: vec![run_of(test, what)],
        })
    }

    fn that_runs(workspace: &Workspace, program: &Path, files: &[PathBuf], args: &[&str]) -> Result<Self> {
        let folder = scratch(workspace)?;
        let mut tree = empty_tree(workspace)?;
        tree.program(program, |program| initramfs::stripped(program, &folder))?;
        let mut runs = Vec::new();
        for file in files {
            tree.file(file, 0o644, initramfs::contents(file)?);
            let file = file.display().to_string();
            let run = Run {
                program: program.to_owned(),
                folder: "/".into(),
                args: args.iter().map(|arg| (*arg).to_owned()).chain([file]).collect(),
                variables: Vec::new(),
            };
            runs.push(run);
        }
        Ok(Self {
            package: String::new(),
            programs: tree.archive(),
            filtered: false,
            runs,
        })
    }

    fn ask(&self, workspace: &Workspace, qemu: &Qemu, kernel: &Kernel) -> Result<Answers> {
        let mut answers = Answers {
            kernel: kernel.name.clone(),
            ..Answers::default()
        };
        let mut output = String::new();
        let files = Files::reserve(&scratch(workspace)?, &kernel.name)?;
        let end = self.boot(qemu, kernel, 1, &self.runs, &files, |message| {
            answers.hear(&mut output, message);
        })?;
        match end {
            End::Failed { why, .. } if !interrupt::happened() => {
                let console = files.console.display();
                answers
                    .failures
                    .push(format!("the guest was lost: {why}; its console is in {console}"));
            }
            _ => {}
        }
        Ok(answers)
    }

    /// Runs the package's tests on one kernel. `live` shows what they print at once, and not only when all have ended,
    /// which would be a muddle were there other guests at the same time.
    ///
    /// With one CPU, where nothing has to be kept apart from what another one does: that takes half as long to emulate.
    /// The tests that are about just that run once more, with two.
    fn test(&self, workspace: &Workspace, qemu: &Qemu, kernel: &Kernel, live: bool) -> Result<Part> {
        let files = Files::reserve(&scratch(workspace)?, &format!("{}-{}", kernel.name, self.package))?;
        let started = Instant::now();
        let mut listener = Listener::new(&kernel.name, &self.package, self.filtered, live);
        let mut end = self.boot(qemu, kernel, 1, &self.runs, &files, |message| listener.hear(message))?;
        let postponed = listener.take_postponed();
        if end == End::Done && !postponed.is_empty() && !interrupt::happened() {
            let only = |run: &Run| run.with(("EBPF_KERNEL_ONLY".to_owned(), postponed.join(",")));
            let runs: Vec<_> = self.runs.iter().map(only).collect();
            listener.goes_on();
            end = self.boot(qemu, kernel, 2, &runs, &files, |message| listener.hear(message))?;
        }
        fs::write(&files.results, listener.results.concat())
            .with_context(|| format!("{} cannot be written", files.results.display()))?;
        let (mut report, kept) = listener.finish(end, &files.console, &postponed);
        let ended = Instant::now();
        let seconds = (ended - started).as_secs_f64();
        let lacking = match kernel.modules {
            Some(_) => "",
            None => ", without a module (`--modules FOLDER` gives them)",
        };
        println!(
            "{kept}Linux {}, {}: {} in {seconds:.0} s{lacking}",
            report.name,
            self.package,
            report.tally()
        );
        if interrupt::happened() {
            report.failures.clear();
        }
        Ok(Part { report, started, ended })
    }

    /// Boots a kernel, which does the runs.
    fn boot(
        &self,
        qemu: &Qemu,
        kernel: &Kernel,
        cpus: usize,
        runs: &[Run],
        files: &Files,
        hear: impl FnMut(Message),
    ) -> Result<End> {
        let modules = match &kernel.modules {
            Some(folder) => Modules::in_folder(folder)?,
            None => Modules::none(),
        };
        let loadable = modules.loadable()?;
        if !loadable.absent.is_empty() {
            println!("Linux {} has no modules {}", kernel.name, loadable.absent.join(", "));
        }
        let mut initramfs = self.programs.clone();
        initramfs.extend(job_with(&loadable.modules, runs)?);
        fs::write(&files.initramfs, initramfs)
            .with_context(|| format!("{} cannot be written", files.initramfs.display()))?;

        let machine = Machine {
            image: &kernel.image,
            initramfs: &files.initramfs,
            command_line: COMMAND_LINE,
            cpus,
        };
        qemu::boot(qemu, &machine, &files.console, Limits::USUAL, hear)
    }
}

/// A further archive, which the kernel unpacks after the one with the programs: the modules and the job.
fn job_with(modules: &[modules::Module], runs: &[Run]) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    let mut job = Job {
        runs: runs.to_vec(),
        ..Job::default()
    };
    for module in modules {
        let path = format!("/modules/{}.ko", module.name);
        tree.file(&path, 0o644, module.content.clone());
        job.modules.push(message::Module {
            name: module.name.clone(),
            path,
            parameters: module.parameters.to_owned(),
        });
    }
    tree.file(JOB, 0o644, serde_json::to_vec(&job)?);
    Ok(tree.archive())
}

/// What tests need of this machine, and these programs, with the libraries of all.
fn tree_of_this_machine<'a>(workspace: &Workspace, programs: impl Iterator<Item = &'a Path>) -> Result<Tree> {
    let folder = scratch(workspace)?;
    let mut tree = empty_tree(workspace)?;
    for tool in TOOLS.iter().filter_map(|tool| find_in_path(tool, guest::PATH.as_ref())) {
        tree.program(&tool, initramfs::contents)?;
    }
    add_bpftool(&mut tree, workspace)?;
    for program in programs {
        tree.program(program, |program| initramfs::stripped(program, &folder))?;
    }
    Ok(tree)
}

/// The same of Debian's packages for arm64.
fn arm64_tree<'a>(root: &arm64::Root, init: &Path, programs: impl Iterator<Item = &'a Path>) -> Result<Tree> {
    let mut tree = Tree::with_folders();
    root.fill(&mut tree)?;
    tree.file("/init", 0o755, initramfs::contents(init)?);
    for program in programs {
        tree.file(program, 0o755, initramfs::contents(program)?);
    }
    Ok(tree)
}

/// A guest's first files: the folders, and this very program as what starts first.
fn empty_tree(workspace: &Workspace) -> Result<Tree> {
    let folder = scratch(workspace)?;
    let mut tree = Tree::with_folders();
    tree.ourselves("/init", |program| initramfs::stripped(program, &folder))?;
    Ok(tree)
}

/// The machine's own bpftool, else the one that the tests on the machine's kernel use, too.
fn add_bpftool(tree: &mut Tree, workspace: &Workspace) -> Result<()> {
    if let Some(installed) = find_in_path(bpftool::BPFTOOL, guest::PATH.as_ref()) {
        return tree.program(&installed, initramfs::contents);
    }
    match bpftool::unpacked(workspace) {
        Some(folder) => tree.unpacked_program(bpftool::BPFTOOL, &folder, bpftool::PROGRAM),
        None => Ok(()),
    }
}

/// The folder for what guests need while they run, and for their consoles.
fn scratch(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    remove_archives_of_the_dead(&folder);
    Ok(folder)
}

/// A run that was killed has left its archives, of a hundred megabytes each, beside consoles that nobody holds.
fn remove_archives_of_the_dead(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(ARCHIVE)) else {
            continue;
        };
        let console = File::open(folder.join(format!("{name}.console")));
        if console.is_ok_and(|console| console.try_lock().is_err()) {
            continue;
        }
        fs::remove_file(entry.path()).ok();
    }
}

fn is_own_program(program: &Executable, test: &Executable) -> bool {
    // A test of the program's own code is called after it, with a hash.
    program.package == test.package && program.kind == "bin" && program.path.ends_with(&program.target)
}

fn run_of(test: &Executable, what: &What) -> Run {
    let mut variables = vec![
        ("EBPF_KERNEL_TESTS".to_owned(), "1".to_owned()),
        ("EBPF_KERNEL_SLOWNESS".to_owned(), "6".to_owned()),
        ("CARGO_MANIFEST_DIR".to_owned(), test.folder.display().to_string()),
    ];
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        variables.extend(env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    if let Some(declared) = what.only {
        let of_package = declared.iter().filter(|declared| declared.name == test.package);
        let tests: Vec<_> = of_package
            .flat_map(|declared| &declared.features)
            .flat_map(|feature| &feature.tests)
            .map(String::as_str)
            .collect();
        variables.push(("EBPF_KERNEL_ONLY".to_owned(), tests.join(",")));
    }
    Run {
        program: test.path.clone(),
        folder: test.folder.clone(),
        args: what
            .filter
            .iter()
            .cloned()
            .chain(["--color".into(), "never".into()])
            .chain(threads(what.filter))
            .collect(),
        variables,
    }
}

/// Twice as many threads as a guest has CPUs at first, as on this machine.
fn threads(filter: &[String]) -> Option<String> {
    let is_told = filter.iter().any(|arg| arg.starts_with("--test-threads"));
    (!is_told).then(|| "--test-threads=2".to_owned())
}

/// The files of one guest, which are its own for as long as this is alive.
struct Files {
    initramfs: PathBuf,
    console: PathBuf,
    /// What came of each test and how long it took, a line each.
    results: PathBuf,
    /// The console's, so that what a killed run has left is locked no more.
    _lock: File,
}

impl Files {
    /// `5.10.console` and so on, or `5.10-2.console` while another run is testing on the same kernel.
    fn reserve(folder: &Path, kernel: &str) -> Result<Self> {
        let mut name = kernel.replace('/', "_");
        let mut number = 1;
        loop {
            let console = folder.join(format!("{name}.console"));
            // Not emptied: that would take from the other run what it has.
            let lock = OpenOptions::new().append(true).create(true).open(&console);
            let lock = lock.with_context(|| format!("{} cannot be written", console.display()))?;
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Self {
                        initramfs: folder.join(format!("{name}{ARCHIVE}")),
                        results: folder.join(format!("{name}.results")),
                        console,
                        _lock: lock,
                    });
                }
                Err(TryLockError::WouldBlock) => {
                    number += 1;
                    name = format!("{}-{number}", kernel.replace('/', "_"));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("{} cannot be locked", console.display()));
                }
            }
        }
    }
}

/// The console and the results are of use afterwards; the archive is big and made again each time.
impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_file(&self.initramfs).ok();
    }
}

/// Shows what a package's guests say, and keeps the outcomes.
struct Listener<'a> {
    report: KernelReport,
    package: &'a str,
    /// Whether the runner has been waited for, as the last thing in a guest.
    is_over: bool,
    /// Whether the runner has come to its end.
    ended: bool,
    /// The tests that want two CPUs.
    postponed: Vec<String>,
    /// The modules that the kernel has refused, by its reason.
    refused: BTreeMap<String, Vec<String>>,
    /// Whether a filter may have left nothing of the package to be tested.
    filtered: bool,
    /// What is to be shown in the end; `None` if what is said is shown at once.
    kept: Option<String>,
    /// The lines of the runners' results.
    results: Vec<String>,
}

impl<'a> Listener<'a> {
    fn new(kernel: &str, package: &'a str, filtered: bool, live: bool) -> Self {
        Self {
            report: KernelReport {
                name: kernel.to_owned(),
                ..KernelReport::default()
            },
            package,
            is_over: false,
            ended: false,
            postponed: Vec::new(),
            refused: BTreeMap::new(),
            filtered,
            kept: (!live).then(String::new),
            results: Vec::new(),
        }
    }

    fn show(&mut self, line: &str) {
        match &mut self.kept {
            None => println!("{line}"),
            Some(kept) => kept.extend([line, "\n"]),
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Booted { release, version } => {
                let heading = format!("── {}, on Linux {release} ({version})", self.package);
                self.show(&format!("\n{}", terminal::stdout().bold(&heading)));
                self.report.release = Some(release);
            }
            Message::ModuleRefused { name, error } => self.refused.entry(error).or_default().push(name),
            Message::Result(line) => self.result(&line),
            Message::Output(line) => self.show(&line),
            Message::Ended { failure } => self.ended(failure),
            Message::Done => {}
        }
    }

    fn result(&mut self, line: &str) {
        match Line::of(line) {
            Some(Line::Test { name, outcome, .. }) if outcome.needs_two_cpus() => self.postponed.push(name),
            Some(Line::Test { name, outcome, .. }) => {
                self.results.push(format!("{line}\n"));
                self.report.tests.insert((self.package.to_owned(), name), outcome);
            }
            Some(Line::Ended) => self.ended = true,
            None => self.fail(format!(
                "{}: its runner has written a line that is no result: {line}",
                self.package
            )),
        }
    }

    /// The tests that are to run once more, with two CPUs.
    fn take_postponed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.postponed)
    }

    /// Another guest of the package is about to start.
    fn goes_on(&mut self) {
        (self.is_over, self.ended) = (false, false);
        self.refused.clear();
    }

    /// A runner fails when a test of it does, which is told already.
    fn ended(&mut self, failure: Option<String>) {
        self.is_over = true;
        let has_failed = || {
            self.report
                .tests
                .values()
                .any(|outcome| matches!(outcome, Outcome::Failed(_)))
        };
        match failure {
            Some(failure) if !self.ended || !has_failed() => self.fail(format!("{}: {failure}", self.package)),
            None if self.report.tests.is_empty() && self.postponed.is_empty() && !self.filtered => {
                self.fail(format!("{}: ended without having tested anything", self.package));
            }
            _ => {}
        }
    }

    fn fail(&mut self, why: String) {
        self.show(&format!("{} {why}", terminal::stdout().red("✗")));
        self.report.failures.push(why);
    }

    /// The report, and what has not been shown yet; `postponed` were to run at last.
    fn finish(mut self, end: End, file: &Path, postponed: &[String]) -> (KernelReport, String) {
        for (error, modules) in std::mem::take(&mut self.refused) {
            let modules = modules.join(", ");
            self.fail(format!(
                "the kernel has refused modules ({error}), as it does with those of another kernel: {modules}"
            ));
        }
        for name in postponed {
            if !self.report.tests.contains_key(&(self.package.to_owned(), name.clone())) {
                self.fail(format!("{}: {name} was not run with two CPUs", self.package));
            }
        }
        match end {
            End::Done if !self.is_over => self.fail(format!("{}: not run", self.package)),
            End::Done => {}
            End::Failed { console, .. } if interrupt::happened() => drop(console),
            End::Failed { why, console } => {
                let during = match (&self.report.release, self.is_over) {
                    (None, _) => "while booting",
                    (Some(_), false) => "during the tests",
                    (Some(_), true) => "at the end",
                };
                self.show(&format!("\nthe last lines of the console, {}:", file.display()));
                for line in console {
                    self.show(&format!("  {line}"));
                }
                self.fail(format!("{}: the guest was lost {during}: {why}", self.package));
            }
        }
        (self.report, self.kept.unwrap_or_default())
    }
}

/// Repeats at the end what is not as it should be; the last line counts, as after a run on this machine's kernel.
pub fn conclude(reports: &[KernelReport], tests: &[&Executable]) -> ExitCode {
    let style = terminal::stdout();
    let packages: Vec<_> = tests.iter().map(|test| test.package.clone()).collect();
    println!("\n{}", report::table(reports, &packages));
    for report in reports {
        println!("Linux {}: {}{}", report.name, report.tally(), report.duration());
    }
    println!();
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
    use std::time::Duration;

    use super::*;

    /// The failures beside the tests that come of what a guest with lab01's tests says.
    fn failures(messages: Vec<Message>, end: End) -> Vec<String> {
        failures_of(messages, end, false)
    }

    fn failures_of(messages: Vec<Message>, end: End, filtered: bool) -> Vec<String> {
        let mut listener = Listener::new("5.10", "lab01", filtered, false);
        for message in messages {
            listener.hear(message);
        }
        listener.finish(end, Path::new("5.10.console"), &[]).0.failures
    }

    fn result(outcome: &str) -> Message {
        Message::Result(format!(r#"{{"test":"a","outcome":"{outcome}","seconds":1}}"#))
    }

    fn all_results() -> Message {
        Message::Result(r#"{"ended":true}"#.into())
    }

    fn ended(failure: Option<&str>) -> Message {
        let failure = failure.map(Into::into);
        Message::Ended { failure }
    }

    const FAILED: Option<&str> = Some("the runner ended with exit status 101");

    #[test]
    fn a_runner_that_failed_with_its_tests_is_no_further_failure() {
        let messages = vec![result("failed"), all_results(), ended(FAILED)];
        assert!(failures(messages, End::Done).is_empty());
    }

    #[test]
    fn a_runner_that_crashed_is_a_failure_though_a_test_had_failed_before() {
        let messages = vec![result("failed"), ended(FAILED)];
        let expected = ["lab01: the runner ended with exit status 101"];
        assert_eq!(failures(messages, End::Done), expected);
    }

    #[test]
    fn a_runner_that_tested_nothing_or_was_never_started_is_a_failure() {
        let tested_nothing = failures(vec![ended(None)], End::Done);
        assert_eq!(tested_nothing, ["lab01: ended without having tested anything"]);
        assert_eq!(failures(vec![], End::Done), ["lab01: not run"]);
        let nothing: [&str; 0] = [];
        assert_eq!(
            failures_of(vec![ended(None)], End::Done, true),
            nothing,
            "a filter may leave all out"
        );
    }

    #[test]
    fn a_test_that_needs_two_cpus_counts_as_it_ends_with_two_and_fails_if_it_never_did() {
        let run = |second: Vec<Message>| {
            let mut listener = Listener::new("5.10", "lab01", false, false);
            for message in [result("needs_two_cpus"), all_results(), ended(None)] {
                listener.hear(message);
            }
            let postponed = listener.take_postponed();
            assert_eq!(postponed, ["a"]);
            listener.goes_on();
            for message in second {
                listener.hear(message);
            }
            let report = listener.finish(End::Done, Path::new("5.10.console"), &postponed).0;
            (report.tally().passed, report.failures)
        };
        assert_eq!(run(vec![result("passed"), all_results(), ended(None)]), (1, vec![]));
        let (passed, failures) = run(vec![all_results(), ended(None)]);
        assert_eq!(passed, 0);
        assert!(
            failures.contains(&"lab01: a was not run with two CPUs".to_owned()),
            "{failures:?}"
        );
    }

    #[test]
    fn a_kernels_report_is_that_of_all_its_packages_with_the_time_from_the_first_to_the_last() {
        let start = Instant::now();
        let part = |package: &str, seconds: std::ops::Range<u64>, failures: &[&str]| Part {
            report: KernelReport {
                name: "5.10".into(),
                release: Some("5.10.0".into()),
                tests: [((package.to_owned(), "a".to_owned()), Outcome::Passed)].into(),
                failures: failures.iter().map(|failure| (*failure).to_owned()).collect(),
                took: None,
            },
            started: start + Duration::from_secs(seconds.start),
            ended: start + Duration::from_secs(seconds.end),
        };
        let parts = [part("lab02", 0..9, &[]), part("lab01", 1..5, &["lab01: lost"])];
        let whole = Part::join("5.10", parts.iter());
        assert_eq!((whole.tally().passed, whole.tally().failed), (2, 1));
        assert_eq!(whole.duration(), " in 9 s");
        assert_eq!(whole.release.as_deref(), Some("5.10.0"));
    }

    #[test]
    fn what_is_done_side_by_side_comes_back_in_order() {
        let jobs: Vec<u32> = (0..20).collect();
        let doubled = side_by_side(&jobs, |job| Ok(2 * job)).unwrap();
        assert_eq!(doubled, jobs.iter().map(|job| 2 * job).collect::<Vec<_>>());
        assert!(side_by_side(&jobs, |job| if *job == 7 { anyhow::bail!("no") } else { Ok(()) }).is_err());
    }

    #[test]
    fn runs_on_one_kernel_at_the_same_time_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = || Files::reserve(folder.path(), "mine/5.10").unwrap();
        let (first, second) = (reserve(), reserve());
        assert_eq!(first.console, folder.path().join("mine_5.10.console"));
        for (one, other, name) in [
            (&first.console, &second.console, "mine_5.10-2.console"),
            (&first.results, &second.results, "mine_5.10-2.results"),
            (&first.initramfs, &second.initramfs, "mine_5.10-2.cpio"),
        ] {
            assert_ne!(one, other);
            assert_eq!(*other, folder.path().join(name));
        }
    }

    #[test]
    fn archives_of_runs_that_were_killed_are_removed_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Files::reserve(folder.path(), "5.10").unwrap();
        fs::write(&ours.initramfs, "").unwrap();
        for name in ["6.1.cpio", "6.1.console", "6.12-32102.cpio"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_archives_of_the_dead(folder.path());
        let left = fs::read_dir(folder.path()).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["5.10.console", "5.10.cpio", "6.1.console"]);
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
        let told = |messages| failures(messages, lost()).concat();
        assert!(told(vec![]).contains("while booting"));
        assert!(told(vec![booted()]).contains("during the tests"));
        let tested = vec![booted(), result("passed"), ended(None)];
        assert!(told(tested).contains("at the end: it was silent"));
    }

    #[test]
    fn refused_modules_are_one_failure() {
        let refused = |name: &str| Message::ModuleRefused {
            name: name.into(),
            error: "Exec format error".into(),
        };
        let messages = vec![refused("veth"), refused("tun"), result("passed"), ended(None)];
        let failures = failures(messages, End::Done);
        assert_eq!(failures.len(), 1);
        assert!(failures[0].ends_with("another kernel: veth, tun"), "{failures:?}");
    }

    #[test]
    fn what_a_program_printed_is_kept_by_run_and_told_where_the_run_failed() {
        let (mut answers, mut output) = (Answers::default(), String::new());
        let said = |line: &str| Message::Output(line.into());
        for message in [
            said("{"),
            said("}"),
            ended(None),
            said("error: no such file"),
            ended(FAILED),
        ] {
            answers.hear(&mut output, message);
        }
        assert_eq!(answers.outputs, ["{\n}\n"]);
        assert_eq!(
            answers.failures,
            ["the runner ended with exit status 101: error: no such file"]
        );
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
