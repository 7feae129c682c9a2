//! How a program ends: quietly, or with one line that says why.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

/// The exit status for `result`: 0, or 1 with the error and its causes in one line on standard error.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if reader_has_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `eprintln!`, which panics when nobody reads standard error any more.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reports went into a pipe that was closed at its other end, as `| head` does: that is no failure.
fn reader_has_gone(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
