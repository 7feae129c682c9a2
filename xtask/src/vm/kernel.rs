//! Which kernels there are to test on, and where each comes from.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{modules::Modules, processor::Processor};
use crate::{
    apt::{self, Apt, Suite},
    setup,
    usage::UsageError,
    workspace::Workspace,
};

/// The series that `all` stands for: the oldest that the labs support, the long-term ones since, and the newest.
pub const ALL: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", NEWEST];

/// The newest kernel that Debian has.
pub const NEWEST: &str = "newest";

/// What is worth testing beside a kernel of this release: the oldest series, and the newest long-term one that is another.
pub fn beside(release: &str) -> [&'static str; 2] {
    let [oldest, long_term @ .., _] = ALL;
    let own = series_of(release);
    let newest = long_term.into_iter().rev().find(|series| Some(*series) != own);
    [oldest, newest.unwrap_or(NEWEST)]
}

/// Where new kernels go, and stay for a while.
const RECENT: Suite = Suite::main("trixie-backports");

/// A kernel to boot.
#[derive(Debug)]
pub struct Kernel {
    /// What the user called it.
    pub name: String,
    /// The image.
    pub image: PathBuf,
    /// The folder with its modules.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// An image of the user's.
    pub fn given(image: &Path, modules: Option<&Path>) -> Result<Self> {
        if !image.is_file() {
            bail!(UsageError(format!(
                "{} is no file, and no series of kernels such as 5.10; nor is it `{NEWEST}` or `all`",
                image.display()
            )));
        }
        if !is_boot_image(image)? {
            bail!(UsageError(format!(
                "{} is no kernel that can be booted on x86-64: that is the file bzImage (of a build, \
                 arch/x86/boot/bzImage; on most machines, /boot/vmlinuz-RELEASE), not vmlinux",
                image.display()
            )));
        }
        if let Some(folder) = modules {
            fit_together(image, folder)?;
        }
        Ok(Self {
            name: image
                .file_name()
                .map_or_else(String::new, |name| name.display().to_string()),
            image: image.to_owned(),
            modules: modules.map(Path::to_owned),
        })
    }

    /// The newest kernel of a series, such as `6.1`, out of Debian's packages; downloaded where it is not there yet.
    pub fn of_series(workspace: &Workspace, series: &str, processor: Processor) -> Result<Self> {
        let name = processor.series(series);
        let folder = workspace.tools().join("kernels").join(&name);
        if let Some(kernel) = Self::unpacked(&name, &folder) {
            return Ok(kernel);
        }
        let _alone = setup::lock(workspace)?;
        // Somebody else may have downloaded it while we waited for the lock.
        if let Some(kernel) = Self::unpacked(&name, &folder) {
            return Ok(kernel);
        }
        download(workspace, series, processor, &folder)?;
        Self::unpacked(&name, &folder)
            .with_context(|| format!("Debian's packages of Linux {series} hold no kernel image with modules"))
    }

    /// Downloads the newest kernel of a series unless it is there already.
    pub fn renew(workspace: &Workspace, series: &str) -> Result<()> {
        let folder = workspace.tools().join("kernels").join(series);
        let _alone = setup::lock(workspace)?;
        download(workspace, series, Processor::default(), &folder)
    }

    /// The release, by which a kernel's folder of modules is called.
    fn release(&self) -> Option<&str> {
        self.modules.as_ref()?.file_name()?.to_str()
    }

    /// The kernel whose packages were unpacked into `folder`; from 7.2 on the image lies beside the modules.
    fn unpacked(series: &str, folder: &Path) -> Option<Self> {
        let (modules, release) = ["lib/modules", "usr/lib/modules"].iter().find_map(|path| {
            let entry = fs::read_dir(folder.join(path)).ok()?.next()?.ok()?;
            Some((entry.path(), entry.file_name().into_string().ok()?))
        })?;
        let images = [folder.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        Some(Self {
            name: series.to_owned(),
            image: images.into_iter().find(|image| image.is_file())?,
            modules: Some(modules),
        })
    }
}

/// Which kernels the user wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Debian's, of these series.
    Series(Vec<&'a str>),
    /// The user's own: an image, and the folder of its modules.
    Image(&'a Path, Option<&'a Path>),
}

impl<'a> Choice<'a> {
    /// Understands `5.10`, `5.10,6.1`, `newest`, `all`, or the path of an image.
    pub fn of(text: &'a str, modules: Option<&'a Path>) -> Result<Self> {
        let names: Vec<_> = if text.contains('/') {
            vec![text]
        } else {
            text.split(',').map(str::trim).collect()
        };
        match (names.as_slice(), names.iter().find(|name| is_image(name)), modules) {
            ([image], Some(_), modules) => Ok(Self::Image(Path::new(*image), modules)),
            (_, Some(image), _) => bail!(UsageError(format!(
                "{image:?} is no series of kernels such as 5.10; an image of a kernel has to stand alone"
            ))),
            (_, None, Some(_)) => bail!(UsageError(format!(
                "--modules goes with a kernel that is a file; those of {text} come with it"
            ))),
            (["all"], None, None) => Ok(Self::Series(ALL.to_vec())),
            (names, None, None) => {
                if names.contains(&"all") {
                    bail!(UsageError("`all` stands alone".into()));
                }
                let mut series: Vec<&str> = Vec::new();
                for name in names {
                    if !series.contains(name) {
                        series.push(name);
                    }
                }
                Ok(Self::Series(series))
            }
        }
    }

