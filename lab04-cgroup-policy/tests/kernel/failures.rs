//! Each failure provoked, and what it says: the cause and the mend (Z8).

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use lab04_cgroup_policy::{OBJECT, cgroup::Hierarchy};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, setrlimit},
};
use object::{Object as _, ObjectSection as _};
use testbed::{Cgroup, Finished, Host, Result, Running, bpf, copy_program, harness::unsupported};

use crate::{
    client::PATIENCE,
    lab::{BINARY, PolicyFile, command, finish},
};

testbed::listed_tests![
    an_object_that_is_not_there_or_none_is_named,
    a_program_that_the_verifier_rejects_is_shown_with_the_tail_of_its_log,
    a_kernel_without_bpf_or_without_a_hook_is_named_with_what_it_needs,
    missing_capabilities_are_named_and_three_are_enough,
    a_limit_on_locked_memory_is_named_where_there_is_one,
    without_cgroup2_the_mount_is_named,
    a_cgroup_that_is_not_there_is_named_with_those_that_are,
    a_cgroup_that_goes_ends_it,
    a_hook_that_somebody_has_for_himself_is_named,
    a_policy_that_cannot_be_enforced_changes_nothing,
    pins_elsewhere_than_on_bpffs_are_refused,
    options_that_contradict_each_other_are_a_misuse,
];

const OPEN: &str = "{ version: 1, name: open }";

/// A host, a cgroup and a policy without rules.
struct Place {
    host: Host,
    cgroup: Cgroup,
    policy: PolicyFile,
}

impl Place {
    fn new() -> Result<Self> {
        Ok(Self {
            host: Host::new("host")?,
            cgroup: Cgroup::new("failures")?,
            policy: PolicyFile::new(OPEN),
        })
    }

    /// The command, to end at once if nothing fails.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(&self.host, &[]);
        self.add_args(&mut command, args);
        command
    }

    fn add_args(&self, command: &mut Command, args: &[&str]) {
        command.arg("--cgroup").arg(self.cgroup.path());
        command.arg("--policy").arg(self.policy.path());
        command.args(["--duration", "100ms"]).args(args);
    }
}

/// It has failed, and the first line of what it says begins so.
#[track_caller]
fn assert_says(finished: &Finished, line: &str) {
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert!(
        finished.stderr.starts_with(&format!("error: {line}")),
        "{line:?} in {finished:#?}"
    );
    assert_eq!(finished.stdout, "");
}

fn an_object_that_is_not_there_or_none_is_named() -> Result {
    let place = Place::new()?;
    let missing = finish(place.command(&["--object", "/no/such/object"]));
    assert_says(
        &missing,
        "the eBPF object /no/such/object cannot be read: No such file or directory (os error 2); leave --object out to load \
         the one that is built in\n",
    );
    let none = finish(place.command(&["--object", place.policy.path().to_str().unwrap()]));
    assert_says(&none, "the eBPF object cannot be read: ");
    assert!(none.stderr.ends_with("; build it again\n"), "{none:#?}");
    Ok(())
}

