//! Figures of benchmarks: what a program costs a packet above an empty one, measured by turns in the same run.
//!
//! A benchmark makes [`Row`]s of closures that measure once, [`measure`]s them, and shows the [`Figures`].

use std::{fmt::Write as _, fs, path::PathBuf};

use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use serde::Serialize;

use crate::{Error, Result};

/// The command line of a benchmark.
#[derive(Parser)]
#[command(max_term_width = 100)]
pub struct Options {
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,

    /// Write the figures as Markdown tables into this file, too.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// How many rounds to take the median of.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u8).range(1..), value_name = "N")]
    pub rounds: u8,

    /// Given by cargo; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// What this process was started with; ends it after `--help`, which says `about`, and after a mistake.
    pub fn from_command_line(about: &'static str) -> Self {
        let matches = Self::command().about(about).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Prints tables, each behind its title, if it has one, and writes them where else they are wanted.
    pub fn show(&self, tables: &[(&str, &dyn Shown)]) -> Result {
        if let Some(path) = &self.markdown {
            let text = tables
                .iter()
                .map(|(title, figures)| anchored(title, &figures.markdown()));
            let failed = |error| Error::system(format!("writing {}", path.display()), error);
            fs::write(path, text.collect::<Vec<_>>().join("\n")).map_err(failed)?;
        }
        if self.json {
            let all: Vec<String> = tables.iter().map(|(_, figures)| figures.json()).collect();
            println!("[{}]", all.join(",\n"));
        } else {
            let all: Vec<String> = tables
                .iter()
                .map(|(title, figures)| titled(title, &figures.table()))
                .collect();
            print!("{}", all.join("\n"));
        }
        Ok(())
    }
}

/// A table of what was measured, in the forms in which it is shown.
pub trait Shown {
    /// For a terminal.
    fn table(&self) -> String;
    /// For the book.
    fn markdown(&self) -> String;
    /// As JSON.
    fn json(&self) -> String;
}

fn titled(title: &str, text: &str) -> String {
    if title.is_empty() {
        text.to_owned()
    } else {
        format!("{title}\n\n{text}")
    }
}

/// As [`titled`], as a part that a page can include alone, by the title's first words: `one-thing-at-a-time`.
fn anchored(title: &str, text: &str) -> String {
    if title.is_empty() {
        return text.to_owned();
    }
    let words = title.split([',', ':', '.']).next().unwrap_or_default();
    let anchor = words.to_lowercase().replace(' ', "-");
    format!(
        "<!-- ANCHOR: {anchor} -->\n{}\n<!-- ANCHOR_END: {anchor} -->\n",
        titled(title, text)
    )
}

/// One thing to measure beside its floor: each closure returns nanoseconds a packet.
pub struct Row<'a> {
    name: String,
    floor: Box<dyn FnMut() -> Result<u32> + 'a>,
    program: Box<dyn FnMut() -> Result<u32> + 'a>,
    floor_ns: Vec<u32>,
    program_ns: Vec<u32>,
}

impl<'a> Row<'a> {
    /// A row called `name`.
    pub fn new(
        name: impl Into<String>,
        floor: impl FnMut() -> Result<u32> + 'a,
        program: impl FnMut() -> Result<u32> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            floor: Box::new(floor),
            program: Box::new(program),
            floor_ns: Vec::new(),
            program_ns: Vec::new(),
        }
    }

    fn measure(&mut self) -> Result<()> {
        self.floor_ns.push((self.floor)()?);
        self.program_ns.push((self.program)()?);
        Ok(())
    }

    fn figure(&self) -> Figure {
        let differences: Vec<i64> = std::iter::zip(&self.program_ns, &self.floor_ns)
            .map(|(program, floor)| i64::from(*program) - i64::from(*floor))
            .collect();
        Figure {
            name: self.name.clone(),
            floor_ns: median(&self.floor_ns),
            program_ns: median(&self.program_ns),
            above_floor_ns: median(&differences),
            least_ns: differences.iter().copied().min().unwrap_or_default(),
            most_ns: differences.iter().copied().max().unwrap_or_default(),
        }
    }
}

