//! What `doctor` judges: the facts about this machine, read once and without judging them.

use std::path::PathBuf;

use crate::{
    machine::{Machine, Probe},
    toolchain::Toolchain,
    tools,
    workspace::Workspace,
};

/// Facts about a machine. What could not be read is `None`.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts are what they are; none excludes another"
)]
pub struct Facts {
    /// The Rust toolchain.
    pub toolchain: Option<Toolchain>,
    /// Whether the sources of the standard library are there.
    pub has_rust_src: bool,
    /// The bpf-linker that a build would take.
    pub bpf_linker: BpfLinker,
    /// The C compiler, by which cargo links.
    pub cc: Option<PathBuf>,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel_release: Option<String>,
    /// The kernel's build configuration.
    pub kernel_config: Option<KernelConfig>,
    /// What was found by trying, where there is no build configuration.
    pub probed: Probed,
    /// Whether the kernel describes its types.
    pub has_btf: bool,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<String>,
    /// Where the BPF file system is mounted.
    pub bpffs: Option<String>,
    /// Where the cgroup v2 hierarchy is mounted.
    pub cgroup2: Option<String>,
    /// Whether we are root.
    pub is_root: bool,
    /// Whether we are in a user namespace, whose root is root of nothing else.
    pub in_user_namespace: bool,
    /// Our effective capabilities, a bit each.
    pub capabilities: Option<u64>,
    /// Whether sudo is installed.
    pub has_sudo: bool,
    /// How many bytes we may lock in memory; `u64::MAX` for any number.
    pub memlock_bytes: Option<u64>,
}

/// The bpf-linker that a build would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BpfLinker {
    /// The one that `setup` installed, and the LLVM it was built for.
    OfProject { llvm: Option<u32> },
    /// Only one of the user's.
    OfUser(PathBuf),
    /// None.
    Missing,
}

/// What was found by trying; `None` where we may not try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probed {
    /// Whether there is a system call `bpf`.
    pub bpf_syscall: Option<bool>,
    /// Whether programs can be attached to cgroups.
    pub cgroup_bpf: Option<bool>,
    /// Whether the qdisc `clsact` can be added.
    pub sch_ingress: Option<bool>,
    /// Whether the filter `bpf` can be added.
    pub cls_bpf: Option<bool>,
    /// Whether there are sockets of the family `AF_XDP`.
    pub xdp_sockets: Option<bool>,
}

/// The kernel's build configuration, a line an option.
#[derive(Clone, Debug)]
pub struct KernelConfig(pub String);

impl KernelConfig {
    /// `y` or `m`, or a number; `None` if the option is not set.
    pub fn value(&self, option: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(option)?.strip_prefix('='))
    }
}

impl Facts {
    /// Reads them.
    pub fn of(machine: &Machine, workspace: &Workspace) -> Self {
        let toolchain = Toolchain::of(machine).ok();
        let kernel_release = machine
            .read("/proc/sys/kernel/osrelease")
            .map(|text| text.trim().to_owned());
        let kernel_config = kernel_config(machine, kernel_release.as_deref());
        let mounts = machine.read("/proc/self/mounts").unwrap_or_default();
        let status = machine.read("/proc/self/status").unwrap_or_default();
        let limits = machine.read("/proc/self/limits").unwrap_or_default();
        Self {
            has_rust_src: toolchain.as_ref().is_some_and(Toolchain::has_library_sources),
            bpf_linker: BpfLinker::of(machine, workspace),
            cc: machine.find("cc"),
            probed: match kernel_config {
                Some(_) => Probed::default(),
                None => Probed::of(machine),
            },
            has_btf: machine.has("/sys/kernel/btf/vmlinux"),
            jit: machine
                .read("/proc/sys/net/core/bpf_jit_enable")
                .map(|text| text.trim().to_owned()),
            bpffs: mounted(&mounts, "bpf"),
            cgroup2: mounted(&mounts, "cgroup2"),
            is_root: machine.is_root(),
            in_user_namespace: machine
                .read("/proc/self/uid_map")
                .is_some_and(|map| !maps_every_user(&map)),
            capabilities: capabilities(&status),
            has_sudo: machine.find("sudo").is_some(),
            memlock_bytes: memlock_bytes(&limits),
            toolchain,
            kernel_release,
            kernel_config,
        }
    }
}

impl BpfLinker {
    fn of(machine: &Machine, workspace: &Workspace) -> Self {
        if workspace.tool("bpf-linker").is_file() {
            return Self::OfProject {
                llvm: tools::recorded_llvm(workspace),
            };
        }
        machine.find("bpf-linker").map_or(Self::Missing, Self::OfUser)
    }
}