fn a_program_that_the_verifier_rejects_is_shown_with_the_tail_of_its_log() -> Result {
    let place = Place::new()?;
    // The lab's object with another first instruction: a read far outside of the context.
    let mut object = OBJECT.to_vec();
    let file = object::File::parse(OBJECT).unwrap();
    let (start, _) = file.section_by_name("cgroup/connect4").unwrap().file_range().unwrap();
    // r0 = *(u32 *)(r1 + 4096), RFC 9669.
    object[start as usize..][..8].copy_from_slice(&[0x61, 0x10, 0x00, 0x10, 0, 0, 0, 0]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rejected");
    fs::write(&path, object).unwrap();
    let finished = finish(place.command(&["--object", path.to_str().unwrap()]));
    assert_says(
        &finished,
        "the kernel's verifier refused the program connect4: invalid bpf_context access off=4096 size=4\nthe last ",
    );
    assert!(finished.stderr.contains("r0 = *(u32 *)(r1 +4096)"), "{finished:#?}");
    Ok(())
}

/// Has bpf(2) fail with `errno`, for one of its commands or for all.
fn without_bpf(command: &mut Command, bpf_command: Option<u32>, errno: i32) {
    // Classic BPF, as seccomp(2) wants it: the number of the system call is at offset 0, its first argument at 16.
    let load = |offset| libc::sock_filter {
        code: 0x20,
        jt: 0,
        jf: 0,
        k: offset,
    };
    let unless_equal = |value, skip| libc::sock_filter {
        code: 0x15,
        jt: 0,
        jf: skip,
        k: value,
    };
    let answer = |k| libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k,
    };
    let mut filter = vec![load(0)];
    let bpf = libc::SYS_bpf as u32;
    match bpf_command {
        None => filter.push(unless_equal(bpf, 1)),
        Some(number) => filter.extend([unless_equal(bpf, 3), load(16), unless_equal(number, 1)]),
    }
    filter.extend([
        answer(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()),
        answer(libc::SECCOMP_RET_ALLOW),
    ]);
    // SAFETY: between fork and exec one system call is made, with a program that was allocated before.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            match libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

fn a_kernel_without_bpf_or_without_a_hook_is_named_with_what_it_needs() -> Result {
    const LINK_CREATE: u32 = 28;

    let place = Place::new()?;
    let mut without = place.command(&[]);
    without_bpf(&mut without, None, libc::ENOSYS);
    let finished = finish(without);
    assert_says(&finished, "the kernel (");
    for part in [
        "does not know what",
        "Linux 5.10 or later with CONFIG_BPF_SYSCALL is required",
        "cargo xtask doctor",
    ] {
        assert!(finished.stderr.contains(part), "{part:?} in {finished:#?}");
    }
    let mut without = place.command(&[]);
    without_bpf(&mut without, Some(LINK_CREATE), libc::EINVAL);
    assert_says(
        &finish(without),
        "this kernel cannot attach to the hook egress of a cgroup: Invalid argument (os error 22); Linux 5.10 or later with \
         CONFIG_CGROUP_BPF is required: `cargo xtask doctor` says what this one lacks\n",
    );
    Ok(())
}

/// The command as an ordinary user, who has these capabilities and no others.
fn as_ordinary_user(place: &Place, capabilities: &str) -> (Command, tempfile::TempDir) {
    if Command::new("setpriv").arg("--version").output().is_err() {
        unsupported("setpriv is missing (Debian: util-linux)");
    }
    // A copy, since the build folder may be closed to others; and so is the policy's.
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), place.policy.path().parent().unwrap()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let program = folder.path().join("lab04-cgroup-policy");
    copy_program(BINARY, &program).unwrap();
    let mut command = place.host.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
        .arg(format!("--inh-caps=-all{capabilities}"))
        .arg(format!("--ambient-caps=-all{capabilities}"))
        .arg(program)
        .env_remove("RUST_LOG");
    place.add_args(&mut command, &[]);
    (command, folder)
}

fn missing_capabilities_are_named_and_three_are_enough() -> Result {
    let place = Place::new()?;
    for (capabilities, missing) in [
        ("", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON are missing"),
        (",+bpf,+perfmon", "CAP_NET_ADMIN is missing"),
    ] {
        let (command, _copy) = as_ordinary_user(&place, capabilities);
        assert_says(
            &finish(command),
            &format!(
                "not allowed to load eBPF programs: {missing}; run it with sudo, or as a service with these capabilities\n"
            ),
        );
    }
    let (mut command, _copy) = as_ordinary_user(&place, ",+bpf,+net_admin,+perfmon");
    // Old kernels charge maps to it.
    // SAFETY: between fork and exec one system call is made, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            let _ = setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
            Ok(())
        });
    }
    let finished = finish(command);
    assert!(finished.status.success(), "{finished:#?}");
    Ok(())
}

fn a_limit_on_locked_memory_is_named_where_there_is_one() -> Result {
    let place = Place::new()?;
    let (mut command, _copy) = as_ordinary_user(&place, ",+bpf,+net_admin,+perfmon");
    // SAFETY: between fork and exec one system call is made, and nothing is allocated.
    unsafe {
        command.pre_exec(|| setrlimit(Resource::RLIMIT_MEMLOCK, 4096, 4096).map_err(io::Error::from));
    }
    let finished = finish(command);
    if finished.status.success() {
        // Since Linux 5.11 maps are charged to the memory cgroup, and the limit means nothing to them.
        return Ok(());
    }
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    // Behind warnings: that the limit could not be raised, for one.
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("error: the limit on locked memory (ulimit -l) is too low for ")
            && last.ends_with("; raise it: `ulimit -l unlimited`"),
        "{finished:#?}"
    );
    Ok(())
}

fn without_cgroup2_the_mount_is_named() -> Result {
    let place = Place::new()?;
    let root = Hierarchy::find().unwrap().root().to_owned();
    let mut command = place.command(&[]);
    // SAFETY: between fork and exec system calls are made, and short paths are copied.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let (none, nothing) = (None::<&Path>, None::<&str>);
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
            umount2(&root, MntFlags::MNT_DETACH)?;
            Ok(())
        });
    }
    assert_says(
        &finish(command),
        "no cgroup v2 is mounted; mount it (`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 ",
    );
    Ok(())
}

