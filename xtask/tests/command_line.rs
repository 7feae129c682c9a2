//! The command line as a user meets it: what is printed where, and the exit status.

mod project;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Stdio,
};

use project::{Ended, NO_PACKAGES, Project, run};

const PROGRAM: (&str, &str, &str, &str) = ("lab01-count-packets", "bin", "lab01-count-packets", "lab01");
const TESTBED: (&str, &str, &str, &str) = ("testbed", "bin", "testbed", "testbed");

#[test]
fn help_is_no_error_and_a_command_that_does_not_exist_is_a_misuse() {
    let project = Project::new();
    assert_eq!(run(project.xtask(&["--help"])).status, Some(0));
    assert_eq!(run(project.xtask(&["rnu", "lab01"])).status, Some(2));
}

#[test]
fn a_lab_that_does_not_exist_is_a_misuse_answered_in_one_line() {
    let ended = run(Project::new().xtask(&["run", "lab1"]));
    assert_eq!(ended.status, Some(2));
    assert_eq!(
        ended.stderr,
        "error: there is no lab \"lab1\"; did you mean lab01? The labs are: lab01-count-packets, lab02-xdp-firewall\n"
    );
}

#[test]
fn setup_with_everything_there_has_nothing_to_do() {
    let ended = run(Project::new().xtask(&["setup"]));
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert_eq!(
        ended.stdout,
        "Nothing to do: rust-src of Rust 1.95.0, bpf-linker 0.10.4 for LLVM 22 are installed.\n"
    );
}

#[test]
fn setup_says_what_it_installs_and_why_and_then_has_nothing_to_do() {
    let project = Project::new();
    fs::remove_dir_all(project.path(".tools")).unwrap();
    project.script(
        "bin/cargo",
        "[ \"$1 $2\" = 'install bpf-linker' ] || exit 1\n\
         mkdir -p .tools/bin \"$CARGO_TARGET_DIR\"\n\
         touch .tools/bin/bpf-linker\n\
         echo '\"bpf-linker 0.10.4 (somewhere)\" = [\"bpf-linker\"]' > .tools/.crates.toml",
    );
    let ended = run(project.xtask(&["setup"]));
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(lines[0], "To be installed:");
    assert!(lines[1].starts_with("  bpf-linker 0.10.4 into "), "{}", lines[1]);
    assert!(lines[1].ends_with(", because it links eBPF programs; rustc brings no linker for them"));
    assert_eq!(
        fs::read_to_string(project.path(".tools/bpf-linker.llvm")).unwrap(),
        "22\n"
    );
    assert!(!project.path(".tools/build").exists(), "the build's folder is removed");

    let again = run(project.xtask(&["setup"]));
    assert!(again.stdout.starts_with("Nothing to do:"), "{}", again.stdout);
}

#[test]
fn a_linker_for_another_llvm_is_replaced() {
    let project = Project::new();
    project.write(".tools/bpf-linker.llvm", "21\n");
    project.script("bin/cargo", "[ \"$1\" = install ] && mkdir -p \"$CARGO_TARGET_DIR\"");
    let ended = run(project.xtask(&["setup"]));
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("(the one there is for LLVM 21, rustc now has 22)"),
        "{}",
        ended.stderr
    );
    assert_eq!(
        fs::read_to_string(project.path(".tools/bpf-linker.llvm")).unwrap(),
        "22\n"
    );
}

#[test]
fn an_installation_that_fails_names_its_cause_and_its_log_and_leaves_no_record() {
    let project = Project::new();
    fs::remove_dir_all(project.path(".tools")).unwrap();
    project.script("bin/cargo", "echo 'error: no network' >&2; exit 101");
    let ended = run(project.xtask(&["setup"]));
    assert_eq!(ended.status, Some(1));
    let error = ended.stderr.lines().last().unwrap();
    assert!(error.starts_with("error: building bpf-linker 0.10.4 failed: no network (all of its output is in "));
    assert!(!project.path(".tools/bpf-linker.llvm").exists());
}

