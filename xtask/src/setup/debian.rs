//! Takes the standard library's sources out of Debian's package `rust-src`, without installing anything.
//!
//! apt is run on a state of its own, so that the machine's package lists stay as they are. The mirror is the one that
//! the machine is configured for; what comes from it is verified by Debian's archive key.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{machine::find_in_path, progress, workspace::Workspace};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where a release of Rust may be found: first the suite that keeps up with it for the stable Debian, whose list is
/// short, then those into which new releases go.
const SUITES: [&str; 4] = ["trixie-backports", "forky", "sid", "trixie"];

/// The folder `library` of Rust `release`, unpacked below `.tools`.
pub fn library_sources(workspace: &Workspace, release: &str) -> Result<PathBuf> {
    let unpacked = workspace.tools().join("rust-src").join(release);
    let library = unpacked.join(format!("usr/src/rustc-{release}/library"));
    if library.join("core/src/lib.rs").is_file() {
        return Ok(library);
    }
    require_apt()?;
    let mirror = mirror()?;
    let state = State::create(&workspace.tools().join("apt"), &mirror)?;
    let log = workspace.tools().join("log");
    let package = SUITES
        .iter()
        .find_map(|suite| state.download(suite, release, &log).transpose())
        .with_context(|| {
            format!(
                "Debian has no rust-src of version {release} (looked in {})",
                SUITES.join(", ")
            )
        })??;

    fs::create_dir_all(&unpacked).with_context(|| format!("{} cannot be created", unpacked.display()))?;
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(&package).arg(&unpacked);
    progress::run("unpacking rust-src", &mut unpack, &log.join("dpkg-deb"))?;
    if !library.join("core/src/lib.rs").is_file() {
        bail!("Debian's rust-src has no {}", library.display());
    }
    Ok(library)
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

/// The mirror of Debian's main archive that this machine is configured for.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)"])
        .output()
        .context("apt-get cannot be run")?;
    choose_mirror(&String::from_utf8_lossy(&output.stdout))
        .context("apt's configuration names no mirror of Debian's main archive; add one to /etc/apt/sources.list")
}

/// The main archive calls itself Debian, labelled Debian; where no list was fetched yet, its usual path tells it.
fn choose_mirror(targets: &str) -> Option<String> {
    let uris = |is_main: fn(&str, &str, &str) -> bool| {
        targets.lines().find_map(|line| {
            let mut fields = line.split('|');
            let (uri, origin, label) = (fields.next()?, fields.next()?, fields.next()?);
            is_main(uri, origin, label).then(|| uri.to_owned())
        })
    };
    uris(|_, origin, label| origin == "Debian" && label == "Debian")
        .or_else(|| uris(|uri, origin, _| origin.is_empty() && uri.trim_end_matches('/').ends_with("/debian")))
}

/// A state of apt below one folder.
struct State {
    folder: PathBuf,
    mirror: String,
}

impl State {
    fn create(folder: &Path, mirror: &str) -> Result<Self> {
        for name in ["lists/partial", "cache/archives/partial", "etc", "download"] {
            let folder = folder.join(name);
            fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
        }
        fs::write(folder.join("status"), "").context("the status file of the scratch apt cannot be written")?;
        Ok(Self {
            folder: folder.to_owned(),
            mirror: mirror.to_owned(),
        })
    }

    /// The package `rust-src` of this release, if `suite` has it.
    fn download(&self, suite: &str, release: &str, log: &Path) -> Result<Option<PathBuf>> {
        let source = format!("deb [signed-by={KEYRING}] {} {suite} main\n", self.mirror);
        fs::write(self.folder.join("etc/sources.list"), source)
            .context("the scratch apt's source cannot be written")?;
        let what = format!("reading the package list of {suite}");
        if let Err(error) = progress::run(&what, self.apt("apt-get").arg("update"), &log.join("apt-update")) {
            // Another suite may answer still; an old machine's keyring, for one, does not know the newest suite.
            eprintln!("    {error:#}");
            return Ok(None);
        }
        let offered = self
            .apt("apt-cache")
            .args(["show", "--no-all-versions", "rust-src"])
            .output()
            .context("apt-cache cannot be run")?;
        let offered = String::from_utf8_lossy(&offered.stdout);
        let Some(version) = version_of(release, &offered) else {
            return Ok(None);
        };

        let folder = self.folder.join("download");
        let mut download = self.apt("apt-get");
        download
            .args(["download", &format!("rust-src={version}")])
            .current_dir(&folder);
        let what = format!("downloading rust-src {version} of {suite}");
        progress::run(&what, &mut download, &log.join("apt-download"))?;
        let package = fs::read_dir(&folder)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get downloaded no package")?;
        Ok(Some(package))
    }

    fn apt(&self, program: &str) -> Command {
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
            "Acquire::Retries=2".to_owned(),
            // apt, run as root, would drop to a user who cannot write to this folder.
            "APT::Sandbox::User=".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        command
    }
}

/// Package lists are big, and stale tomorrow.
impl Drop for State {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// The version of the package whose upstream version is `release`, among what `apt-cache show` printed.
fn version_of<'a>(release: &str, shown: &'a str) -> Option<&'a str> {
    shown
        .lines()
        .filter_map(|line| line.strip_prefix("Version: "))
        .find(|version| {
            version
                .strip_prefix(release)
                .is_some_and(|rest| rest.starts_with(['+', '-', '~']))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_main_archive() {
        let targets = "http://mirror.example/security/|Debian|Debian-Security\n\
                       http://mirror.example/main/|Debian|Debian\n";
        assert_eq!(choose_mirror(targets).unwrap(), "http://mirror.example/main/");
    }

    #[test]
    fn before_the_first_update_the_mirror_is_told_by_its_path() {
        let targets = "http://mirror.example/debian-security/||\nhttp://mirror.example/debian/||\n";
        assert_eq!(choose_mirror(targets).unwrap(), "http://mirror.example/debian/");
    }

    #[test]
    fn an_archive_of_another_distribution_is_no_mirror() {
        assert_eq!(choose_mirror("http://archive.example/ubuntu/|Ubuntu|Ubuntu\n"), None);
        assert_eq!(choose_mirror(""), None);
    }

    #[test]
    fn only_the_very_same_release_is_taken() {
        let shown = "Package: rust-src\nVersion: 1.95.0+dfsg1-1~bpo13+1\n";
        assert_eq!(version_of("1.95.0", shown), Some("1.95.0+dfsg1-1~bpo13+1"));
        assert_eq!(version_of("1.95", shown), None);
        assert_eq!(version_of("1.96.0", shown), None);
        assert_eq!(version_of("1.97.0-nightly", shown), None);
    }
}
