//! Errors of the command line that clap cannot see, such as a lab that does not exist.

use std::fmt;

/// What the user asked for does not exist; the exit status is 2, as for any other misuse of the command line.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