fn a_cgroup_that_is_not_there_is_named_with_those_that_are() -> Result {
    let place = Place::new()?;
    let _child = place.cgroup.child("web")?;
    let missing = place.cgroup.path().join("wbe");
    let run = |cgroup: &Path, args: &[&str]| {
        let mut command = command(&place.host, &["--duration", "100ms"]);
        command
            .arg("--cgroup")
            .arg(cgroup)
            .arg("--policy")
            .arg(place.policy.path())
            .args(args);
        finish(command)
    };
    let line = format!(
        "there is no cgroup {}; in {} there are web; --create makes a new one\n",
        missing.display(),
        place.cgroup.path().display()
    );
    assert_says(&run(&missing, &[]), &line);
    assert!(run(&missing, &["--create"]).status.success());
    assert!(!missing.exists());
    assert_says(
        &run(Path::new("/usr/bin"), &[]),
        "/usr/bin is no cgroup of version 2; those are the folders below /",
    );
    Ok(())
}

fn a_cgroup_that_goes_ends_it() -> Result {
    let place = Place::new()?;
    let gone = place.cgroup.child("gone")?;
    let mut command = command(&place.host, &["--json", "--interval", "100ms"]);
    command
        .arg("--cgroup")
        .arg(gone.path())
        .arg("--policy")
        .arg(place.policy.path());
    let running = Running::start(command)?;
    running.wait_for("elapsed_ms", PATIENCE)?;
    drop(gone);
    let finished = running.wait(PATIENCE)?;
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished
            .stderr
            .contains(" has gone, and nothing is enforced any more; start again"),
        "{finished:#?}"
    );
    Ok(())
}

fn a_hook_that_somebody_has_for_himself_is_named() -> Result {
    let place = Place::new()?;
    let program = bpf::empty_program(bpf::ProgramType::CgroupSkb)?;
    let _attached = bpf::attach_exclusively(&program, &place.cgroup)?;
    assert_says(
        &finish(place.command(&[])),
        &format!(
            "the hook ingress of {} admits no further program: ",
            place.cgroup.path().display()
        ),
    );
    Ok(())
}

fn a_policy_that_cannot_be_enforced_changes_nothing() -> Result {
    let place = Place::new()?;
    for (text, words) in [
        (
            "{ version: 1, name: x, rules: [ { name: a, actoin: block } ] }",
            "actoin",
        ),
        (
            "{ version: 1, name: x, rules: [ { name: a, uid: 1000, direction: egress, action: block } ] }",
            "rule a: `uid` is not enforced here",
        ),
        (
            "{ version: 1, name: x, rules: [ { name: a, protocol: tcp, destination_ports: 1-65535, action: block } ] }",
            "rule a takes 131070 entries",
        ),
    ] {
        place.policy.write(text);
        let finished = finish(place.command(&[]));
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        assert!(
            finished.stderr.contains(words) && finished.stderr.contains("error: "),
            "{finished:#?}"
        );
    }
    let mut command = command(&place.host, &["--policy", "/no/such/policy.yaml"]);
    command.arg("--cgroup").arg(place.cgroup.path());
    let finished = finish(command);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("/no/such"), "{finished:#?}");
    Ok(())
}

fn pins_elsewhere_than_on_bpffs_are_refused() -> Result {
    let place = Place::new()?;
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().to_str().unwrap();
    assert_says(
        &finish(place.command(&["--pin", taken])),
        &format!("{taken} cannot be made a folder of pins: "),
    );
    let elsewhere = folder.path().join("pins");
    let finished = finish(place.command(&["--pin", elsewhere.to_str().unwrap()]));
    assert_says(&finished, &format!("{}/", elsewhere.display()));
    assert!(
        finished.stderr.contains("take a folder below /sys/fs/bpf"),
        "{finished:#?}"
    );
    Ok(())
}

fn options_that_contradict_each_other_are_a_misuse() -> Result {
    let place = Place::new()?;
    for args in [
        &["--observe", "--block"][..],
        &["--hook", "bind4"],
        &["--max-entries", "0"],
        &["--no-such"],
    ] {
        let finished = finish(place.command(args));
        assert_eq!(finished.status.code(), Some(2), "{args:?}: {finished:#?}");
    }
    assert_eq!(finish(command(&place.host, &["--cgroup", "/"])).status.code(), Some(2));
    assert_eq!(finish(command(&place.host, &[])).status.code(), Some(2));
    Ok(())
}
