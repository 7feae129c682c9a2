//! Files of prefixes: one a line, `#` starts a comment, empty lines are nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use lab02_xdp_firewall_common::list::{List, parse};
use thiserror::Error;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_not_read() {
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the list /dev/zero cannot be read: it is neither a file nor a link to one"
        );
    }
}