#[test]
fn rust_src_that_rustup_cannot_get_is_sought_elsewhere_with_a_reason_for_each_way() {
    let project = Project::new();
    fs::remove_dir_all(project.path("sysroot/lib")).unwrap();
    project.script("bin/rustup", "echo 'error: could not download' >&2; exit 1");
    // Every package manager's program, so that the tests do not depend on the machine being a Debian.
    project.script("bin/apt-get", "echo 'Http://mirror.example/other|Other|Other'");
    project.script("bin/apt-cache", "exit 1");
    project.script("bin/dpkg-deb", "exit 1");
    let ended = run(project.xtask(&["setup"]));
    assert_eq!(ended.status, Some(1));
    let failed = |way: &str| {
        ended
            .stderr
            .lines()
            .any(|line| line.starts_with(&format!("  – not by {way}: ")))
    };
    assert!(
        failed("rustup") && failed("Debian's source package"),
        "{}",
        ended.stderr
    );
    let error = ended.stderr.lines().last().unwrap();
    assert!(
        error.starts_with("error: rust-src of Rust 1.95.0 could not be installed"),
        "{error}"
    );
    assert!(error.contains("rustup toolchain link"), "{error}");
}

#[test]
fn a_toolchain_that_no_linker_is_known_for_is_answered_with_one_that_works() {
    let project = Project::new();
    project.script("bin/rustc", "echo 'release: 2.0.0'; echo 'LLVM version: 31.0.0'");
    let ended = run(project.xtask(&["setup"]));
    assert_eq!(ended.status, Some(1));
    assert!(
        ended.stderr.starts_with("error: no bpf-linker is known for LLVM 31"),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}

#[test]
fn a_lab_gets_its_arguments_and_its_exit_status_is_passed_on() {
    let project = Project::new();
    project.cargo_that_builds(&[PROGRAM], "");
    project.script("lab01", "echo \"$@\"; exit 7");
    let ended = run(project.xtask_as_user(&["run", "lab01", "--", "--help", "a b"]));
    assert_eq!(
        (ended.status, ended.stdout.as_str()),
        (Some(7), "--help a b\n"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_user_starts_a_lab_in_the_testbed_by_sudo() {
    let project = Project::new();
    project.cargo_that_builds(&[PROGRAM, TESTBED], "");
    project.script("testbed", "echo \"$@\"");
    project.script(
        "bin/sudo",
        "[ \"$1\" = -n ] && exit 0; shift; echo \"as root: $1\"; exec \"$@\"",
    );
    let ended = run(project.xtask_as_user(&["run", "lab01", "--", "--top", "3"]));
    let program = project.path("lab01");
    assert_eq!(
        ended.stdout,
        format!(
            "as root: env\ndemo lab01-count-packets -- {} --top 3\n",
            program.display()
        ),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_user_starts_a_lab_on_an_interface_by_sudo_and_without_the_testbed() {
    let project = Project::new();
    project.cargo_that_builds(&[PROGRAM], "");
    project.script("lab01", "echo \"$@\"");
    project.script("bin/sudo", "[ \"$1\" = -n ] && exit 0; shift; exec \"$@\"");
    let ended = run(project.xtask_as_user(&["run", "lab01", "--", "--iface", "eth0"]));
    assert_eq!(ended.stdout, "--iface eth0\n", "{}", ended.stderr);
}

/// A machine that has no sudo, also where this one does: PATH is then the stand-ins alone.
fn without_sudo(project: &Project, args: &[&str]) -> Ended {
    let mut command = project.xtask_as_user(args);
    command.env("PATH", project.path("bin"));
    run(command)
}

#[test]
fn a_user_without_sudo_is_told_so_in_one_line_before_anything_is_built() {
    let project = Project::new();
    let ended = without_sudo(&project, &["run", "lab01"]);
    assert_eq!(ended.status, Some(1));
    assert_eq!(
        ended.stderr,
        "error: running lab01-count-packets needs root, and sudo is not installed; run the same command as root, or \
         install sudo\n"
    );
}

#[test]
fn a_lab_that_does_not_build_ends_with_one_line_below_the_compilers() {
    let project = Project::new();
    let builds = "echo 'error[E0308]: mismatched types' >&2; exit 101";
    project.script(
        "bin/cargo",
        &format!("[ \"$1\" = metadata ] && echo {NO_PACKAGES} && exit; {builds}"),
    );
    let ended = run(project.xtask_as_user(&["run", "lab01", "--", "--help"]));
    assert_eq!(ended.status, Some(1));
    assert_eq!(
        ended.stderr,
        "error[E0308]: mismatched types\nerror: lab01-count-packets cannot be built; the reasons stand above\n"
    );
}

#[test]
fn an_interrupt_reaches_the_lab_which_may_finish() {
    let project = Project::new();
    project.cargo_that_builds(&[PROGRAM], "");
    project.script(
        "lab01",
        "trap 'echo finished; exit 3' INT; echo ready; while :; do sleep 0.05; done",
    );
    let mut command = project.xtask(&["run", "lab01", "--", "--help"]);
    // SAFETY: signal is async-signal-safe.
    unsafe {
        // What has started these tests in the background, as by nohup, has it ignored, which a script cannot undo.
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        });
    }
    let mut child = command.process_group(0).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");

    // As a terminal does: to the whole group in the foreground.
    let group = i32::try_from(child.id()).unwrap();
    // SAFETY: kill takes no pointers; the group is the one just made.
    assert_eq!(unsafe { libc::kill(-group, libc::SIGINT) }, 0);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("finished\n", Some(3)));
}

/// A project with one package, whose library's tests print `of_host` and whose kernel tests print `of_kernel`.
fn project_with_tests(of_host: &str, of_kernel: &str) -> Project {
    let project = Project::new();
    project.write(
        "metadata",
        &format!(
            r#"{{"workspace_default_members":["a"],"packages":[{{"id":"a","name":"lab01-count-packets","manifest_path":"{}","targets":[{{"kind":["lib"],"name":"lab01"}},{{"kind":["test"],"name":"kernel"}}]}}]}}"#,
            project.path("lab01-count-packets/Cargo.toml").display()
        ),
    );
    project.cargo_that_builds(
        &[("lab01-count-packets", "test", "kernel", "kernel")],
        &format!("'metadata '*) cat metadata ;; *) {of_host} ;;"),
    );
    // Where `cargo test` has built before, whoever ran it.
    fs::create_dir(project.path("target")).unwrap();
    fs::set_permissions(project.path("target"), fs::Permissions::from_mode(0o777)).unwrap();
    project.script("kernel", of_kernel);
    project.script("bin/sudo", "[ \"$1\" = -n ] && exit 0; shift; exec \"$@\"");
    project
}

#[test]
fn tests_of_host_and_kernel_are_summed_in_the_last_line() {
    let project = project_with_tests(
        "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured'",
        "[ \"$EBPF_KERNEL_TESTS\" = 1 ] && echo \"test result: ok. 3 passed; 0 failed; 0 ignored\"",
    );
    let ended = run(project.xtask_as_user(&["test"]));
    assert_eq!(ended.status, Some(0), "{}{}", ended.stdout, ended.stderr);
    // The host's counts come twice: the stand-in prints them for the examples in the documentation too.
    assert_eq!(
        ended.stdout.lines().last(),
        Some("7 passed, 0 failed, 2 skipped"),
        "{}",
        ended.stdout
    );
}

#[test]
fn a_failure_on_the_kernel_fails_the_whole_and_is_named_again_at_the_end() {
    let project = project_with_tests(
        "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'",
        "echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored'; exit 101",
    );
    let ended = run(project.xtask_as_user(&["test", "lab01"]));
    assert_eq!(ended.status, Some(1));
    let lines: Vec<_> = ended.stdout.lines().rev().take(2).collect();
    assert_eq!(
        lines,
        ["5 passed, 1 failed", "✗ lab01-count-packets on the kernel: 1 failed"]
    );
}

#[test]
fn kernels_that_cannot_be_tested_on_are_misuses_that_name_the_mistake_before_anything_is_built() {
    let project = project_with_tests("echo \"built: $*\" >&2; exit 1", "exit 1");
    project.write("vmlinux", "\u{7f}ELF");
    let mut image = "\0".repeat(0x202) + "HdrS";
    image.push_str(&"\0".repeat(0x100));
    project.write("bzImage", &image);
    for (args, mistake) in [
        (
            &["--kernel", "./nowhere"][..],
            "./nowhere is no file, and no series of kernels such as 5.10",
        ),
        (
            &["--kernel", "./vmlinux"],
            "./vmlinux is no kernel that can be booted on x86-64",
        ),
        (&["--kernel", "bzImage,5.10"], "\"bzImage\" is no series of kernels"),
        (
            &["--kernel", "./bzImage", "--modules", "nowhere"],
            "nowhere is no folder; --modules wants",
        ),
        (
            &["--kernel", "5.10", "--modules", "bin"],
            "--modules goes with a kernel that is a file",
        ),
        (&["--kernel", "5.10,all"], "`all` stands alone"),
        (
            &["--modules", "bin"],
            "the following required arguments were not provided",
        ),
    ] {
        let args: Vec<_> = ["test", "lab01"].iter().chain(args).copied().collect();
        let ended = run(project.xtask(&args));
        assert_eq!(ended.status, Some(2), "{args:?}: {}", ended.stderr);
        assert!(
            ended.stderr.starts_with("error: ") && ended.stderr.contains(mistake),
            "{args:?}: {}",
            ended.stderr
        );
    }
}

#[test]
fn kernel_tests_that_nobody_may_run_are_a_failure_and_not_a_pass() {
    let project = project_with_tests("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'", "exit 1");
    fs::remove_file(project.path("bin/sudo")).unwrap();
    // The stand-in for cargo needs a shell's tools.
    project.script("bin/cat", "exec /bin/cat \"$@\"");
    let ended = without_sudo(&project, &["test"]);
    assert_eq!(ended.status, Some(1));
    let lines: Vec<_> = ended.stdout.lines().rev().take(2).collect();
    assert_eq!(lines[0], "4 passed, 1 failed");
    assert!(
        lines[1].starts_with("✗ testing on the kernel needs root, and sudo is not installed"),
        "{}",
        lines[1]
    );
}

#[test]
fn tests_that_do_not_compile_fail_before_any_is_run() {
    let project = project_with_tests("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'", "exit 1");
    project.script(
        "bin/cargo",
        "case \"$1\" in metadata) cat metadata ;; *) echo 'error: typo' >&2; exit 101 ;; esac",
    );
    let ended = run(project.xtask_as_user(&["test"]));
    assert_eq!(ended.status, Some(1));
    assert!(!ended.stdout.contains("passed"), "{}", ended.stdout);
    assert_eq!(
        ended.stderr,
        "error: typo\nerror: what is to be tested cannot be built; the reasons stand above\n"
    );
}

#[test]
fn a_lab_without_figures_says_so() {
    let project = project_with_tests("", "");
    let ended = run(project.xtask(&["bench", "lab01"]));
    assert_eq!(ended.status, Some(1));
    assert_eq!(ended.stderr, "error: lab01-count-packets has no figures to measure\n");
}

#[test]
fn doctor_fails_where_something_is_missing_and_names_the_mend() {
    let project = Project::new();
    fs::remove_dir_all(project.path(".tools")).unwrap();
    let ended = run(project.xtask(&["doctor"]));
    assert_eq!(ended.status, Some(1));
    let lines: Vec<_> = ended.stdout.lines().collect();
    let place = lines.iter().position(|line| line.starts_with("✗ bpf-linker")).unwrap();
    assert!(lines[place].ends_with("not installed"));
    assert_eq!(lines[place + 1].trim(), "mend: cargo xtask setup");
    assert!(lines.last().unwrap().starts_with("To be mended: "));
}
