//! Log lines, those of the kernel side included: one short line each, on standard error.

use std::io::{IsTerminal as _, Write as _};

use env_logger::{Builder, Env, Target};
use log::LevelFilter;

use crate::screen::Screen;

/// Starts logging, `info` and above unless `RUST_LOG` says otherwise.
///
/// Where both the live `screen` and standard error are on the terminal, the lines scroll by above the live part.
pub fn init(screen: Option<&Screen>) {
    init_from(LevelFilter::Info, screen);
}

/// As [`init`], but from `level` on unless `RUST_LOG` says otherwise.
pub fn init_from(level: LevelFilter, screen: Option<&Screen>) {
    let mut builder = Builder::from_env(Env::default().default_filter_or(level.as_str()));
    builder.format(|line, record| writeln!(line, "{}: {}", record.level().as_str().to_lowercase(), record.args()));
    if let Some(screen) = screen
        && std::io::stderr().is_terminal()
    {
        builder.target(Target::Pipe(Box::new(screen.log_lines())));
    }
    builder.init();
}
