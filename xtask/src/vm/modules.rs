//! The kernel modules that tests need, and what those need in turn.
//!
//! Read from the modules themselves, so that neither `depmod` nor its lists are needed: each says in its section
//! `.modinfo` what it depends on.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

/// What the labs' tests use, with parameters that keep a module from adding interfaces of its own.
///
/// All of it is loaded at the start: in the guest there is nothing that would load a module when it is asked for.
const WANTED: [(&str, &str); 16] = [
    ("veth", ""),
    ("dummy", "numdummies=0"),
    ("ifb", "numifbs=0"),
    ("bridge", ""),
    ("8021q", ""),
    ("macvlan", ""),
    ("vxlan", ""),
    ("tun", ""),
    ("sch_ingress", ""),
    ("cls_bpf", ""),
    ("sch_fq", ""),
    ("sch_htb", ""),
    ("sch_tbf", ""),
    ("sch_netem", ""),
    ("inet_diag", ""),
    ("tcp_diag", ""),
];

/// A module, ready to be loaded.
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its parameters.
    pub parameters: &'static str,
    /// The module, not compressed.
    pub content: Vec<u8>,
}

/// The modules of one kernel.
pub struct Modules {
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
}

/// What of the modules is there.
pub struct Loadable {
    /// Modules, each after those that it needs.
    pub modules: Vec<Module>,
    /// What is wanted and neither a module nor, as far as the folder says, built in.
    pub absent: Vec<String>,
}

impl Modules {
    /// Those in `folder`, `/lib/modules/RELEASE` or one that holds it.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let mut modules = Self {
            files: HashMap::new(),
            builtin: HashSet::new(),
        };
        modules.walk(folder)?;
        if modules.files.is_empty() {
            bail!("{} holds no kernel modules", folder.display());
        }
        Ok(modules)
    }

    /// For a kernel whose modules are not given: everything may be built in.
    pub fn none() -> Self {
        Self {
            files: HashMap::new(),
            builtin: WANTED.iter().map(|(name, _)| (*name).to_owned()).collect(),
        }
    }

    /// The release that they are for, if one of those that tests need says it.
    pub fn release(&self) -> Result<Option<String>> {
        let Some(path) = WANTED.iter().find_map(|(name, _)| self.files.get(*name)) else {
            return Ok(None);
        };
        let magic = information(path, &content_of(path)?, "vermagic")?;
        Ok(magic.and_then(|magic| magic.split_whitespace().next().map(str::to_owned)))
    }

    fn walk(&mut self, folder: &Path) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("{} cannot be read", folder.display()))?;
            let path = entry.path();
            // Links to the kernel's build folder stand there too; they are not followed.
            if entry.file_type()?.is_dir() {
                self.walk(&path)?;
            } else if entry.file_name() == "modules.builtin" {
                let list = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
                self.builtin
                    .extend(list.lines().filter_map(|line| name_of(Path::new(line))));
            } else if let Some(name) = name_of(&path)
                && let Some(other) = self.files.insert(name, path.clone())
            {
                bail!(
                    "{} and {} are the same module: name the folder of one kernel",
                    other.display(),
                    path.display()
                );
            }
        }
        Ok(())
    }

    /// What tests need.
    pub fn loadable(&self) -> Result<Loadable> {
        let mut loadable = Loadable {
            modules: Vec::new(),
            absent: Vec::new(),
        };
        let mut seen = HashSet::new();
        for (name, parameters) in WANTED {
            if self.files.contains_key(name) {
                self.add(name, parameters, &mut seen, &mut loadable.modules)?;
            } else if !self.builtin.contains(name) {
                loadable.absent.push(name.to_owned());
            }
        }
        Ok(loadable)
    }

    /// Adds a module after what it needs. A need that is no file is built in, or the kernel will refuse the module.
    fn add(
        &self,
        name: &str,
        parameters: &'static str,
        seen: &mut HashSet<String>,
        into: &mut Vec<Module>,
    ) -> Result<()> {
        let Some(path) = self.files.get(name) else {
            return Ok(());
        };
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let content = content_of(path)?;
        for need in needs_of(&information(path, &content, "depends")?.unwrap_or_default()) {
            let parameters = WANTED.iter().find(|(name, _)| *name == need);
            self.add(&need, parameters.map_or("", |(_, parameters)| parameters), seen, into)?;
        }
        into.push(Module {
            name: name.to_owned(),
            parameters,
            content,
        });
        Ok(())
    }
}

/// `…/sch-ingress.ko.xz` → `sch_ingress`; `None` for what is no module.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (name, rest) = name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

/// A module's bytes; the programs that decompress it are those that dpkg and the compiler's packages come with.
fn content_of(path: &Path) -> Result<Vec<u8>> {
    let unpacked_by = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("{} cannot be read", path.display())),
    };
    let output = Command::new(unpacked_by)
        .arg("-dc")
        .arg(path)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{unpacked_by} cannot be run, by which {} is compressed", path.display()))?;
    if !output.status.success() {
        bail!("{} cannot be decompressed", path.display());
    }
    Ok(output.stdout)
}

