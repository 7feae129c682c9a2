//! A folder with Debian's programs for virtual machines: Vagrant, libvirt, QEMU, and what builds and checks boxes.
//!
//! Its packages are unpacked, not installed, which takes seconds. Programs are run with it as their root folder, in mount
//! and process namespaces of their own, which take what they mount and start with them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    apt::{self, Apt, Suite},
    privilege::Privilege,
    setup,
    workspace::Workspace,
};

const SUITE: Suite = Suite::main("trixie");

const PACKAGES: [&str; 26] = [
    "?essential",
    "ca-certificates",
    "debian-archive-keyring",
    "debootstrap",
    "dnsmasq-base",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "iptables",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-driver-network",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-driver-storage",
    "mawk",
    "nftables",
    "openssh-client",
    "procps",
    "qemu-system-x86",
    "qemu-utils",
    "rsync",
    "shellcheck",
    "slirp4netns",
    "util-linux",
    "vagrant",
    "vagrant-libvirt",
];

/// What the packages' own scripts would have set up, as far as it is needed: users, and links that are chosen.
const USERS: &str = "libvirt-qemu:x:64055:64055:Libvirt QEMU:/var/lib/libvirt:/usr/sbin/nologin\n\
                     libvirt-dnsmasq:x:64056:64056:Libvirt dnsmasq:/var/lib/libvirt/dnsmasq:/usr/sbin/nologin\n";
const GROUPS: &str = "libvirt:x:64054:\nlibvirt-qemu:x:64055:\nlibvirt-dnsmasq:x:64056:\nkvm:x:64057:\n";
const LINKS: [(&str, &str); 5] = [
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
    ("usr/bin/awk", "mawk"),
    ("usr/sbin/iptables", "iptables-nft"),
    ("usr/sbin/ip6tables", "ip6tables-nft"),
];

/// A libvirt for one user in namespaces of its own: no access rules, no control groups, no change of users.
const LIBVIRTD_CONF: &str = "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n";
const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\n\
                         security_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n\
                         stdio_handler = \"file\"\n";

/// What enters it: the tree, the project, the folder for what is big, folders of this machine to be found below `/host`
/// (a line each), then the program and its arguments.
const ENTER: &str = r#"
tree=$1 project=$2 work=$3 folders=$4
shift 4
# A root folder must be a mount of its own, or what is started in it can make no namespaces.
mount --bind "$tree" "$tree"
mkdir -p "$tree/project" "$tree/scratch" "$tree/host"
mount --rbind /dev "$tree/dev"
mount --rbind /sys "$tree/sys"
mount -t proc proc "$tree/proc"
for folder in tmp run root; do mount -t tmpfs -o mode=755 tmpfs "$tree/$folder"; done
chmod 1777 "$tree/tmp"
mount --rbind "$project" "$tree/project"
mount --rbind "$work" "$tree/scratch"
mount -t tmpfs -o mode=755 tmpfs "$tree/host"
printf '%s\n' "$folders" | while read -r folder; do
    [ -n "$folder" ] || continue
    mkdir -p "$tree/host$folder"
    mount --rbind "$folder" "$tree/host$folder"
done
exec chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" "$@"
"#;

/// The folder, and the way to become root, without which no root folder can be entered.
pub struct Tree {
    folder: PathBuf,
    privilege: Privilege,
}

impl Tree {
    /// Finds the folder; makes it where there is none.
    pub fn obtain(workspace: &Workspace) -> Result<Self> {
        let privilege = Privilege::obtain("trying the virtual machine")?;
        let folder = workspace.tools().join("vagrant");
        if !folder.is_dir() {
            let _alone = setup::lock(workspace)?;
            // Somebody else may have made it while we waited for the lock.
            if !folder.is_dir() {
                make(workspace, &folder)
                    .context("Vagrant and what it needs cannot be downloaded, which takes a Debian machine")?;
            }
        }
        // It changes from network to network.
        let resolver = folder.join("etc/resolv.conf");
        fs::copy("/etc/resolv.conf", &resolver)
            .with_context(|| format!("/etc/resolv.conf cannot be copied to {}", resolver.display()))?;
        Ok(Self { folder, privilege })
    }

    /// A program inside.
    pub fn command(&self, workspace: &Workspace, args: &[&str]) -> Result<Command> {
        self.command_with(workspace, &[], args)
    }

    /// A program inside, with folders of this machine below `/host`.
    pub fn command_with(&self, workspace: &Workspace, folders: &[PathBuf], args: &[&str]) -> Result<Command> {
        let work = workspace.target().join("vagrant");
        fs::create_dir_all(&work).with_context(|| format!("{} cannot be created", work.display()))?;
        let own = [
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            "sh",
            "-euc",
            ENTER,
            "sh",
        ];
        let mut all: Vec<_> = own.iter().map(|arg| (*arg).to_owned()).collect();
        for folder in [&self.folder, workspace.root(), &work] {
            all.push(folder.display().to_string());
        }
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        all.push(folders.join("\n"));
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        Ok(self.privilege.command(Path::new("unshare"), &all, &[]))
    }
}

fn make(workspace: &Workspace, folder: &Path) -> Result<()> {
    let apt = Apt::create(workspace, "apt-vagrant")?;
    apt.read(SUITE)?;
    let packages = apt.download_with_dependencies("Vagrant, libvirt, QEMU", &PACKAGES)?;
    // Under another name until it is whole: what an interrupted run left would look like the folder.
    let partial = folder.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    apt::unpack("Vagrant, libvirt, QEMU", &packages, &partial, workspace)?;
    settle(&partial).with_context(|| format!("{} cannot be written", partial.display()))?;
    fs::rename(&partial, folder).with_context(|| format!("{} cannot be made", folder.display()))
}

fn settle(tree: &Path) -> std::io::Result<()> {
    for (file, added) in [("passwd", USERS), ("group", GROUPS)] {
        let usual = fs::read_to_string(tree.join("usr/share/base-passwd").join(format!("{file}.master")))?;
        fs::write(tree.join("etc").join(file), usual + added)?;
    }
    for (link, goal) in LINKS {
        let link = tree.join(link);
        // A package may have brought a folder where its scripts would have found a link.
        if link.is_dir() {
            fs::remove_dir_all(&link)?;
        }
        symlink(goal, link)?;
    }
    for (file, text) in [("libvirtd.conf", LIBVIRTD_CONF), ("qemu.conf", QEMU_CONF)] {
        fs::write(tree.join("etc/libvirt").join(file), text)?;
    }
    Ok(())
}