/// Measures all rows `rounds` times by turns, after a round that does not count.
pub fn measure(rows: &mut [Row<'_>], rounds: u8) -> Result<Figures> {
    for row in rows.iter_mut() {
        (row.floor)()?;
        (row.program)()?;
    }
    for _ in 0..rounds {
        for row in rows.iter_mut() {
            row.measure()?;
        }
    }
    Ok(Figures {
        machine: machine(),
        rounds,
        each: "packet",
        floor: "empty program",
        rows: rows.iter().map(Row::figure).collect(),
    })
}

fn median<T: Copy + Ord + Default>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// What it was measured on.
    pub machine: String,
    /// How many rounds the medians are of.
    pub rounds: u8,
    /// What takes the nanoseconds.
    pub each: &'static str,
    /// What the rows are compared with.
    pub floor: &'static str,
    /// In the order in which they were given.
    pub rows: Vec<Figure>,
}

/// One row: medians over the rounds, in nanoseconds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Its floor: an empty program.
    pub floor_ns: u32,
    /// The program.
    pub program_ns: u32,
    /// The median of the rounds' differences, which is not quite the difference of the medians.
    pub above_floor_ns: i64,
    /// The least of the differences.
    pub least_ns: i64,
    /// The greatest of the differences.
    pub most_ns: i64,
}

impl Figures {
    /// Calls the floor so, which is an empty program otherwise.
    #[must_use]
    pub fn above(mut self, floor: &'static str) -> Self {
        self.floor = floor;
        self
    }

    /// Says what has been measured, which is a packet otherwise.
    #[must_use]
    pub fn a(mut self, each: &'static str) -> Self {
        self.each = each;
        self
    }

    fn heads(&self) -> [String; 5] {
        [
            format!("nanoseconds a {}", self.each),
            self.floor.to_owned(),
            "program".to_owned(),
            "above it".to_owned(),
            "least to most".to_owned(),
        ]
    }

    fn cells(&self) -> Vec<[String; 5]> {
        let rows = self.rows.iter();
        rows.map(|row| {
            [
                row.name.clone(),
                row.floor_ns.to_string(),
                row.program_ns.to_string(),
                row.above_floor_ns.to_string(),
                format!("{} to {}", row.least_ns, row.most_ns),
            ]
        })
        .collect()
    }
}

impl Shown for Figures {
    fn table(&self) -> String {
        let mut text = format!("Medians of {} rounds on {}.\n\n", self.rounds, self.machine);
        let heads = self.heads();
        let cells = self.cells();
        let first = cells
            .iter()
            .map(|[name, ..]| name.chars().count())
            .max()
            .unwrap_or(0)
            .max(heads[0].len());
        for [name, numbers @ ..] in std::iter::once(&heads).chain(&cells) {
            let _ = write!(text, "{name:<first$}");
            for number in numbers {
                let _ = write!(text, "  {number:>13}");
            }
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        let table = markdown_table(&self.heads(), self.cells());
        format!("Medians of {} rounds on {}.\n\n{table}", self.rounds, self.machine)
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("figures have no map with keys that JSON lacks")
    }
}

/// How long things took that happen once, in milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Durations {
    /// A name and a duration each.
    pub rows: Vec<(String, f64)>,
}

impl Shown for Durations {
    fn table(&self) -> String {
        let lines = self.rows.iter().map(|(name, ms)| format!("{name}: {ms:.1} ms\n"));
        lines.collect()
    }

    fn markdown(&self) -> String {
        let rows = self.rows.iter().map(|(name, ms)| [name.clone(), format!("{ms:.1}")]);
        markdown_table(&["", "milliseconds"], rows)
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("durations have no map with keys that JSON lacks")
    }
}

/// A table for the book: names on the left, numbers on the right.
pub fn markdown_table<const N: usize>(
    heads: &[impl AsRef<str>; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let heads = heads.each_ref().map(|head| head.as_ref().to_owned());
    let line = |cells: [String; N]| format!("| {} |\n", cells.join(" | "));
    let ruler = format!("|---{}|\n", "|---:".repeat(N.saturating_sub(1)));
    let rows: String = rows.into_iter().map(line).collect();
    line(heads) + &ruler + &rows
}

/// What is measured on, without a date and without a name.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("an unknown processor", |model| model.trim_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let release = read("/proc/sys/kernel/osrelease");
    // 5.10.0-39-cloud-amd64: what comes behind the numbers names a build, not a kernel.
    let release = release.trim().split(['-', '+']).next().unwrap_or_default();
    format!("{cores} cores of {model}, Linux {release}")
}