/// What the module in this file, whose bytes are given, says of itself under `name`.
fn information(path: &Path, module: &[u8], name: &str) -> Result<Option<String>> {
    let read = || {
        let file = object::File::parse(module)?;
        let section = file.section_by_name(".modinfo").context("it has no section .modinfo")?;
        let mut entries = section.data()?.split(|byte| *byte == 0);
        let text = entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        anyhow::Ok(text.map(|text| String::from_utf8_lossy(text).into_owned()))
    };
    read().with_context(|| format!("{} is no kernel module", path.display()))
}

/// The names of the modules that are needed, out of a list with commas between them.
fn needs_of(list: &str) -> Vec<String> {
    let names = list.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An object file whose only section is `.modinfo`, for this machine.
    pub fn module(says: &[(&str, &str)]) -> Vec<u8> {
        let says: Vec<_> = says.iter().map(|(name, text)| format!("{name}={text}\0")).collect();
        let info = says.concat();
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64, 64 + info.len() as u64);
        let sections_at = (names_at + names.len() as u64).next_multiple_of(8);
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [1u16, 62] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1u32.to_le_bytes());
        for word in [0, 0, sections_at] {
            file.extend(u64::to_le_bytes(word));
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 0, 0, 64, 3, 2] {
            file.extend(half.to_le_bytes());
        }
        file.extend(info.as_bytes());
        file.extend(names);
        file.resize(usize::try_from(sections_at).unwrap(), 0);
        let sections = [
            (0u32, 0u32, 0, 0),
            (1, 1, info_at, info.len() as u64),
            (10, 3, names_at, names.len() as u64),
        ];
        for (name, kind, offset, size) in sections {
            file.extend(name.to_le_bytes());
            file.extend(kind.to_le_bytes());
            for word in [0, 0, offset, size, 0, 0, 0] {
                file.extend(u64::to_le_bytes(word));
            }
        }
        file
    }

    fn kernel(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("kernel")).unwrap();
        for (name, depends) in modules {
            let path = folder.path().join("kernel").join(format!("{name}.ko"));
            fs::write(
                path,
                module(&[("license", "GPL"), ("depends", depends), ("name", name)]),
            )
            .unwrap();
        }
        fs::write(folder.path().join("modules.builtin"), builtin).unwrap();
        folder
    }

    fn names(loadable: &Loadable) -> Vec<&str> {
        loadable.modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn a_module_comes_once_and_after_what_it_needs() {
        let modules = [
            ("bridge", "stp,llc"),
            ("stp", "llc"),
            ("llc", ""),
            ("8021q", "stp"),
            ("unwanted", ""),
        ];
        let folder = kernel(&modules, "");
        let loadable = Modules::in_folder(folder.path()).unwrap().loadable().unwrap();
        assert_eq!(names(&loadable), ["llc", "stp", "bridge", "8021q"]);
    }

    #[test]
    fn what_is_neither_module_nor_built_in_is_named() {
        let folder = kernel(
            &[("veth", "")],
            "kernel/net/sched/cls_bpf.ko\nkernel/net/sched/sch-fq.ko\n",
        );
        let loadable = Modules::in_folder(folder.path()).unwrap().loadable().unwrap();
        assert_eq!(names(&loadable), ["veth"]);
        assert!(loadable.absent.contains(&"bridge".to_owned()));
        for there in ["veth", "cls_bpf", "sch_fq"] {
            assert!(!loadable.absent.contains(&there.to_owned()), "{there}");
        }
    }

    #[test]
    fn a_dash_in_a_name_is_an_underscore() {
        let folder = kernel(&[("sch-ingress", "x-y"), ("x-y", "")], "");
        let loadable = Modules::in_folder(folder.path()).unwrap().loadable().unwrap();
        assert_eq!(names(&loadable), ["x_y", "sch_ingress"]);
    }

    #[test]
    fn a_folder_without_modules_or_with_those_of_two_kernels_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = Modules::in_folder(folder.path()).err().unwrap().to_string();
        assert!(error.ends_with("holds no kernel modules"), "{error}");
        for release in ["5.10", "6.1"] {
            fs::create_dir(folder.path().join(release)).unwrap();
            fs::write(folder.path().join(release).join("veth.ko"), module(&[])).unwrap();
        }
        let error = Modules::in_folder(folder.path()).err().unwrap().to_string();
        assert!(error.ends_with("name the folder of one kernel"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_module_is_named() {
        let folder = kernel(&[], "");
        fs::write(folder.path().join("veth.ko"), "text").unwrap();
        let error = Modules::in_folder(folder.path())
            .unwrap()
            .loadable()
            .err()
            .unwrap()
            .to_string();
        assert!(error.ends_with("veth.ko is no kernel module"), "{error}");
    }
}
