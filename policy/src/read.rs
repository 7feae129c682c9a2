//! Reads a policy and says all that is wrong with it.

mod decode;

use std::{
    fmt::{self, Write as _},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use lab02_xdp_firewall_common::list;

use crate::{
    check,
    diagnostic::{Diagnostic, Severity},
    formats,
    model::Policy,
    source::{self, Format, MAX_BYTES, Source},
    text,
    tree::Node,
};

/// The most diagnostics that are kept of one kind of severity: a wrong file would otherwise say the same for ever.
pub const MAX_DIAGNOSTICS: usize = 100;

/// A policy that was read, and what was found on the way.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The policy; `None` if there is an error.
    pub policy: Option<Policy>,
    /// Errors and warnings, in the order of their places.
    pub diagnostics: Vec<Diagnostic>,
    /// How many diagnostics there were beyond [`MAX_DIAGNOSTICS`].
    pub left_out: usize,
    /// The texts that diagnostics point at; the first is the policy itself.
    pub sources: Vec<Source>,
    /// What the places of later refusals are found by; `None` if the policy could not be read.
    tree: Option<Node>,
}

/// Why a policy that is right cannot be used by a program, which does not know all that a policy can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The index of the rule, in the order of the file; `None` if it is about all of them.
    pub rule: Option<usize>,
    /// The key of the rule; `None` if it is about the rule.
    pub key: Option<&'static str>,
    /// What is refused.
    pub message: String,
    /// How to mend it.
    pub help: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

impl Reading {
    /// How many errors were found.
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// How many warnings were found.
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    fn count(&self, severity: Severity) -> usize {
        let of_severity = |diagnostic: &&Diagnostic| diagnostic.severity == severity;
        self.diagnostics.iter().filter(of_severity).count()
    }

    /// Adds errors that point at the rules and keys which a program refuses; there is no policy any more then.
    pub fn refuse(&mut self, refusals: &[Refusal]) {
        if refusals.is_empty() {
            return;
        }
        let tree = self.tree.as_ref();
        let errors = refusals.iter().map(|refusal| {
            let span = match (tree, refusal.rule, refusal.key) {
                (None, ..) => 0..0,
                (Some(tree), None, _) => tree.get("rules").map_or(0..0, |entry| entry.key_span.clone()),
                (Some(tree), Some(rule), None) => tree.name_of_rule(rule),
                (Some(tree), Some(rule), Some(key)) => tree.key_of_rule(rule, key),
            };
            Diagnostic::error("not-enforced", span, refusal.message.clone()).help(refusal.help.clone())
        });
        self.diagnostics.extend(errors);
        self.policy = None;
        self.left_out += settle(&mut self.diagnostics);
    }

    /// All diagnostics as rustc would show them, a blank line behind each.
    pub fn render(&self, colour: bool) -> String {
        let mut text = String::new();
        for diagnostic in &self.diagnostics {
            text.push_str(&diagnostic.render(&self.sources, colour));
            text.push('\n');
        }
        if self.left_out > 0 {
            let _ = write!(text, "… and {} more\n\n", self.left_out);
        }
        text
    }
}

/// Where the files of sets come from.
pub trait Files {
    /// The content of the file that a policy names, and the name by which people know it.
    fn read(&self, file: &str) -> (String, io::Result<Vec<u8>>);
}

/// Files relative to a folder.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Files for Folder {
    fn read(&self, file: &str) -> (String, io::Result<Vec<u8>>) {
        let path = self.0.join(file);
        (path.display().to_string(), read_file(&path))
    }
}

/// No files: for a policy that came without a folder, by a socket or in a browser.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

impl Files for NoFiles {
    fn read(&self, file: &str) -> (String, io::Result<Vec<u8>>) {
        let error = io::Error::other("a policy that is no file itself cannot name files; write the prefixes into it");
        (file.to_owned(), Err(error))
    }
}

/// Reads the policy at `path`; its extension says its format, and the files of its sets lie relative to its folder.
pub fn read_path(path: &Path) -> Reading {
    let name = path.display().to_string();
    if path.is_dir() {
        let help = "name a file in it".to_owned();
        return refused(&name, "unreadable", format!("{name} is a folder, and no policy"), help);
    }
    let Some(format) = Format::of(path) else {
        let help = "name it with one of .yaml, .yml, .toml, .json and .hcl".to_owned();
        return refused(
            &name,
            "unknown-format",
            format!("{name}: the extension says no format"),
            help,
        );
    };
    match read_file(path) {
        Ok(bytes) => {
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            read(&name, &bytes, format, &Folder(folder))
        }
        Err(error) => {
            let help = match error.kind() {
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::PermissionDenied => "check who may read it",
                _ => "give a file that can be read",
            };
            refused(
                &name,
                "unreadable",
                format!("{name} cannot be read: {error}"),
                help.to_owned(),
            )
        }
    }
}

