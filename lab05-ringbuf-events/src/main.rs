//! Tells what happens on a host: what is decided about packets and connections, what processes do, who talks to whom.

mod beside;
mod options;
mod story;

use std::process::ExitCode;

use clap::Parser as _;
use lab01_count_packets::outcome;

use options::{Command, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    outcome::exit_code(match &options.command {
        None => story::tell(&options).await,
        Some(Command::Channels(options)) => beside::compare_channels(options).await,
        Some(Command::Messages(options)) => beside::count_messages(options).await,
        Some(Command::Stacks(options)) => beside::tell_stacks(options).await,
    })
}
