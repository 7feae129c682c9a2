//! Colours and marks: colours only on a terminal, and never against the user's `NO_COLOR`.

use std::{
    env,
    io::{IsTerminal as _, stderr as standard_error, stdout as standard_output},
    os::fd::AsRawFd as _,
};

/// How to write to one of the two output streams.
#[derive(Clone, Copy)]
pub struct Style {
    coloured: bool,
}

/// How to write to standard output.
pub fn stdout() -> Style {
    Style::of(standard_output().is_terminal())
}

/// How to write to standard error.
pub fn stderr() -> Style {
    Style::of(standard_error().is_terminal())
}

impl Style {
    fn of(terminal: bool) -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            coloured: terminal && !unwanted && !dumb,
        }
    }

    /// Without any colour.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { coloured: false }
    }

    /// For success.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For failure.
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// For what is there but matters less.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// For headings.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// The width of the terminal behind standard error, in columns; `None` where it is no terminal.
pub fn width() -> Option<usize> {
    let descriptor = standard_error().as_raw_fd();
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one `winsize` to the address given, which is a live one.
    let answer = unsafe { libc::ioctl(descriptor, libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}
