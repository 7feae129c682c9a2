//! Debian's packages, without installing anything.
//!
//! apt is run on a state of its own, so that the machine's package lists stay as they are and no root is needed. The
//! mirrors are those that the machine is configured for; what comes from them is verified by Debian's archive keys.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{machine::find_in_path, progress, workspace::Workspace};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One of Debian's archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// The one with the releases and their backports.
    Main,
    /// The one with the security updates.
    Security,
}

/// A suite of an archive, such as `trixie-backports`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite {
    /// The archive that holds it.
    pub archive: Archive,
    /// Its name.
    pub name: &'static str,
}

impl Suite {
    /// A suite of the main archive.
    pub const fn main(name: &'static str) -> Self {
        let archive = Archive::Main;
        Self { archive, name }
    }

    /// A suite of the archive of security updates.
    pub const fn security(name: &'static str) -> Self {
        let archive = Archive::Security;
        Self { archive, name }
    }
}

/// A state of apt below `.tools`, which is removed with it.
pub struct Apt {
    folder: PathBuf,
    log: PathBuf,
    mirrors: Mirrors,
    /// Debian's name of another processor than this machine's, whose packages are wanted.
    processor: Option<&'static str>,
}

impl Apt {
    /// Makes the state. `name` sets it apart from another one that may be in use at the same time.
    pub fn create(workspace: &Workspace, name: &str) -> Result<Self> {
        Self::with(workspace, name, None)
    }

    /// As [`Apt::create`], for the packages of a processor by Debian's name, as `arm64`.
    pub fn create_for(workspace: &Workspace, name: &str, processor: &'static str) -> Result<Self> {
        Self::with(workspace, name, Some(processor))
    }

    fn with(workspace: &Workspace, name: &str, processor: Option<&'static str>) -> Result<Self> {
        require_apt()?;
        let apt = Self {
            processor,
            folder: workspace.tools().join(name),
            log: workspace.tools().join("log"),
            mirrors: Mirrors::of_this_machine()?,
        };
        for name in ["lists/partial", "cache/archives/partial", "etc", "download"] {
            let folder = apt.folder.join(name);
            fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
        }
        fs::write(apt.folder.join("status"), "").context("the status file of the scratch apt cannot be written")?;
        Ok(apt)
    }

    /// Reads the package list of `suite`, and forgets any other.
    ///
    /// The error is a reason to try another suite: an old machine's keyring, for one, does not know the newest.
    pub fn read(&self, suite: Suite) -> Result<()> {
        let mirror = self.mirrors.of(suite.archive)?;
        let source = format!("deb [signed-by={KEYRING}] {mirror} {} main\n", suite.name);
        fs::write(self.folder.join("etc/sources.list"), source)
            .context("the scratch apt's source cannot be written")?;
        let what = format!("reading the package list of {}", suite.name);
        progress::run(
            &what,
            // A list that cannot be had would be no more than a warning.
            self.command("apt-get")
                .args(["update", "-o", "APT::Update::Error-Mode=any"]),
            &self.log.join("apt-update"),
        )
    }

    /// The names of the packages that match a regular expression.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let found = self.ask(&["search", "--names-only", pattern])?;
        let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
        Ok(found.lines().filter_map(name).collect())
    }

    /// What the list says of every version of a package, newest first; nothing if it has none.
    ///
    /// Of every one: a backports suite keeps the releases of some months, and the newest is seldom the one at hand.
    pub fn show(&self, package: &str) -> Result<String> {
        self.ask(&["show", "--all-versions", package])
    }

    /// Downloads packages, each a name, or a name and a version as in `rust-src=1.95.0+dfsg1-1`.
    pub fn download(&self, what: &str, packages: &[String]) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join("download");
        let mut download = self.command("apt-get");
        download.arg("download").args(packages).current_dir(&folder);
        progress::run(
            &format!("downloading {what}"),
            &mut download,
            &self.log.join("apt-download"),
        )?;
        packages_in(&folder)
    }

    /// Downloads packages with everything that they depend on, as if nothing were installed; `what` names them to the
    /// user.
    pub fn download_with_dependencies(&self, what: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let mut install = self.command("apt-get");
        install.args(["install", "--download-only", "--no-install-recommends", "--yes"]);
        progress::run(
            &format!("downloading {what} and what it depends on"),
            install.args(packages),
            &self.log.join("apt-install"),
        )?;
        packages_in(&self.folder.join("cache/archives"))
    }

    fn ask(&self, args: &[&str]) -> Result<String> {
        let output = self.command("apt-cache").args(args).output();
        let output = output.context("apt-cache cannot be run")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, program: &str) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new(program);
        for setting in [
            format!("Dir::State={folder}"),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            format!("Dir::Etc::sourcelist={folder}/etc/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=2".to_owned(),
            // apt, run as root, would drop to a user who cannot write to this folder.
            "APT::Sandbox::User=".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        if let Some(processor) = self.processor {
            for setting in ["APT::Architecture", "APT::Architectures::"] {
                command.args(["-o", &format!("{setting}={processor}")]);
            }
        }
        command
    }
}

