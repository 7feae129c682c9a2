//! A test harness for tests that need root and a kernel.
//!
//! [`kernel_tests!`](crate::kernel_tests) makes the `main` of a test target with `harness = false`. Unless the
//! environment variable `EBPF_KERNEL_TESTS` is `1`, which `cargo xtask test` sets, running it leaves all tests out and
//! says so, so that a plain `cargo test` works everywhere. Filters, `--exact`, `--list`, `--skip` and `--test-threads`
//! are those of any Rust test, and `cargo nextest` works too.

use std::{
    any::Any,
    cell::RefCell,
    fmt::Display,
    fs::{File, OpenOptions},
    io::Write as _,
    panic::{self, AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

use crate::dispatcher;

/// The environment variable that asks for kernel tests.
pub const SWITCH: &str = "EBPF_KERNEL_TESTS";

/// The environment variable that names a file to which the outcomes are added, a line of JSON each.
///
/// `{"test": NAME, "outcome": "passed" | "failed" | "fell_back" | "unsupported" | "needs_two_cpus", "why": TEXT, "seconds": NUMBER}`, and
/// `{"ended": true}` as the last line, without which the program has crashed.
pub const RESULTS: &str = "EBPF_KERNEL_RESULTS";

/// The environment variable that names the only tests to be run, with commas between them.
pub const ONLY: &str = "EBPF_KERNEL_ONLY";

/// The environment variable that asks for the long form of tests that have one: see [`is_long`].
pub const LONG: &str = "EBPF_LONG_TESTS";

/// Whether a test that tries many random cases is to try as many as somebody has hours for (`cargo xtask test --long`).
pub fn is_long() -> bool {
    std::env::var_os(LONG).is_some_and(|value| value == "1")
}

/// Makes a test program of the functions in it.
///
/// ```no_run
/// //! tests/kernel.rs, with `harness = false` in Cargo.toml
/// testbed::kernel_tests! {
///     /// Doc comments and other attributes are allowed.
///     fn a_host_is_alone_at_first() {
///         let host = testbed::Host::new("hermit").unwrap();
///         assert!(host.index_of("eth0").is_err());
///     }
///
///     fn hosts_can_be_joined() -> testbed::Result {
///         let link = testbed::Host::new("client")?.join(&testbed::Host::new("server")?)?;
///         assert_eq!(link.right.ipv4.to_string(), "192.0.2.2");
///         Ok(())
///     }
/// }
/// ```
#[macro_export]
macro_rules! kernel_tests {
    ($($(#[$attribute:meta])* fn $name:ident() $(-> $result:ty)? $body:block)*) => {
        $($(#[$attribute])* fn $name() $(-> $result)? $body)*

        fn main() -> ::std::process::ExitCode {
            $crate::harness::main(
                ::std::env!("CARGO_PKG_NAME"),
                ::std::vec![$($crate::harness::KernelTest::new(::std::stringify!($name), $name)),*],
            )
        }
    };
}

/// A kernel test: a name, which is a claim, and the function that tries it.
pub struct KernelTest {
    name: &'static str,
    run: Box<dyn FnOnce() -> Result<(), String> + Send>,
}

impl KernelTest {
    /// Called by [`kernel_tests!`](crate::kernel_tests).
    pub fn new<T: TestResult>(name: &'static str, test: impl FnOnce() -> T + Send + 'static) -> Self {
        Self {
            name,
            run: Box::new(|| test().outcome()),
        }
    }
}

/// What a kernel test may return.
pub trait TestResult {
    /// The failure, if it is one.
    fn outcome(self) -> Result<(), String>;
}

impl TestResult for () {
    fn outcome(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: Display> TestResult for Result<(), E> {
    fn outcome(self) -> Result<(), String> {
        // `{:#}` shows the causes of an `anyhow::Error`.
        self.map_err(|error| format!("{error:#}"))
    }
}

/// Ends the current test as unsupported here, for a stated reason: a kernel without this hook, a missing tool.
///
/// The reason is shown and the test is counted, among the ignored ones. To be called on the test's own thread or inside
/// [`Host::run`](crate::Host::run).
pub fn unsupported(reason: impl Into<String>) -> ! {
    panic::resume_unwind(Box::new(Unsupported(reason.into())))
}

struct Unsupported(String);

/// Ends the current test where there is one CPU alone, for what it is about happens between two.
///
/// `cargo xtask test --kernel` gives its guests one, which is faster to emulate, and runs such a test once more in a guest
/// with two; elsewhere it is unsupported. To be called before anything else, as [`unsupported`].
pub fn needs_two_cpus() {
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        panic::resume_unwind(Box::new(NeedsTwoCpus))
    }
}

struct NeedsTwoCpus;

thread_local! {
    /// What the test on this thread has fallen back to.
    static FELL_BACK: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes that what the current test is about works here in another way than on a newer kernel, for a stated reason:
/// `falls_back("clsact: no TCX before Linux 6.6")`. The test goes on, and has to pass.
///
/// The table of kernels in the guide shows it. To be called on the test's own thread, when the program has been seen to
/// have fallen back.
pub fn falls_back(to_and_why: impl Into<String>) {
    FELL_BACK.set(Some(to_and_why.into()));
}

/// Called by [`kernel_tests!`](crate::kernel_tests).
pub fn main(package: &str, tests: Vec<KernelTest>) -> ExitCode {
    run_all(package, tests, Arguments::from_args())
}

/// As [`main`], one test after the other, for tests that disturb each other here.
pub fn main_one_by_one(package: &str, tests: Vec<KernelTest>) -> ExitCode {
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    run_all(package, tests, arguments)
}

fn run_all(package: &str, mut tests: Vec<KernelTest>, arguments: Arguments) -> ExitCode {
    let wanted = std::env::var_os(SWITCH).is_some_and(|value| value == "1");
    if !wanted && !arguments.list {
        println!(
            "{package}: {} kernel tests left out; they need root and a kernel: run `cargo xtask test`",
            tests.len()
        );
        return ExitCode::SUCCESS;
    }
    if wanted && !arguments.list && !nix::unistd::geteuid().is_root() {
        eprintln!("{package}: kernel tests need root: run `cargo xtask test`, which uses sudo");
        return ExitCode::FAILURE;
    }
    if let Ok(only) = std::env::var(ONLY) {
        tests.retain(|test| only.split(',').any(|name| name == test.name));
    }
    // Held until the tests have ended.
    let _filled = match (wanted && !arguments.list).then(dispatcher::fill).transpose() {
        Ok(filled) => filled,
        Err(error) => {
            eprintln!("{package}: XDP's dispatcher cannot be kept from changes, which this kernel needs: {error}");
            return ExitCode::FAILURE;
        }
    };
    let results = match Results::open() {
        Ok(results) => Arc::new(results),
        Err(error) => {
            eprintln!("{package}: the file that {RESULTS} names cannot be written: {error}");
            return ExitCode::FAILURE;
        }
    };
    let unsupported = Arc::new(AtomicUsize::new(0));
    let trials = tests
        .into_iter()
        .map(|test| {
            let (unsupported, results) = (Arc::clone(&unsupported), Arc::clone(&results));
            // So that cargo-nextest, which asks for the list first, reports the tests as skipped, not as passed.
            Trial::ignorable_test(test.name, move || run(test, &results, &unsupported)).with_ignored_flag(!wanted)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    match unsupported.load(Ordering::Relaxed) {
        0 => {}
        count => println!("{package}: {count} of the ignored tests are unsupported here; their reasons stand above"),
    }
    results.add(&json!({"ended": true}));
    conclusion.exit_code()
}

fn run(test: KernelTest, results: &Results, unsupported: &AtomicUsize) -> Result<Completion, Failed> {
    let name = test.name;
    let started = Instant::now();
    // The tests of one thread come one after the other.
    FELL_BACK.set(None);
    let ended = catch_unwind(AssertUnwindSafe(test.run));
    let add = |outcome: &str, why: Option<&str>| {
        let seconds = started.elapsed().as_secs_f64();
        results.add(&json!({"test": name, "outcome": outcome, "why": why, "seconds": seconds}));
    };
    match ended {
        Ok(Ok(())) => {
            match FELL_BACK.take() {
                Some(why) => add("fell_back", Some(&why)),
                None => add("passed", None),
            }
            Ok(Completion::Completed)
        }
        Ok(Err(failure)) => {
            add("failed", Some(&failure));
            Err(Failed::from(failure))
        }
        Err(panic) if panic.is::<NeedsTwoCpus>() => {
            add("needs_two_cpus", None);
            unsupported.fetch_add(1, Ordering::Relaxed);
            Ok(Completion::ignored_with("two CPUs are needed"))
        }
        Err(panic) => match panic.downcast::<Unsupported>() {
            Ok(reason) => {
                add("unsupported", Some(&reason.0));
                unsupported.fetch_add(1, Ordering::Relaxed);
                Ok(Completion::ignored_with(format!("unsupported: {}", reason.0)))
            }
            Err(panic) => {
                add("failed", message(&*panic));
                panic::resume_unwind(panic)
            }
        },
    }
}

/// What a panic said, if it said something.
fn message(panic: &(dyn Any + Send)) -> Option<&str> {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
}

/// The file for the outcomes, if one is wanted.
struct Results(Option<File>);

impl Results {
    fn open() -> std::io::Result<Self> {
        let path = std::env::var_os(RESULTS);
        let open = |path| OpenOptions::new().append(true).create(true).open(path);
        Ok(Self(path.map(open).transpose()?))
    }

    fn add(&self, result: &Value) {
        if let Some(mut file) = self.0.as_ref() {
            // One call, so that lines of tests that end at the same time do not mix.
            file.write_all(format!("{result}\n").as_bytes())
                .expect("the file of results takes another line");
        }
    }
}
