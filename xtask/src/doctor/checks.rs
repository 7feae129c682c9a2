//! Judges the facts: one check a requirement.

use crate::{
    facts::{BpfLinker, Facts, KernelConfig},
    toolchain::OLDEST_RUST,
    tools,
};

/// The oldest kernel that the labs run on.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// Since this kernel, BPF memory is charged to the cgroup and no longer against the limit of locked memory.
const MEMLOCK_UNTIL: (u32, u32) = (5, 11);
/// The name that capabilities have, and their bit (linux/capability.h).
const CAPABILITIES: [(&str, u32); 4] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
    ("CAP_SYS_ADMIN", 21),
];
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// One requirement and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is required.
    pub subject: &'static str,
    /// How it stands.
    pub verdict: Verdict,
}

/// How a requirement stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is met, by this.
    Met(String),
    /// It is not met.
    Missing {
        /// What was found instead.
        found: String,
        /// What to do.
        mend: String,
    },
    /// It does not matter here, or could not be checked, for this reason.
    Open(String),
}

/// Judges everything, in the order in which it is needed.
pub fn all(facts: &Facts) -> Vec<Check> {
    let kernel = facts.kernel_release.as_deref().and_then(kernel_version);
    let mut checks = vec![
        check("Rust", rust(facts)),
        check("C compiler", c_compiler(facts)),
        check("rust-src", rust_src(facts)),
        check("bpf-linker", bpf_linker(facts)),
        check("LLVM", llvm(facts)),
        check("kernel", kernel_release(facts, kernel)),
    ];
    checks.extend(
        OPTIONS
            .iter()
            .map(|option| check(option.name, kernel_option(facts, option))),
    );
    checks.extend([
        check("BTF", btf(facts)),
        check("JIT", jit(facts)),
        check("bpffs", bpffs(facts)),
        check("cgroup v2", cgroup2(facts)),
        check("privileges", privileges(facts)),
        check("locked memory", memlock(facts, kernel)),
    ]);
    checks
}

fn check(subject: &'static str, verdict: Verdict) -> Check {
    Check { subject, verdict }
}

fn met(found: impl Into<String>) -> Verdict {
    Verdict::Met(found.into())
}

fn missing(found: impl Into<String>, mend: impl Into<String>) -> Verdict {
    Verdict::Missing {
        found: found.into(),
        mend: mend.into(),
    }
}

fn open(why: impl Into<String>) -> Verdict {
    Verdict::Open(why.into())
}

fn rust(facts: &Facts) -> Verdict {
    let (major, minor) = OLDEST_RUST;
    let Some(toolchain) = &facts.toolchain else {
        return missing(
            "rustc cannot be run",
            format!("install Rust {major}.{minor} or later, for example from https://rustup.rs"),
        );
    };
    if toolchain.version().is_some_and(|version| version >= OLDEST_RUST) {
        met(&toolchain.release)
    } else {
        missing(
            format!("{} is older than {major}.{minor}", toolchain.release),
            "rustup update stable",
        )
    }
}

fn c_compiler(facts: &Facts) -> Verdict {
    match &facts.cc {
        Some(path) => met(path.display().to_string()),
        None => missing(
            "no `cc` on PATH, by which cargo links",
            "install a C compiler; on Debian: sudo apt-get install gcc libc6-dev",
        ),
    }
}

fn rust_src(facts: &Facts) -> Verdict {
    match &facts.toolchain {
        None => open("cannot be checked without rustc"),
        Some(toolchain) if facts.has_rust_src => met(toolchain.library_sources().display().to_string()),
        Some(toolchain) => missing(
            format!("not in {}", toolchain.library_sources().display()),
            "cargo xtask setup",
        ),
    }
}

