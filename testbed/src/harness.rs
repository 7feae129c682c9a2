//! A test harness for tests that need root and a kernel.
//!
//! [`kernel_tests!`](crate::kernel_tests) makes the `main` of a test target with `harness = false`. Unless the
//! environment variable `EBPF_KERNEL_TESTS` is `1`, which `cargo xtask test` sets, running it leaves all tests out and
//! says so, so that a plain `cargo test` works everywhere. Filters, `--exact`, `--list`, `--skip` and `--test-threads`
//! are those of any Rust test, and `cargo nextest` works too.

use std::{
    fmt::Display,
    panic::{self, AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// The environment variable that asks for kernel tests.
pub const SWITCH: &str = "EBPF_KERNEL_TESTS";

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

/// Called by [`kernel_tests!`](crate::kernel_tests).
pub fn main(package: &str, tests: Vec<KernelTest>) -> ExitCode {
    let arguments = Arguments::from_args();
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
    let unsupported = Arc::new(AtomicUsize::new(0));
    let trials = tests
        .into_iter()
        .map(|test| {
            let unsupported = Arc::clone(&unsupported);
            // So that cargo-nextest, which asks for the list first, reports the tests as skipped, not as passed.
            Trial::ignorable_test(test.name, move || run(test.run, &unsupported)).with_ignored_flag(!wanted)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    match unsupported.load(Ordering::Relaxed) {
        0 => {}
        count => println!("{package}: {count} of the ignored tests are unsupported here; their reasons stand above"),
    }
    conclusion.exit_code()
}

fn run(test: impl FnOnce() -> Result<(), String>, unsupported: &AtomicUsize) -> Result<Completion, Failed> {
    match catch_unwind(AssertUnwindSafe(test)) {
        Ok(outcome) => outcome.map(|()| Completion::Completed).map_err(Failed::from),
        Err(panic) => match panic.downcast::<Unsupported>() {
            Ok(reason) => {
                unsupported.fetch_add(1, Ordering::Relaxed);
                Ok(Completion::ignored_with(format!("unsupported: {}", reason.0)))
            }
            Err(panic) => panic::resume_unwind(panic),
        },
    }
}