    /// Finds them; downloads what is missing.
    pub fn obtain(&self, workspace: &Workspace, processor: Processor) -> Result<Vec<Kernel>> {
        match self {
            Self::Series(series) => series
                .iter()
                .map(|series| Kernel::of_series(workspace, series, processor))
                .collect(),
            Self::Image(..) if processor != Processor::default() => {
                bail!(UsageError(
                    "--arch goes with a series of kernels, not with a file".into()
                ))
            }
            Self::Image(image, modules) => Ok(vec![Kernel::given(image, *modules)?]),
        }
    }
}

/// Modules of another release are refused by the kernel, one after the other, and no test would find what it needs.
fn fit_together(image: &Path, folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        bail!(UsageError(format!(
            "{} is no folder; --modules wants the one with the kernel's modules, such as /lib/modules/RELEASE",
            folder.display()
        )));
    }
    let of_modules = Modules::in_folder(folder)?.release()?;
    match (release_of(image)?, of_modules) {
        (Some(release), Some(of_modules)) if release != of_modules => bail!(UsageError(format!(
            "{} is Linux {release}, and the modules in {} are those of {of_modules}",
            image.display(),
            folder.display()
        ))),
        _ => Ok(()),
    }
}

/// The release that an image says it is: the first word of the text to which the boot protocol's field `kernel_version`
/// at 0x20e points, less 0x200 (Documentation/arch/x86/boot.rst).
fn release_of(image: &Path) -> Result<Option<String>> {
    let content = fs::read(image).with_context(|| format!("{} cannot be read", image.display()))?;
    let pointer = content.get(0x20e..0x210).and_then(|bytes| bytes.try_into().ok());
    let pointer = pointer.map_or(0, u16::from_le_bytes);
    let text = content.get(usize::from(pointer) + 0x200..).unwrap_or_default();
    let word = text.split(|byte| byte.is_ascii_whitespace() || *byte == 0).next();
    let release = String::from_utf8_lossy(word.unwrap_or_default()).into_owned();
    Ok((pointer != 0 && !release.is_empty()).then_some(release))
}

