//! Where reports go: drawn in place on a terminal, as plain lines into a pipe, or as lines of JSON.

use std::io::{self, Write as _};

use crate::screen::Screen;

/// What can be told in all three ways.
pub trait Tell {
    /// As a table for a terminal, line by line.
    fn table(&self) -> Vec<String>;

    /// As plain lines, each complete in itself.
    fn plain(&self) -> Vec<String>;

    /// As one line of JSON.
    fn json(&self) -> String;
}

/// One of the three ways.
pub enum Output {
    /// Drawn in place.
    Terminal(Screen),
    /// Plain lines.
    Plain,
    /// Lines of JSON.
    Json,
}

impl Output {
    /// JSON if that was asked for, else what standard output is good for.
    pub fn new(json: bool) -> Self {
        match Screen::on_terminal() {
            _ if json => Self::Json,
            Some(screen) => Self::Terminal(screen),
            None => Self::Plain,
        }
    }

    /// The live part of the terminal, if there is one.
    pub fn screen(&self) -> Option<&Screen> {
        match self {
            Self::Terminal(screen) => Some(screen),
            Self::Plain | Self::Json => None,
        }
    }

    /// Shows a report.
    pub fn show(&mut self, report: &impl Tell) -> io::Result<()> {
        match self {
            Self::Terminal(screen) => screen.draw(&report.table()),
            Self::Plain => print_lines(&report.plain()),
            Self::Json => print_lines(&[report.json()]),
        }
    }
}

fn print_lines(lines: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()
}