impl Probed {
    fn of(machine: &Machine) -> Self {
        Self {
            bpf_syscall: machine.probe(Probe::BpfSyscall),
            cgroup_bpf: machine.probe(Probe::CgroupBpf),
            sch_ingress: machine.probe(Probe::SchIngress),
            cls_bpf: machine.probe(Probe::ClsBpf),
            xdp_sockets: machine.probe(Probe::XdpSockets),
        }
    }
}

/// The configuration that the kernel itself offers, else the one that its package put beside it.
fn kernel_config(machine: &Machine, release: Option<&str>) -> Option<KernelConfig> {
    let offered = || {
        machine
            .has("/proc/config.gz")
            .then(|| machine.run("gzip", &["-dc", "/proc/config.gz"]))
            .flatten()
    };
    let beside = || machine.read(&format!("/boot/config-{}", release?));
    offered().or_else(beside).map(KernelConfig)
}

/// The first place where a file system of this type is mounted; a line is `device place type options …`.
fn mounted(mounts: &str, file_system: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (_device, place, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found == file_system).then(|| place.to_owned())
    })
}

/// Outside of user namespaces the map is one line: from 0, to 0, for all 2^32 - 1 of them.
fn maps_every_user(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn capabilities(status: &str) -> Option<u64> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

fn memlock_bytes(limits: &str) -> Option<u64> {
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?
        .split_whitespace()
        .next()?;
    if soft == "unlimited" {
        Some(u64::MAX)
    } else {
        soft.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A machine with these files, which answers no program but `gzip`.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine::pretended(root.path(), "", |program, _| {
            (program == "gzip").then(|| "CONFIG_BPF=y\n".to_owned())
        });
        (root, machine)
    }

    fn facts(files: &[(&str, &str)]) -> Facts {
        let (root, machine) = machine(files);
        Facts::of(&machine, &Workspace::at(root.path().join("project")))
    }

    #[test]
    fn nothing_is_made_up_on_a_machine_without_files() {
        let facts = facts(&[]);
        assert!(facts.toolchain.is_none() && facts.kernel_release.is_none() && facts.kernel_config.is_none());
        assert!(facts.bpffs.is_none() && facts.cgroup2.is_none() && facts.capabilities.is_none());
        assert!(!facts.has_btf && !facts.has_rust_src && facts.jit.is_none() && facts.cc.is_none());
        assert_eq!(facts.bpf_linker, BpfLinker::Missing);
    }

    #[test]
    fn the_configuration_is_the_kernels_own_else_that_of_its_package() {
        let own = facts(&[("/proc/config.gz", "compressed")]);
        assert_eq!(own.kernel_config.unwrap().value("CONFIG_BPF"), Some("y"));

        let of_package = facts(&[
            ("/proc/sys/kernel/osrelease", "6.1.0-9\n"),
            ("/boot/config-6.1.0-9", "# CONFIG_BPF is not set\nCONFIG_BPF_JIT=m\n"),
            ("/boot/config-5.10.0-1", "CONFIG_BPF=y\n"),
        ]);
        let config = of_package.kernel_config.unwrap();
        assert_eq!(config.value("CONFIG_BPF"), None);
        assert_eq!(config.value("CONFIG_BPF_JIT"), Some("m"));
    }

    #[test]
    fn mounts_are_found_wherever_they_are() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      bpf /sys/fs/bpf bpf rw 0 0\n";
        let facts = facts(&[("/proc/self/mounts", mounts)]);
        assert_eq!(facts.cgroup2.unwrap(), "/sys/fs/cgroup/unified");
        assert_eq!(facts.bpffs.unwrap(), "/sys/fs/bpf");
    }

    #[test]
    fn a_user_namespace_is_told_by_its_map_of_users() {
        let first = [("/proc/self/uid_map", "         0          0 4294967295\n")];
        assert!(!facts(&first).in_user_namespace);
        let inner = [("/proc/self/uid_map", "         0       1000          1\n")];
        assert!(facts(&inner).in_user_namespace);
    }

    #[test]
    fn capabilities_and_the_limit_of_locked_memory_are_read() {
        let facts = facts(&[
            ("/proc/self/status", "Name:\txtask\nCapEff:\t000001c000001000\n"),
            (
                "/proc/self/limits",
                "Max locked memory         8388608              8388608              bytes\n",
            ),
        ]);
        assert_eq!(facts.capabilities, Some(0x1c0_0000_1000));
        assert_eq!(facts.memlock_bytes, Some(8_388_608));
        assert_eq!(
            memlock_bytes("Max locked memory  unlimited  unlimited  bytes\n"),
            Some(u64::MAX)
        );
    }
}