fn bpf_linker(facts: &Facts) -> Verdict {
    match &facts.bpf_linker {
        BpfLinker::OfProject { .. } => met("in .tools, installed by `cargo xtask setup`"),
        BpfLinker::OfUser(path) => missing(
            format!(
                "only {}, and which LLVM that was built for cannot be told",
                path.display()
            ),
            "cargo xtask setup (installs one into .tools; yours stays as it is)",
        ),
        BpfLinker::Missing => missing("not installed", "cargo xtask setup"),
    }
}

fn llvm(facts: &Facts) -> Verdict {
    let Some(toolchain) = &facts.toolchain else {
        return open("cannot be checked without rustc");
    };
    let wanted = match tools::bpf_linker(toolchain) {
        Ok(tool) => tool.llvm,
        Err(cause) => {
            // The sentence is cause and mend in one, as `setup` prints it.
            let (found, mend) = cause.split_once("; ").unwrap_or((&cause, "use Rust 1.95"));
            return missing(found, mend);
        }
    };
    let number = |llvm: Option<u32>| llvm.map_or_else(|| "an unknown one".to_owned(), |llvm| llvm.to_string());
    match facts.bpf_linker {
        BpfLinker::OfProject { llvm } if llvm == wanted => met(format!("{} in rustc and in bpf-linker", number(llvm))),
        BpfLinker::OfProject { llvm } => missing(
            format!(
                "rustc has {}, bpf-linker was built for {}",
                number(wanted),
                number(llvm)
            ),
            "cargo xtask setup",
        ),
        BpfLinker::OfUser(_) | BpfLinker::Missing => open(format!(
            "{} in rustc; no bpf-linker of the project to compare with",
            number(wanted)
        )),
    }
}

fn kernel_release(facts: &Facts, version: Option<(u32, u32)>) -> Verdict {
    let (major, minor) = OLDEST_KERNEL;
    match (&facts.kernel_release, version) {
        (Some(release), Some(version)) if version >= OLDEST_KERNEL => met(release),
        (Some(release), Some(_)) => missing(
            format!("{release} is older than {major}.{minor}"),
            "boot a newer kernel, or use the virtual machine in vagrant/",
        ),
        (release, _) => missing(
            format!(
                "{} is no Linux release",
                release.as_deref().unwrap_or("what this system runs on")
            ),
            "eBPF needs Linux: use the virtual machine in vagrant/",
        ),
    }
}

/// The numbers in `6.18.5-cloud`, or `7.3~rc7`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// An option of the kernel's build, and how to find out about it without the build's configuration.
struct KernelOption {
    name: &'static str,
    purpose: &'static str,
    is_required: bool,
    probed: fn(&Facts) -> Option<bool>,
}

const OPTIONS: [KernelOption; 8] = [
    KernelOption {
        name: "CONFIG_BPF",
        purpose: "eBPF itself",
        is_required: true,
        probed: |facts| facts.probed.bpf_syscall,
    },
    KernelOption {
        name: "CONFIG_BPF_SYSCALL",
        purpose: "loading programs and making maps",
        is_required: true,
        probed: |facts| facts.probed.bpf_syscall,
    },
    KernelOption {
        name: "CONFIG_BPF_JIT",
        purpose: "compiling programs to machine code",
        is_required: true,
        probed: |facts| Some(facts.jit.is_some()),
    },
    KernelOption {
        name: "CONFIG_NET_CLS_BPF",
        purpose: "programs at traffic control",
        is_required: true,
        probed: |facts| facts.probed.cls_bpf,
    },
    KernelOption {
        name: "CONFIG_NET_SCH_INGRESS",
        purpose: "programs at traffic control",
        is_required: true,
        probed: |facts| facts.probed.sch_ingress,
    },
    KernelOption {
        name: "CONFIG_CGROUP_BPF",
        purpose: "programs at cgroups",
        is_required: true,
        probed: |facts| facts.probed.cgroup_bpf,
    },
    KernelOption {
        name: "CONFIG_DEBUG_INFO_BTF",
        purpose: "the kernel's description of its types",
        is_required: true,
        probed: |facts| Some(facts.has_btf),
    },
    KernelOption {
        name: "CONFIG_XDP_SOCKETS",
        purpose: "AF_XDP, which only an extra uses",
        is_required: false,
        probed: |facts| facts.probed.xdp_sockets,
    },
];

