//! Files of prefixes: one a line, `#` starts a comment, empty lines are nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lab02_xdp_firewall_common::prefix_set::build::Prefix;
use thiserror::Error;

use crate::value::WrittenPrefix;

/// Why a list cannot be used.
#[derive(Debug, Error)]
pub enum ListError {
    /// It cannot be read.
    #[error("the list {path} cannot be read: {cause}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// A line is no prefix.
    #[error("{path}:{line}: {reason}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// The prefixes of a list, and how many of its lines had host bits, which are cleared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// In the order of the lines.
    pub prefixes: Vec<Prefix>,
    /// The number and the text of the first line that had host bits, if one had.
    pub first_with_host_bits: Option<(usize, String)>,
}

/// Reads the list at `path`.
pub fn read(path: &Path) -> Result<List, ListError> {
    let unreadable = |cause| ListError::Unreadable {
        path: path.to_owned(),
        cause,
    };
    // A pipe or a device would be waited for, or read, for ever.
    let kind = fs::metadata(path).map_err(unreadable)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(unreadable(io::Error::other("it is neither a file nor a link to one")));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    parse(&bytes).map_err(|(line, reason)| ListError::Line {
        path: path.to_owned(),
        line,
        reason,
    })
}

/// Reads a list; an error is the number of a line, from 1, and what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<List, (usize, String)> {
    let mut list = List::default();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line_number = index + 1;
        let line = std::str::from_utf8(line).map_err(|_| (line_number, "this line is not text (UTF-8)".to_owned()))?;
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let written: WrittenPrefix = text.parse().map_err(|reason| (line_number, reason))?;
        if written.host_bits_of.is_some() && list.first_with_host_bits.is_none() {
            list.first_with_host_bits = Some((line_number, text.to_owned()));
        }
        list.prefixes.push(written.prefix);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_empty_lines_and_carriage_returns_are_nothing() {
        let list = parse(b"# abuse\r\n\r\n192.0.2.1 # one\r\n  2001:db8::/32\n\n203.0.113.0/24").unwrap();
        let prefixes: Vec<String> = list.prefixes.iter().map(ToString::to_string).collect();
        assert_eq!(prefixes, ["192.0.2.1/32", "2001:db8::/32", "203.0.113.0/24"]);
    }

    #[test]
    fn an_empty_file_is_an_empty_list() {
        assert_eq!(parse(b"").unwrap(), List::default());
    }

    #[test]
    fn a_bad_line_is_named() {
        assert_eq!(parse(b"192.0.2.1\nbanana\n").unwrap_err().0, 2);
        assert_eq!(
            parse(b"192.0.2.1\n\n\n\xff\xfe\n").unwrap_err(),
            (4, "this line is not text (UTF-8)".into())
        );
        assert_eq!(parse(b"192.0.2.0/24 192.0.2.1").unwrap_err().0, 1);
    }

    #[test]
    fn what_never_ends_is_not_read() {
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the list /dev/zero cannot be read: it is neither a file nor a link to one"
        );
    }

    #[test]
    fn host_bits_are_remembered_once() {
        let list = parse(b"192.0.2.1\n192.0.2.7/24\n192.0.2.9/24").unwrap();
        assert_eq!(list.first_with_host_bits, Some((2, "192.0.2.7/24".into())));
    }
}