/// Whether a file begins as the boot protocol of x86 has it: with `HdrS` at 0x202 (Documentation/arch/x86/boot.rst).
fn is_boot_image(image: &Path) -> Result<bool> {
    let mut header = [0; 0x206];
    let mut file = fs::File::open(image).with_context(|| format!("{} cannot be read", image.display()))?;
    match file.read_exact(&mut header) {
        Ok(()) => Ok(header.ends_with(b"HdrS")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", image.display())),
    }
}

/// Whether the user names an image rather than a series.
pub fn is_image(name: &str) -> bool {
    name.contains('/') || !(["all", NEWEST].contains(&name) || series_of(name).is_some_and(|series| series == name))
}

/// The suites that may hold a series, the likeliest first.
fn suites(series: &str) -> Vec<Suite> {
    match series {
        "5.10" => vec![Suite::security("bullseye-security"), Suite::main("bullseye")],
        "6.1" => vec![Suite::security("bookworm-security"), Suite::main("bookworm")],
        "6.12" => vec![Suite::security("bookworm-security"), Suite::main("trixie")],
        _ => vec![RECENT],
    }
}

/// Downloads the newest kernel of a series into `folder`, unless it is that one that lies there.
fn download(workspace: &Workspace, series: &str, processor: Processor, folder: &Path) -> Result<()> {
    let apt = Apt::create_for(workspace, "apt-kernels", processor.name())?;
    let mut offered = Vec::new();
    let mut unreadable = None;
    for suite in suites(series) {
        if let Err(error) = apt.read(suite) {
            eprintln!("    {error:#}");
            unreadable = Some(error);
            continue;
        }
        let names = apt.names(&format!(
            "^linux-(image|binary|modules)-[0-9].*-cloud-{}$",
            processor.name()
        ))?;
        let releases = releases(&names);
        if let Some(release) = newest(&releases, series) {
            let there = Kernel::unpacked(series, folder);
            if there.as_ref().and_then(Kernel::release) == Some(release) {
                eprintln!("  – Linux {series}: {release} is there, and the newest");
                return Ok(());
            }
            let packages = packages_of(release, &names);
            let what = format!("Linux {release} of {}", suite.name);
            let packages = apt.download(&what, &packages)?;
            // Under another name until it is whole: what an interrupted run left would look like a kernel.
            let partial = folder.with_extension("partial");
            fs::remove_dir_all(&partial).ok();
            apt::unpack(&what, &packages, &partial, workspace)?;
            fs::remove_dir_all(folder).ok();
            return fs::rename(&partial, folder).with_context(|| format!("{} cannot be made", folder.display()));
        }
        offered.extend(
            releases
                .iter()
                .filter_map(|release| series_of(release))
                .map(str::to_owned),
        );
    }
    if let Some(error) = unreadable {
        return Err(error.context(format!("no Linux {series} can be downloaded")));
    }
    bail!(UsageError(format!(
        "Debian has no Linux {series}; it has {}; another kernel can be given as a file: \
         `--kernel ./bzImage --modules /lib/modules/RELEASE`",
        list(offered)
    )))
}

/// The series that there are: those with a suite of their own, and those found.
fn list(found: Vec<String>) -> String {
    let known = ALL
        .iter()
        .filter(|name| **name != NEWEST)
        .map(|name| (*name).to_owned());
    let mut all: Vec<_> = known.chain(found).collect();
    all.sort_by_key(|series| numbers(series));
    all.dedup();
    all.join(", ")
}

/// The releases of which the signed image is there; an unsigned one precedes it by some days.
fn releases(names: &[String]) -> Vec<&str> {
    let release = |name: &'_ str| {
        let rest = name
            .strip_prefix("linux-image-")
            .or_else(|| name.strip_prefix("linux-binary-"))?;
        // Not linux-image-6.1-cloud-amd64, which only depends on another.
        (rest.split('-').next()?.split('.').count() > 2).then_some(name.len() - rest.len())
    };
    names
        .iter()
        .filter_map(|name| Some(&name[release(name)?..]))
        .filter(|release| !release.starts_with("unsigned"))
        .collect()
}

/// The newest release of a series.
fn newest<'a>(releases: &[&'a str], series: &str) -> Option<&'a str> {
    releases
        .iter()
        .filter(|release| series == NEWEST || series_of(release) == Some(series))
        .max_by_key(|release| numbers(release))
        .copied()
}

/// The packages that make a release: an image, and from 6.19 on its parts.
fn packages_of(release: &str, names: &[String]) -> Vec<String> {
    ["image", "binary", "modules"]
        .iter()
        .map(|part| format!("linux-{part}-{release}"))
        .filter(|package| names.contains(package))
        .collect()
}

/// `6.12.94+deb13-cloud-amd64` → `6.12`.
fn series_of(release: &str) -> Option<&str> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(major) && is_number(minor)).then(|| &release[..major.len() + 1 + minor.len()])
}