fn kernel_option(facts: &Facts, option: &KernelOption) -> Verdict {
    let (answer, source) = match &facts.kernel_config {
        Some(config) => return configured(config, option),
        None => ((option.probed)(facts), "by trying; the kernel offers no configuration"),
    };
    match answer {
        Some(true) => met(format!("works ({source})")),
        Some(false) => not_built(option, &format!("does not work ({source})")),
        None => open("the kernel offers no configuration, and trying needs root"),
    }
}

fn configured(config: &KernelConfig, option: &KernelOption) -> Verdict {
    match config.value(option.name) {
        Some("y") => met("built in"),
        Some("m") => met("a module"),
        Some(other) => not_built(option, &format!("set to {other}")),
        None => not_built(option, "not set"),
    }
}

fn not_built(option: &KernelOption, found: &str) -> Verdict {
    if option.is_required {
        missing(
            format!("{found}; needed for {}", option.purpose),
            format!(
                "boot a kernel built with {}=y, as those of the distributions are, or use the virtual machine in vagrant/",
                option.name
            ),
        )
    } else {
        open(format!("{found}; needed for {}", option.purpose))
    }
}

fn btf(facts: &Facts) -> Verdict {
    if facts.has_btf {
        met("/sys/kernel/btf/vmlinux")
    } else {
        missing(
            "no /sys/kernel/btf/vmlinux",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y; in a container, mount /sys",
        )
    }
}

