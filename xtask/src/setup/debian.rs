//! Takes the standard library's sources out of Debian's package `rust-src`, without installing anything.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::{self, Apt, Suite},
    workspace::Workspace,
};

/// Where a release of Rust may be found: first the suite that keeps up with it for the stable Debian, whose list is
/// short, then those into which new releases go.
const SUITES: [Suite; 4] = [
    Suite::main("trixie-backports"),
    Suite::main("forky"),
    Suite::main("sid"),
    Suite::main("trixie"),
];

/// The folder `library` of Rust `release`, unpacked below `.tools`.
pub fn library_sources(workspace: &Workspace, release: &str) -> Result<PathBuf> {
    let unpacked = workspace.tools().join("rust-src").join(release);
    let library = unpacked.join(format!("usr/src/rustc-{release}/library"));
    if library.join("core/src/lib.rs").is_file() {
        return Ok(library);
    }
    let apt = Apt::create(workspace, "apt")?;
    let packages = SUITES
        .iter()
        .find_map(|suite| download(&apt, *suite, release).transpose())
        .with_context(|| {
            format!(
                "Debian has no rust-src of version {release} (looked in {})",
                SUITES.map(|suite| suite.name).join(", ")
            )
        })??;
    apt::unpack("rust-src", &packages, &unpacked, workspace)?;
    if !library.join("core/src/lib.rs").is_file() {
        bail!("Debian's rust-src has no {}", library.display());
    }
    Ok(library)
}

/// The package `rust-src` of this release, if `suite` has it.
fn download(apt: &Apt, suite: Suite, release: &str) -> Result<Option<Vec<PathBuf>>> {
    if let Err(error) = apt.read(suite) {
        // Another suite may answer still.
        eprintln!("    {error:#}");
        return Ok(None);
    }
    let offered = apt.show("rust-src")?;
    let Some(version) = version_of(release, &offered) else {
        return Ok(None);
    };
    let what = format!("rust-src {version} of {}", suite.name);
    apt.download(&what, &[format!("rust-src={version}")]).map(Some)
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
    fn only_the_very_same_release_is_taken() {
        let shown = "Package: rust-src\nVersion: 1.95.0+dfsg1-1~bpo13+1\n";
        assert_eq!(version_of("1.95.0", shown), Some("1.95.0+dfsg1-1~bpo13+1"));
        let several = "Version: 1.96.1+dfsg1-2~bpo13+1\n\nVersion: 1.95.0+dfsg1-2~bpo13+1\n";
        assert_eq!(version_of("1.95.0", several), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(version_of("1.95", shown), None);
        assert_eq!(version_of("1.96.0", shown), None);
        assert_eq!(version_of("1.97.0-nightly", shown), None);
    }
}
