//! The texts that a policy is read from, and places in them.

use std::{fmt, ops::Range, path::Path};

use serde::Serialize;

/// The largest policy and the largest file of a set, in bytes.
pub const MAX_BYTES: usize = 64 << 20;

/// A format of policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// YAML 1.2.
    Yaml,
    /// TOML 1.1.
    Toml,
    /// JSON, RFC 8259.
    Json,
    /// HCL 2, its native syntax.
    Hcl,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Yaml, Self::Toml, Self::Json, Self::Hcl];

    /// By the extension of a file's name; `None` if it is none of theirs.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            "hcl" => Some(Self::Hcl),
            _ => None,
        }
    }

    /// The extension that its files have here.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Yaml => "yaml",
            Self::Toml => "toml",
            Self::Json => "json",
            Self::Hcl => "hcl",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yaml => "YAML",
            Self::Toml => "TOML",
            Self::Json => "JSON",
            Self::Hcl => "HCL",
        })
    }
}

/// A text and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// As it is shown to people: the path of the file.
    pub name: String,
    /// Without a byte order mark.
    pub text: String,
    /// Where its lines start, in bytes.
    line_starts: Vec<usize>,
}

/// A place in a text, as people count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
}

impl Source {
    /// A text by this name.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(newlines.map(|(at, _)| at + 1)).collect();
        Self {
            name: name.into(),
            text,
            line_starts,
        }
    }

    /// The position of a byte.
    pub fn position(&self, byte: usize) -> Position {
        let byte = self.text.floor_char_boundary(byte);
        let line = self.line_starts.partition_point(|start| *start <= byte);
        let before = &self.text[self.line_starts[line - 1]..byte];
        Position {
            line,
            column: before.chars().count() + 1,
        }
    }

    /// The span of a line without its end; lines are counted from 1.
    pub fn line(&self, line: usize) -> Range<usize> {
        let start = self.line_starts[line - 1];
        let end = self.line_starts.get(line).map_or(self.text.len(), |next| next - 1);
        start..end.max(start)
    }

    /// A span that lies in the text and between characters, whatever was asked for.
    pub fn fit(&self, span: Range<usize>) -> Range<usize> {
        let start = self.text.floor_char_boundary(span.start.min(self.text.len()));
        let end = self.text.floor_char_boundary(span.end.min(self.text.len()));
        start..end.max(start)
    }
}

/// Why bytes are no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotText {
    /// What is wrong with them.
    pub message: String,
    /// The line, counted from 1.
    pub line: usize,
}

/// Takes bytes for a text: UTF-8, with or without a byte order mark, without NUL.
pub fn text(bytes: &[u8]) -> Result<&str, NotText> {
    let line_of = |at: usize| bytes[..at].split(|byte| *byte == b'\n').count();
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes {
        return Err(NotText {
            message: "the text is UTF-16; save it as UTF-8".into(),
            line: 1,
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| NotText {
        message: "the text is not UTF-8".into(),
        line: line_of(error.valid_up_to()),
    })?;
    if let Some(at) = text.find('\0') {
        return Err(NotText {
            message: "the text has a NUL character".into(),
            line: line_of(at),
        });
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}