/// The numbers in a release, by which releases are ordered.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split("-cloud-")
        .next()
        .unwrap_or(release)
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::modules;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_newest_long_term_series_is_tested_unless_it_is_the_machines_own() {
        assert_eq!(beside("6.12.94+deb13-amd64"), ["5.10", "6.18"]);
        assert_eq!(beside("6.18.15+deb13-amd64"), ["5.10", "6.12"]);
        assert_eq!(beside("7.1.0"), ["5.10", "6.18"]);
        assert_eq!(beside(""), ["5.10", "6.18"]);
    }

    #[test]
    fn the_newest_of_a_series_is_told_by_its_numbers() {
        let names = names(&[
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.90+deb12.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1-cloud-amd64",
        ]);
        let releases = releases(&names);
        assert_eq!(newest(&releases, "6.12"), Some("6.12.107+deb13-cloud-amd64"));
        assert_eq!(newest(&releases, "6.1"), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(newest(&releases, NEWEST), Some("6.12.107+deb13-cloud-amd64"));
        assert_eq!(newest(&releases, "6"), None);
        assert_eq!(newest(&releases, "5.11"), None);
    }

    #[test]
    fn a_release_is_made_of_the_packages_that_are_there() {
        let names = names(&[
            "linux-image-6.18.15+deb13-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-modules-7.2.12+deb13-cloud-amd64",
        ]);
        assert_eq!(
            packages_of("6.18.15+deb13-cloud-amd64", &names),
            ["linux-image-6.18.15+deb13-cloud-amd64"]
        );
        assert_eq!(packages_of("7.2.12+deb13-cloud-amd64", &names).len(), 3);
    }

    #[test]
    fn a_release_whose_image_is_not_signed_yet_is_left_out() {
        let names = names(&[
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
        ]);
        assert_eq!(newest(&releases(&names), NEWEST), Some("7.2.12+deb13-cloud-amd64"));
    }

    #[test]
    fn an_image_is_found_in_old_packages_and_in_new_ones() {
        for (image, modules) in [
            ("boot/vmlinuz-5.10.0-46", "lib/modules/5.10.0-46"),
            ("usr/lib/modules/7.2.12/vmlinuz", "usr/lib/modules/7.2.12"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            fs::create_dir_all(root.join("boot")).unwrap();
            fs::create_dir_all(root.join(modules)).unwrap();
            assert!(Kernel::unpacked("x", root).is_none());
            fs::write(root.join(image), "").unwrap();
            let kernel = Kernel::unpacked("x", root).unwrap();
            assert_eq!(kernel.image, root.join(image));
            assert_eq!(kernel.release(), modules.rsplit('/').next());
        }
    }

    #[test]
    fn a_file_that_cannot_be_booted_is_refused_before_anything_is_built() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bzImage");
        let given = |content: &[u8]| {
            fs::write(&file, content).unwrap();
            Kernel::given(&file, None)
        };
        let mut image = vec![0; 0x202];
        image.extend(b"HdrS and more");
        assert_eq!(given(&image).unwrap().name, "bzImage");
        for other in [&b""[..], b"\x7fELF", &[0; 0x1000]] {
            let error = given(other).unwrap_err().to_string();
            assert!(error.contains("is no kernel that can be booted on x86-64"), "{error}");
        }
    }

    #[test]
    fn an_image_says_which_release_it_is_and_modules_of_another_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (image, modules) = (folder.path().join("bzImage"), folder.path().join("modules"));
        let mut content = vec![0; 0x202];
        content.extend(b"HdrS");
        content.resize(0x20e, 0);
        content.extend(0x80_u16.to_le_bytes());
        content.resize(0x280, 0);
        content.extend(b"6.6.1 (somebody@somewhere) #1 SMP\0");
        fs::write(&image, content).unwrap();
        assert_eq!(release_of(&image).unwrap().as_deref(), Some("6.6.1"));

        let given = || Kernel::given(&image, Some(&modules));
        let error = given().unwrap_err().to_string();
        assert!(error.contains("modules is no folder; --modules wants"), "{error}");
        fs::create_dir(&modules).unwrap();
        let error = given().unwrap_err().to_string();
        assert!(error.ends_with("holds no kernel modules"), "{error}");
        let write = |release: &str| {
            let module =
                modules::tests::module(&[("depends", ""), ("vermagic", &format!("{release} SMP mod_unload "))]);
            fs::write(modules.join("veth.ko"), module).unwrap();
        };
        write("6.6.2");
        let error = given().unwrap_err().to_string();
        assert!(error.contains("bzImage is Linux 6.6.1, and the modules in "), "{error}");
        assert!(error.ends_with("are those of 6.6.2"), "{error}");
        write("6.6.1");
        assert_eq!(given().unwrap().modules.as_deref(), Some(modules.as_path()));
    }

    #[test]
    fn a_series_is_no_image_and_an_image_is_no_series() {
        for series in ["5.10", "7.2", "5.11", NEWEST, "all"] {
            assert!(!is_image(series), "{series}");
        }
        for image in [
            "./bzImage",
            "bzImage",
            "/boot/vmlinuz-5.10.0-8",
            "vmlinuz-5.10",
            "5.10.1",
        ] {
            assert!(is_image(image), "{image}");
        }
    }

    #[test]
    fn kernels_are_chosen_by_series_or_by_an_image_that_stands_alone() {
        let series = |text| match Choice::of(text, None).unwrap() {
            Choice::Series(series) => series,
            Choice::Image(..) => panic!("{text} is no image"),
        };
        assert_eq!(series("5.10"), ["5.10"]);
        assert_eq!(series("6.18, 5.10,newest,5.10"), ["6.18", "5.10", NEWEST]);
        assert_eq!(series("all"), ALL);
        let modules = Some(Path::new("/m"));
        let image = Choice::Image(Path::new("./a,b"), modules);
        assert_eq!(Choice::of("./a,b", modules).unwrap(), image);
        for (text, modules, cause) in [
            ("5.10", modules, "--modules goes with a kernel that is a file"),
            ("5.10,all", None, "`all` stands alone"),
            ("5.10,bzImage", None, "an image of a kernel has to stand alone"),
            ("5.10,", None, "\"\" is no series of kernels"),
        ] {
            let error = Choice::of(text, modules).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(cause), "{error}");
        }
    }

    #[test]
    fn the_list_of_series_is_ordered_and_names_each_once() {
        let list = list(names(&["7.2", "6.18", "6.19", "6.19"]));
        assert_eq!(list, "5.10, 6.1, 6.12, 6.18, 6.19, 7.2");
    }
}