fn jit(facts: &Facts) -> Verdict {
    match facts.jit.as_deref() {
        Some("1") => met("on"),
        Some("2") => met("on, with debugging output in the kernel's log"),
        Some("0") => missing(
            "off: programs are interpreted, at a fraction of the speed",
            "sudo sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(other) => open(format!("net.core.bpf_jit_enable has the unknown value {other}")),
        // Kernels built with CONFIG_BPF_JIT_ALWAYS_ON show it too, but not every namespace or user sees it.
        None => open("net.core.bpf_jit_enable cannot be read"),
    }
}

fn bpffs(facts: &Facts) -> Verdict {
    match &facts.bpffs {
        Some(place) => met(format!("mounted at {place}")),
        None => missing("not mounted", "sudo mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn cgroup2(facts: &Facts) -> Verdict {
    match &facts.cgroup2 {
        Some(place) => met(format!("mounted at {place}")),
        None => missing(
            "not mounted",
            "sudo mkdir -p /sys/fs/cgroup/unified && sudo mount -t cgroup2 none /sys/fs/cgroup/unified, \
             or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

fn privileges(facts: &Facts) -> Verdict {
    let Some(held) = facts.capabilities else {
        return open("/proc/self/status cannot be read");
    };
    if facts.in_user_namespace {
        return missing(
            "inside a user namespace, whose capabilities do not count for eBPF",
            "run this as the machine's own root or user; rootless containers cannot load programs",
        );
    }
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(name, bit)| {
            // CAP_SYS_ADMIN contains the two that were split off from it in 5.8.
            let contained = *name != "CAP_NET_ADMIN" && has(held, CAP_SYS_ADMIN);
            !contained && !has(held, *bit)
        })
        .map(|(name, _)| *name)
        .collect();
    let lacking = lacking.join(", ");
    match (facts.is_root, lacking.is_empty()) {
        (true, true) => met("root"),
        (true, false) => missing(
            format!("root without {lacking}"),
            "start the container with these capabilities, for example by --privileged",
        ),
        (false, true) => met("not root, but with all capabilities needed"),
        (false, false) if facts.has_sudo => met(format!("by sudo (you yourself lack {lacking})")),
        (false, false) => missing(
            format!("not root, no sudo, without {lacking}"),
            "run `cargo xtask run` and `test` as root, or install sudo",
        ),
    }
}

fn memlock(facts: &Facts, kernel: Option<(u32, u32)>) -> Verdict {
    if kernel.is_none_or(|version| version >= MEMLOCK_UNTIL) {
        return open("its limit does not matter since Linux 5.11");
    }
    let may_raise = facts.capabilities.is_some_and(|held| has(held, CAP_SYS_RESOURCE));
    match facts.memlock_bytes {
        Some(u64::MAX) => met("unlimited"),
        _ if may_raise || facts.has_sudo => met("limited; the labs raise the limit when they start as root"),
        Some(bytes) => missing(
            format!("limited to {} KiB, against which this kernel counts maps", bytes / 1024),
            "as root: ulimit -l unlimited",
        ),
        None => open("/proc/self/limits cannot be read"),
    }
}

fn has(capabilities: u64, bit: u32) -> bool {
    capabilities & (1 << bit) != 0
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{facts::Probed, toolchain::Toolchain};

    /// A machine that has everything, seen by root.
    fn good() -> Facts {
        let lines: Vec<_> = OPTIONS.iter().map(|option| format!("{}=y", option.name)).collect();
        Facts {
            toolchain: Some(Toolchain {
                release: "1.95.0".into(),
                llvm: Some(22),
                sysroot: "/opt/rust".into(),
            }),
            has_rust_src: true,
            bpf_linker: BpfLinker::OfProject { llvm: Some(22) },
            cc: Some("/usr/bin/cc".into()),
            kernel_release: Some("6.18.5-cloud".into()),
            kernel_config: Some(KernelConfig(lines.join("\n"))),
            probed: Probed::default(),
            has_btf: true,
            jit: Some("1".into()),
            bpffs: Some("/sys/fs/bpf".into()),
            cgroup2: Some("/sys/fs/cgroup".into()),
            is_root: true,
            in_user_namespace: false,
            capabilities: Some(u64::MAX),
            has_sudo: false,
            memlock_bytes: Some(8 << 20),
        }
    }

    fn by_user() -> Facts {
        Facts {
            is_root: false,
            capabilities: Some(0),
            ..good()
        }
    }

    /// What is missing on a machine, as `subject: found; mend`.
    fn missing_on(facts: &Facts) -> Vec<String> {
        let lines = all(facts).into_iter().filter_map(|check| match check.verdict {
            Verdict::Missing { found, mend } => Some(format!("{}: {found} => {mend}", check.subject)),
            Verdict::Met(_) | Verdict::Open(_) => None,
        });
        lines.collect()
    }

    fn verdict_on(facts: &Facts, subject: &str) -> Verdict {
        all(facts)
            .into_iter()
            .find(|check| check.subject == subject)
            .unwrap()
            .verdict
    }

    /// Breaks one thing of the good machine and compares what is said.
    macro_rules! case {
        ($name:ident, $facts:expr, $($line:literal),+ $(,)?) => {
            #[test]
            fn $name() {
                assert_eq!(missing_on(&$facts), [$($line),+]);
            }
        };
    }

    #[test]
    fn a_good_machine_lacks_nothing() {
        assert_eq!(missing_on(&good()), [] as [&str; 0]);
    }

    case!(
        no_rustc,
        Facts {
            toolchain: None,
            has_rust_src: false,
            ..good()
        },
        "Rust: rustc cannot be run => install Rust 1.95 or later, for example from https://rustup.rs",
    );
    case!(
        a_rustc_that_is_too_old,
        Facts {
            toolchain: Some(Toolchain {
                release: "1.94.1".into(),
                llvm: Some(22),
                sysroot: "/opt/rust".into()
            }),
            ..good()
        },
        "Rust: 1.94.1 is older than 1.95 => rustup update stable",
    );
    case!(
        a_rustc_with_an_llvm_that_no_linker_is_known_for,
        Facts {
            toolchain: Some(Toolchain {
                release: "2.0.0".into(),
                llvm: Some(31),
                sysroot: "/opt/rust".into()
            }),
            ..good()
        },
        "LLVM: no bpf-linker is known for LLVM 31, which rustc 2.0.0 uses => Rust 1.95 (LLVM 22) is known to work: \
         `rustup toolchain install 1.95` and `cargo +1.95 xtask setup`",
    );
    case!(
        no_c_compiler,
        Facts { cc: None, ..good() },
        "C compiler: no `cc` on PATH, by which cargo links => install a C compiler; on Debian: sudo apt-get install \
         gcc libc6-dev",
    );
    case!(
        no_rust_src,
        Facts {
            has_rust_src: false,
            ..good()
        },
        "rust-src: not in /opt/rust/lib/rustlib/src/rust/library => cargo xtask setup",
    );
    case!(
        no_bpf_linker,
        Facts {
            bpf_linker: BpfLinker::Missing,
            ..good()
        },
        "bpf-linker: not installed => cargo xtask setup",
    );
    case!(
        a_bpf_linker_of_the_users,
        Facts {
            bpf_linker: BpfLinker::OfUser(PathBuf::from("/usr/local/bin/bpf-linker")),
            ..good()
        },
        "bpf-linker: only /usr/local/bin/bpf-linker, and which LLVM that was built for cannot be told => cargo xtask \
         setup (installs one into .tools; yours stays as it is)",
    );
    case!(
        a_bpf_linker_for_another_llvm,
        Facts {
            bpf_linker: BpfLinker::OfProject { llvm: Some(21) },
            ..good()
        },
        "LLVM: rustc has 22, bpf-linker was built for 21 => cargo xtask setup",
    );
    case!(
        a_kernel_that_is_too_old,
        Facts {
            kernel_release: Some("5.4.0-1-amd64".into()),
            ..good()
        },
        "kernel: 5.4.0-1-amd64 is older than 5.10 => boot a newer kernel, or use the virtual machine in vagrant/",
    );
    case!(
        no_linux,
        Facts {
            kernel_release: None,
            ..good()
        },
        "kernel: what this system runs on is no Linux release => eBPF needs Linux: use the virtual machine in vagrant/",
    );
    case!(
        a_kernel_without_cgroup_programs,
        Facts {
            kernel_config: Some(KernelConfig(
                good()
                    .kernel_config
                    .unwrap()
                    .0
                    .replace("CONFIG_CGROUP_BPF=y", "# CONFIG_CGROUP_BPF is not set"),
            )),
            ..good()
        },
        "CONFIG_CGROUP_BPF: not set; needed for programs at cgroups => boot a kernel built with CONFIG_CGROUP_BPF=y, \
         as those of the distributions are, or use the virtual machine in vagrant/",
    );
    case!(
        no_btf,
        Facts {
            has_btf: false,
            ..good()
        },
        "BTF: no /sys/kernel/btf/vmlinux => boot a kernel built with CONFIG_DEBUG_INFO_BTF=y; in a container, mount \
         /sys",
    );
    case!(
        jit_switched_off,
        Facts {
            jit: Some("0".into()),
            ..good()
        },
        "JIT: off: programs are interpreted, at a fraction of the speed => sudo sysctl -w net.core.bpf_jit_enable=1",
    );
    case!(
        no_bpffs,
        Facts { bpffs: None, ..good() },
        "bpffs: not mounted => sudo mount -t bpf bpf /sys/fs/bpf",
    );
    case!(
        no_cgroup_v2,
        Facts {
            cgroup2: None,
            ..good()
        },
        "cgroup v2: not mounted => sudo mkdir -p /sys/fs/cgroup/unified && sudo mount -t cgroup2 none \
         /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
    );
    case!(
        a_user_without_sudo,
        by_user(),
        "privileges: not root, no sudo, without CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF, CAP_SYS_ADMIN => run `cargo xtask \
         run` and `test` as root, or install sudo",
    );
    case!(
        root_of_a_container,
        Facts {
            capabilities: Some(0xa804_25fb),
            ..good()
        },
        "privileges: root without CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF, CAP_SYS_ADMIN => start the container with these \
         capabilities, for example by --privileged",
    );
    case!(
        root_of_a_user_namespace,
        Facts {
            in_user_namespace: true,
            ..good()
        },
        "privileges: inside a user namespace, whose capabilities do not count for eBPF => run this as the machine's \
         own root or user; rootless containers cannot load programs",
    );
    case!(
        memory_that_may_not_be_locked_on_an_old_kernel,
        Facts {
            kernel_release: Some("5.10.0-30".into()),
            memlock_bytes: Some(64 << 10),
            ..by_user()
        },
        "privileges: not root, no sudo, without CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF, CAP_SYS_ADMIN => run `cargo xtask \
         run` and `test` as root, or install sudo",
        "locked memory: limited to 64 KiB, against which this kernel counts maps => as root: ulimit -l unlimited",
    );

    #[test]
    fn every_required_option_is_reported_when_it_is_not_set_and_the_optional_one_is_not() {
        let bare = Facts {
            kernel_config: Some(KernelConfig(String::new())),
            ..good()
        };
        let missing = missing_on(&bare);
        assert_eq!(missing.len(), OPTIONS.len() - 1);
        assert!(missing.iter().all(|line| line.contains(": not set; needed for ")));
        assert!(matches!(verdict_on(&bare, "CONFIG_XDP_SOCKETS"), Verdict::Open(_)));
    }

    #[test]
    fn without_a_configuration_what_was_tried_counts() {
        let tried = Facts {
            kernel_config: None,
            probed: Probed {
                bpf_syscall: Some(true),
                cgroup_bpf: Some(false),
                sch_ingress: None,
                cls_bpf: Some(true),
                xdp_sockets: Some(false),
            },
            ..good()
        };
        let missing = missing_on(&tried);
        assert_eq!(missing.len(), 1);
        assert!(
            missing[0].starts_with("CONFIG_CGROUP_BPF: does not work (by trying;"),
            "{}",
            missing[0]
        );
        assert!(matches!(verdict_on(&tried, "CONFIG_NET_CLS_BPF"), Verdict::Met(_)));
        assert!(matches!(verdict_on(&tried, "CONFIG_NET_SCH_INGRESS"), Verdict::Open(_)));
    }

    #[test]
    fn a_user_with_sudo_lacks_nothing() {
        let facts = Facts {
            has_sudo: true,
            ..by_user()
        };
        assert_eq!(missing_on(&facts), [] as [&str; 0]);
    }

    #[test]
    fn a_user_with_the_capabilities_needs_no_sudo() {
        let held = CAPABILITIES.iter().fold(0, |held, (_, bit)| held | 1 << bit);
        let facts = Facts {
            capabilities: Some(held),
            ..by_user()
        };
        assert_eq!(
            verdict_on(&facts, "privileges"),
            met("not root, but with all capabilities needed")
        );
    }

    #[test]
    fn sys_admin_stands_for_the_capabilities_split_off_from_it_but_not_for_net_admin() {
        let facts = Facts {
            capabilities: Some(1 << CAP_SYS_ADMIN),
            ..good()
        };
        let Verdict::Missing { found, .. } = verdict_on(&facts, "privileges") else {
            panic!("CAP_NET_ADMIN is needed");
        };
        assert_eq!(found, "root without CAP_NET_ADMIN");
    }

    #[test]
    fn kernel_releases_of_every_spelling_are_understood() {
        assert_eq!(kernel_version("6.18.5-cloud"), Some((6, 18)));
        assert_eq!(kernel_version("7.3~rc7"), Some((7, 3)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("Darwin"), None);
    }

    #[test]
    fn locked_memory_does_not_matter_on_a_newer_kernel() {
        let facts = Facts {
            memlock_bytes: Some(0),
            ..good()
        };
        assert_eq!(
            verdict_on(&facts, "locked memory"),
            open("its limit does not matter since Linux 5.11")
        );
    }
}
