//! What else the lab shows: channels, messages, stacks.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result, bail};
use lab01_count_packets::{
    interface::Interface,
    logging,
    output::{Output, Tell},
    schedule::{Due, Schedule},
};
use lab05_ringbuf_events::{channels::Channels, messages::MessageWatch, stacks::Stacks};

use crate::options::{ChannelOptions, MessageOptions, Reports, StackOptions};

/// The size of a page, on every machine that this runs on.
const PAGE: usize = 4096;

/// Compares the two channels.
pub async fn compare_channels(options: &ChannelOptions) -> Result<()> {
    let mut output = Output::new(options.reports.json);
    logging::init(output.screen());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let pages = (options.ring_size as usize / PAGE / cpus).next_power_of_two();
    let channels = Channels::start(options.ring_size, pages)?;
    report(&options.reports, &mut output, |elapsed| Ok(channels.report(elapsed)?)).await
}

/// Counts messages of DNS and DHCP.
pub async fn count_messages(options: &MessageOptions) -> Result<()> {
    let mut output = Output::new(options.reports.json);
    logging::init(output.screen());
    let interface = Interface::find(&options.iface)?;
    let watch = MessageWatch::start(&interface)?;
    interface.warn_if_down();
    report(&options.reports, &mut output, |elapsed| {
        if !interface.is_present() {
            let name = &interface.name;
            bail!("{name} has gone: it was removed, renamed or moved; start again with an interface that is there");
        }
        Ok(watch.report(elapsed)?)
    })
    .await
}

async fn report<T: Tell>(
    options: &Reports,
    output: &mut Output,
    mut make: impl FnMut(std::time::Duration) -> Result<T>,
) -> Result<()> {
    let mut schedule = Schedule::start(options.interval, options.duration);
    loop {
        let due = schedule.next().await.context("signals cannot be caught")?;
        output
            .show(&make(schedule.elapsed())?)
            .context("the report cannot be written to standard output")?;
        if due == Due::LastReport {
            return Ok(());
        }
    }
}

/// Tells stacks.
pub async fn tell_stacks(options: &StackOptions) -> Result<()> {
    logging::init(None);
    let mut stacks = Stacks::start()?;
    log::info!("watching tcp_v4_connect");
    let mut schedule = Schedule::start(std::time::Duration::from_hours(24), options.duration);
    loop {
        let told = tokio::select! {
            due = schedule.next() => match due.context("signals cannot be caught")? {
                Due::LastReport => return Ok(()),
                Due::Report => continue,
            },
            told = stacks.next() => told.context("the ring buffer cannot be waited for")?,
        };
        let mut out = io::stdout().lock();
        for stack in told {
            if options.json {
                writeln!(out, "{}", serde_json::to_string(&stack)?)?;
            } else {
                writeln!(out, "{}", stack.lines().join("\n"))?;
            }
        }
        out.flush()?;
    }
}
