//! Loads an eBPF object into the kernel, and says in one line why it was refused.

use std::{fmt::Write as _, fs, io};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    programs::{Program, ProgramError},
};
use aya_log::EbpfLogger;
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

/// Why a program or a map could not be brought into the kernel. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The process may not load eBPF programs.
    #[error(
        "not allowed to load eBPF programs: {missing} missing; run it with sudo, or as a service with these capabilities"
    )]
    Privileges {
        /// The capabilities that are not there, by name.
        missing: String,
    },
    /// The capabilities are there, but in a user namespace only, and bpf(2) wants them in the initial one.
    #[error(
        "not allowed to load eBPF programs: the process is root in a user namespace only (a rootless container?); run it \
         outside of that"
    )]
    UserNamespace,
    /// The kernel has no `bpf(2)`, or a map or program type that is too new for it.
    #[error(
        "the kernel ({release}) does not know what {what} needs; Linux 5.10 or later with CONFIG_BPF_SYSCALL is \
         required: `cargo xtask doctor` says what this one lacks"
    )]
    Unsupported {
        /// The map or program.
        what: String,
        /// What `uname -r` says.
        release: String,
    },
    /// The capabilities are there, and yet it is forbidden.
    #[error(
        "the kernel forbids {what}, although the process has the capabilities; what can forbid it: kernel lockdown, a \
         security module, or a container's seccomp filter. `cargo xtask doctor` looks further"
    )]
    Forbidden {
        /// The map or program.
        what: String,
    },
    /// The limit on locked memory, which bounds maps before Linux 5.11.
    #[error("the limit on locked memory (ulimit -l) is too low for {what}; raise it: `ulimit -l unlimited`")]
    LockedMemory {
        /// The map or program.
        what: String,
    },
    /// No memory for a map.
    #[error("no memory for {what}; ask for fewer entries")]
    NoMemory {
        /// The map.
        what: String,
    },
    /// The verifier found the program unsafe.
    #[error("the kernel's verifier refused the program {program}: {reason}\n{log_tail}")]
    Verifier {
        /// The program.
        program: String,
        /// The verifier's own words.
        reason: String,
        /// The last lines of the log.
        log_tail: String,
    },
    /// The object has no such program, or one of another type.
    #[error("the eBPF object has no program {program} of the type {wanted}; build it again")]
    NoSuchProgram {
        /// The program that was looked for.
        program: String,
        /// Its type.
        wanted: &'static str,
    },
    /// The object is no eBPF object, or not one that this loader understands.
    #[error("the eBPF object cannot be read: {0}; build it again")]
    Object(String),
    /// Anything else, in the kernel's words.
    #[error("{what} could not be loaded: {cause}")]
    Other {
        /// The map or program.
        what: String,
        /// The kernel's words.
        cause: String,
    },
}

/// Loads `object`: creates its maps, each of `capacities` (map name, entries) with that many entries.
///
/// The level of its kernel-side log lines is that of [`log::max_level`]: what would not be shown is not produced.
pub fn load_object(object: &[u8], capacities: &[(&str, u32)]) -> Result<Ebpf, LoadError> {
    load_object_with(object, capacities, &[])
}

/// As [`load_object`], and sets each of `globals` (the name of a static of one byte, what it shall be), which the verifier
/// takes for constant.
pub fn load_object_with(object: &[u8], capacities: &[(&str, u32)], globals: &[(&str, u8)]) -> Result<Ebpf, LoadError> {
    require_privileges()?;
    let log_level = log::max_level() as u8;
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &log_level, false);
    for (name, value) in globals {
        loader.override_global(name, value, true);
    }
    for (map, entries) in capacities {
        loader.map_max_entries(map, *entries);
    }
    loader.load(object).map_err(explain)
}

/// Hands the program's log lines to [`log`] for as long as the runtime lives; does nothing if it has none.
pub fn forward_log_lines(ebpf: &mut Ebpf) -> io::Result<()> {
    let logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        // An object built without aya-log, so that bpftool can load it, has no map of that name.
        Err(aya_log::Error::MapNotFound) => return Ok(()),
        Err(error) => return Err(io::Error::other(error)),
    };
    // SAFETY: the logger owns the ring buffer's descriptor, keeps it for as long as it lives, and lives in the AsyncFd.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}