/// Reads a policy from `bytes`; `name` is how people know it.
pub fn read(name: &str, bytes: &[u8], format: Format, files: &dyn Files) -> Reading {
    if bytes.len() > MAX_BYTES {
        let message = format!("{name} has {} bytes; a policy has {MAX_BYTES} at most", bytes.len());
        let help = "put long lists of prefixes into files of sets".to_owned();
        return refused(name, "too-large", message, help);
    }
    let text = match source::text(bytes) {
        Ok(text) => text,
        Err(refusal) => {
            let message = format!("{name}:{}: {}", refusal.line, refusal.message);
            return refused(name, "no-text", message, format!("a policy in {format} is UTF-8 text"));
        }
    };
    let source = Source::new(name, text);
    let tree = match formats::parse(format, text) {
        Ok(tree) => tree,
        Err(fault) => {
            let diagnostic =
                Diagnostic::error("syntax", fault.span, format!("no {format}: {}", fault.message)).help(fault.help);
            return Reading {
                policy: None,
                diagnostics: vec![diagnostic],
                left_out: 0,
                sources: vec![source],
                tree: None,
            };
        }
    };
    let mut diagnostics = Vec::new();
    let mut sources = vec![source];
    let mut policy = decode::policy(&tree, &mut diagnostics);
    if let Some(policy) = &mut policy {
        read_sets(policy, &tree, files, &mut sources, &mut diagnostics);
        check::check(policy, &tree, &mut diagnostics);
    }
    finish(policy, diagnostics, sources, tree)
}

fn finish(policy: Option<Policy>, mut diagnostics: Vec<Diagnostic>, sources: Vec<Source>, tree: Node) -> Reading {
    let has_error = diagnostics
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error);
    Reading {
        policy: policy.filter(|_| !has_error),
        left_out: settle(&mut diagnostics),
        diagnostics,
        sources,
        tree: Some(tree),
    }
}

/// Brings diagnostics into the order of their places, and leaves out what is too many; how many these are.
fn settle(diagnostics: &mut Vec<Diagnostic>) -> usize {
    let place = |diagnostic: &Diagnostic| {
        let label = diagnostic.label.as_ref();
        label.map_or((0, 0), |label| (label.source, label.span.start))
    };
    diagnostics.sort_by_key(place);
    let left_out = diagnostics.len().saturating_sub(MAX_DIAGNOSTICS);
    if left_out > 0 {
        // Errors before warnings, where there are too many to keep all.
        diagnostics.sort_by_key(|diagnostic| diagnostic.severity);
        diagnostics.truncate(MAX_DIAGNOSTICS);
    }
    left_out
}

fn refused(name: &str, code: &'static str, message: String, help: String) -> Reading {
    Reading {
        policy: None,
        diagnostics: vec![Diagnostic {
            severity: Severity::Error,
            code,
            message,
            label: None,
            related: Vec::new(),
            help: Some(help),
        }],
        left_out: 0,
        sources: vec![Source::new(name, "")],
        tree: None,
    }
}

/// Reads a file whole, if it is one and not too large. A pipe or a device would be waited for, or read, for ever.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::other("it is a folder"));
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is neither a file nor a link to one"));
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    fs::File::open(path)?
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Reads the files of the sets.
fn read_sets(
    policy: &mut Policy,
    tree: &Node,
    files: &dyn Files,
    sources: &mut Vec<Source>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    for (name, set) in &mut policy.sets {
        let Some(file) = &set.file else { continue };
        let span = tree
            .get("sets")
            .and_then(|sets| sets.node.get(name)?.node.get("file"))
            .map_or(0..0, |entry| entry.node.span.clone());
        let (path, content) = files.read(file);
        let bytes = match content {
            Ok(bytes) => bytes,
            Err(error) => {
                diagnostics.push(
                    Diagnostic::error("set-file", span, format!("the file of the set {name} cannot be read"))
                        .label(format!("{path}: {error}"))
                        .help(Some(
                            "its path is relative to the policy's folder; one prefix a line".to_owned(),
                        )),
                );
                continue;
            }
        };
        let mut found = Vec::new();
        let mut with_host_bits = 0;
        for line in list::lines(&bytes) {
            let span = line.offset..line.offset + line.text.len();
            match line.prefix {
                Err(reason) => {
                    let (message, help) = text::split(reason);
                    found.push(Diagnostic::error("prefix", span, message).help(help));
                }
                Ok(written) => {
                    if written.host_bits_of.is_some() {
                        with_host_bits += 1;
                        if with_host_bits == 1 {
                            let message = format!("the prefix {} has host bits, which are cleared", line.text);
                            let help = format!("write {}", written.prefix);
                            found.push(Diagnostic::warning("host-bits", span, message).help(help));
                        }
                    }
                    set.from_file.push(written.prefix);
                }
            }
            if found.len() > MAX_DIAGNOSTICS {
                break;
            }
        }
        // A file without faults is not kept: it may be large.
        if found.is_empty() {
            continue;
        }
        for mut diagnostic in found {
            if diagnostic.code == "host-bits" && with_host_bits > 1 {
                diagnostic = diagnostic.label(format!("and {} more lines of this file", with_host_bits - 1));
            }
            if let Some(label) = &mut diagnostic.label {
                label.source = sources.len();
            }
            diagnostics.push(diagnostic);
        }
        // Bytes that are no text become one character each, so that all places stay where they are.
        let shown = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => error
                .into_bytes()
                .into_iter()
                .map(|byte| if byte.is_ascii() { char::from(byte) } else { '?' })
                .collect(),
        };
        sources.push(Source::new(path, shown));
    }
}