/// Package lists are big, and stale tomorrow.
impl Drop for Apt {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Unpacks packages into one folder; `what` names them to the user.
pub fn unpack(what: &str, packages: &[PathBuf], folder: &Path, workspace: &Workspace) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    // One after the other in one shell, so that it is one step to the user.
    let mut unpack = Command::new("sh");
    unpack.args([
        "-euc",
        r#"into=$1; shift; for package in "$@"; do dpkg-deb -x "$package" "$into"; done"#,
        "sh",
    ]);
    unpack.arg(folder).args(packages);
    progress::run(
        &format!("unpacking {what}"),
        &mut unpack,
        &workspace.tools().join("log/dpkg-deb"),
    )
}

/// Downloads a package with everything that it depends on, and unpacks it all into a new folder.
pub fn unpack_with_dependencies(workspace: &Workspace, suite: Suite, package: &str, folder: &Path) -> Result<()> {
    let apt = Apt::create(workspace, &format!("apt-{package}"))?;
    apt.read(suite)?;
    let packages = apt.download_with_dependencies(package, &[package])?;
    let partial = folder.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    unpack(package, &packages, &partial, workspace)?;
    fs::rename(&partial, folder).with_context(|| format!("{} cannot be made", folder.display()))
}

fn require_apt() -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        if find_in_path(program, &path).is_none() {
            bail!("{program} is not there; this is no Debian");
        }
    }
    if !Path::new(KEYRING).is_file() {
        bail!("{KEYRING} is missing, by which packages are verified: apt-get install debian-archive-keyring");
    }
    Ok(())
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let packages: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if packages.is_empty() {
        bail!("apt-get downloaded no package");
    }
    Ok(packages)
}

/// Where this machine gets Debian's archives from.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// That of the releases and their backports.
    pub main: String,
    /// That of the security updates, if it has one.
    pub security: Option<String>,
}

impl Mirrors {
    /// Asks apt.
    pub fn of_this_machine() -> Result<Self> {
        let output = Command::new("apt-get")
            .args(["indextargets", "--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)"])
            .output()
            .context("apt-get cannot be run")?;
        Self::choose(&String::from_utf8_lossy(&output.stdout))
            .context("apt's configuration names no mirror of Debian's main archive; add one to /etc/apt/sources.list")
    }

    fn choose(targets: &str) -> Option<Self> {
        Some(Self {
            main: mirror(targets, "Debian", "/debian")?,
            security: mirror(targets, "Debian-Security", "/debian-security"),
        })
    }

    fn of(&self, archive: Archive) -> Result<&str> {
        match archive {
            Archive::Main => Ok(&self.main),
            Archive::Security => self
                .security
                .as_deref()
                .context("apt's configuration names no mirror of Debian's security updates"),
        }
    }
}

/// The archives say what they are by origin and label; where no list was fetched yet, their usual paths tell them.
fn mirror(targets: &str, wanted: &str, path: &str) -> Option<String> {
    let uris = |is_it: &dyn Fn(&str, &str, &str) -> bool| {
        targets.lines().find_map(|line| {
            let mut fields = line.split('|');
            let (uri, origin, label) = (fields.next()?, fields.next()?, fields.next()?);
            is_it(uri, origin, label).then(|| uri.to_owned())
        })
    };
    uris(&|_, origin, label| origin == "Debian" && label == wanted)
        .or_else(|| uris(&|uri, origin, _| origin.is_empty() && uri.trim_end_matches('/').ends_with(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(main: &str, security: &str) -> Mirrors {
        Mirrors {
            main: main.into(),
            security: Some(security.into()),
        }
    }

    #[test]
    fn mirrors_are_told_by_what_they_say_of_themselves() {
        let targets = "http://mirror.example/security/|Debian|Debian-Security\n\
                       http://mirror.example/main/|Debian|Debian\n";
        let expected = mirrors("http://mirror.example/main/", "http://mirror.example/security/");
        assert_eq!(Mirrors::choose(targets), Some(expected));
    }

    #[test]
    fn before_the_first_update_mirrors_are_told_by_their_paths() {
        let targets = "http://mirror.example/debian-security/||\nhttp://mirror.example/debian/||\n";
        let expected = mirrors(
            "http://mirror.example/debian/",
            "http://mirror.example/debian-security/",
        );
        assert_eq!(Mirrors::choose(targets), Some(expected));
    }

    #[test]
    fn an_archive_of_another_distribution_is_no_mirror() {
        assert_eq!(Mirrors::choose("http://archive.example/ubuntu/|Ubuntu|Ubuntu\n"), None);
        assert_eq!(Mirrors::choose(""), None);
    }

    #[test]
    fn without_security_updates_only_their_suites_are_out_of_reach() {
        let mirrors = Mirrors::choose("http://mirror.example/debian/||\n").unwrap();
        assert!(mirrors.of(Archive::Main).is_ok());
        let error = mirrors.of(Archive::Security).unwrap_err().to_string();
        assert!(error.contains("security updates"), "{error}");
    }
}
