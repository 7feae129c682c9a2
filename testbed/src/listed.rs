//! Kernel tests in several files.

/// Lists the kernel tests of a module, as the function `tests`. One that is not listed is an unused function, which the
/// compiler reports.
///
/// ```no_run
/// mod ping {
///     testbed::listed_tests![a_host_is_alone_at_first,];
///
///     fn a_host_is_alone_at_first() {
///         let host = testbed::Host::new("hermit").unwrap();
///         assert!(host.index_of("eth0").is_err());
///     }
/// }
///
/// fn main() -> std::process::ExitCode {
///     testbed::harness::main(env!("CARGO_PKG_NAME"), [ping::tests()].into_iter().flatten().collect())
/// }
/// ```
#[macro_export]
macro_rules! listed_tests {
    ($($name:ident,)*) => {
        pub fn tests() -> ::std::vec::Vec<$crate::harness::KernelTest> {
            ::std::vec![$($crate::harness::KernelTest::new(::std::stringify!($name), $name)),*]
        }
    };
}