/// The program called `name`, as `T`; `wanted` is what people call that type.
pub fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str, wanted: &'static str) -> Result<&'a mut T, LoadError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| LoadError::NoSuchProgram {
            program: name.to_owned(),
            wanted,
        })
}

/// What the capabilities are for, by number: `include/uapi/linux/capability.h`.
const REQUIRED_CAPABILITIES: [(u32, &str); 3] = [(39, "CAP_BPF"), (12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON")];
/// Stands for `CAP_BPF` and `CAP_PERFMON`, which were split off from it in Linux 5.8.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_NET_ADMIN: u32 = 12;

/// Whether the process may load network programs.
pub fn require_privileges() -> Result<(), LoadError> {
    // Where procfs cannot be read the kernel's own refusal has to do.
    let Some(effective) = effective_capabilities() else {
        return Ok(());
    };
    let has = |capability: u32| effective & (1 << capability) != 0;
    let missing: Vec<&str> = REQUIRED_CAPABILITIES
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .filter(|(capability, _)| *capability == CAP_NET_ADMIN || !has(CAP_SYS_ADMIN))
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() {
        return if in_initial_user_namespace() {
            Ok(())
        } else {
            Err(LoadError::UserNamespace)
        };
    }
    let missing = match missing.as_slice() {
        [one] => format!("{one} is"),
        several => format!("{} are", several.join(", ")),
    };
    Err(LoadError::Privileges { missing })
}

fn effective_capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether capabilities are worth what they say: `user_namespaces(7)`. Where procfs cannot be read, yes.
fn in_initial_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").map_or(true, |map| is_identity(&map))
}

/// Whether a `uid_map` maps every user to itself, as that of the initial user namespace does.
fn is_identity(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Turns aya's error into one that names cause and mend.
pub fn explain(error: EbpfError) -> LoadError {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            explain_errno(&format!("the map {name}"), &io_error)
        }
        EbpfError::ProgramError(error) => explain_program("?", error),
        EbpfError::ParseError(error) => LoadError::Object(error.to_string()),
        EbpfError::BtfError(error) => LoadError::Other {
            what: "the object's type information (BTF)".into(),
            cause: error.to_string(),
        },
        error => LoadError::Object(chain(&error)),
    }
}

/// As [`explain`], for what loading the program called `program` answered.
pub fn explain_program(program: &str, error: ProgramError) -> LoadError {
    let what = format!("the program {program}");
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            match verdict(&log) {
                Some(reason) => LoadError::Verifier {
                    program: program.to_owned(),
                    reason,
                    log_tail: tail(&log, 12),
                },
                None => explain_errno(&what, &io_error),
            }
        }
        ProgramError::SyscallError(error) => explain_errno(&what, &error.io_error),
        error => LoadError::Other {
            what,
            cause: chain(&error),
        },
    }
}

fn explain_errno(what: &str, error: &io::Error) -> LoadError {
    let what = what.to_owned();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            require_privileges().map_or_else(|missing| missing, |()| explain_refusal(what, &kernel_release()))
        }
        Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP) => LoadError::Unsupported {
            what,
            release: kernel_release(),
        },
        Some(libc::ENOMEM | libc::E2BIG) => LoadError::NoMemory { what },
        _ => LoadError::Other {
            what,
            cause: error.to_string(),
        },
    }
}

/// What a kernel of this release means by refusing what the process has the capabilities for.
fn explain_refusal(what: String, release: &str) -> LoadError {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // Since Linux 5.11 maps are charged to the memory cgroup instead.
    if version < (5, 11) {
        LoadError::LockedMemory { what }
    } else {
        LoadError::Forbidden { what }
    }
}

/// The line of a verifier log that says what is wrong: the last one before its closing statistics, and before the report
/// of several lines in which Linux 7.3 explains it.
fn verdict(log: &str) -> Option<String> {
    log.split("\nVerification failed: ")
        .next()?
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty() && !is_statistics(line))
        .map(str::to_owned)
}

fn is_statistics(line: &str) -> bool {
    ["processed ", "verification time", "stack depth", "peak_states"]
        .iter()
        .any(|start| line.starts_with(start))
        // Of each function, since Linux 7.
        || line.starts_with("subprog ") && line.contains(" insns_total ")
}

fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut text = format!("the last {} lines of its log:", lines.min(all.len()));
    for line in all.iter().skip(all.len().saturating_sub(lines)) {
        let _ = write!(text, "\n  {line}");
    }
    text
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_the_last_line_before_the_statistics() {
        let log = "0: (61) r1 = *(u32 *)(r1 +0)\ninvalid access to packet, off=0 size=2, R1(id=0,off=0,r=0)\n\
                   R1 offset is outside of the packet\nverification time 42 usec\nstack depth 0\n\
                   processed 3 insns (limit 1000000) max_states_per_insn 0 total_states 0\n";
        assert_eq!(verdict(log).as_deref(), Some("R1 offset is outside of the packet"));
    }

    #[test]
    fn what_linux_7_says_of_each_function_is_no_verdict() {
        let log = "0: (61) r0 = *(u32 *)(r1 +4096)\ninvalid bpf_context access off=4096 size=4\n\
                   verification time 9137 usec\nstack depth max 0\n\
                   subprog 0 (connect4) main insns_self 1 insns_total 1 stack 0\n\
                   subprog 1 (memset) static insns_self 0 insns_total 0 stack 0\n\
                   processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n";
        assert_eq!(
            verdict(log).as_deref(),
            Some("invalid bpf_context access off=4096 size=4")
        );
    }

    #[test]
    fn the_report_of_linux_7_3_comes_after_the_verdict() {
        let log = "1: (71) r0 = *(u8 *)(r2 +0)\ninvalid access to packet, off=0 size=1, R2(id=0,off=0,r=0)\n\
                   R2 min value is outside of the allowed memory range\n\
                   Verification failed: Memory Safety: Access outside bounds\nSuggestion:\n  Add or adjust a bounds check\n\
                   processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n";
        let expected = "R2 min value is outside of the allowed memory range";
        assert_eq!(verdict(log).as_deref(), Some(expected));
    }

    #[test]
    fn an_empty_log_has_no_verdict() {
        assert_eq!(verdict("\n \n"), None);
    }

    #[test]
    fn a_map_that_is_too_large_says_so() {
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        let text = explain_errno("the map X", &error).to_string();
        assert_eq!(text, "no memory for the map X; ask for fewer entries");
    }

    #[test]
    fn an_old_kernel_is_named() {
        for errno in [libc::ENOSYS, libc::EINVAL, libc::EOPNOTSUPP] {
            let error = io::Error::from_raw_os_error(errno);
            let text = explain_errno("the map X", &error).to_string();
            let start = format!(
                "the kernel ({}) does not know what the map X needs; Linux 5.10",
                kernel_release()
            );
            assert!(text.starts_with(&start), "{text}");
        }
    }

    #[test]
    fn a_refusal_means_locked_memory_on_old_kernels_only() {
        for (release, cause) in [
            ("5.4.0-216-generic", "the limit on locked memory"),
            ("5.10.0-39-cloud-amd64", "the limit on locked memory"),
            ("5.11.0", "the kernel forbids the map X"),
            ("5.15.160+", "the kernel forbids the map X"),
            ("6.18.44-fc-v509", "the kernel forbids the map X"),
            ("7.3-rc7", "the kernel forbids the map X"),
        ] {
            let text = explain_refusal("the map X".into(), release).to_string();
            assert!(text.starts_with(cause), "{release}: {text}");
        }
    }

    #[test]
    fn an_error_without_a_meaning_of_its_own_is_told_in_the_kernels_words() {
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        let text = explain_errno("the map X", &error).to_string();
        assert_eq!(text, "the map X could not be loaded: Too many open files (os error 24)");
    }

    #[test]
    fn a_rejection_shows_the_tail_of_the_log() {
        let log: Vec<_> = (0..100).map(|number| format!("{number}: (b7) r0 = 0")).collect();
        let text = tail(&log.join("\n"), 12);
        assert_eq!(text.lines().count(), 13);
        assert!(text.starts_with("the last 12 lines of its log:\n  88: ") && text.ends_with("\n  99: (b7) r0 = 0"));
    }

    #[test]
    fn only_the_initial_user_namespace_maps_every_user_to_itself() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("         0       1000          1\n"));
        assert!(!is_identity("0 100000 65536\n"));
        assert!(!is_identity(""));
    }
}
