//! How long it takes from a file to a policy in force, and what memory its tables are.

use std::{fmt::Write as _, time::Instant};

use anyhow::{Context as _, Result};
use enforcer_policy::{Format, NoFiles, Policy, formats, read};
use lab01_count_packets::text::grouped;
use lab06_full_enforcer::{
    compile::{Capacities, compile},
    object,
    tables::KernelTables,
};
use serde::Serialize;
use testbed::figures::{Shown, markdown_table};

use crate::{
    aims::Aims,
    loaded::Programs,
    packet,
    random::Dice,
    road::{blocking, prefixes},
    shapes::{self, Shape},
};

/// What it takes, by the number of rules, or of prefixes in a set.
#[derive(Serialize)]
pub struct Applying {
    rows: Vec<Stages>,
}

/// Medians, in milliseconds.
#[derive(Serialize)]
struct Stages {
    name: String,
    /// Rules, or prefixes of its set.
    entries: usize,
    read_yaml_ms: f64,
    read_json_ms: f64,
    compile_ms: f64,
    fill_and_swap_ms: f64,
    swap_ms: f64,
    memory_bytes: u64,
}

/// Each is done so often.
const TIMES: usize = 3;

/// Measures policies of so many rules, and of one rule with so many prefixes.
pub fn measure(entries: &[usize]) -> Result<Applying> {
    let mut rows = Vec::new();
    for shape in Shape::ALL {
        for count in entries {
            let count = packet::at_most(shape, *count);
            let policy = shapes::policy(shape, count, &mut Dice::new(6));
            rows.push(stages(
                format!("{}, {} rules", packet::name(shape), grouped(count as u64)),
                count,
                &policy,
            )?);
        }
    }
    for count in entries {
        let name = format!("a set of {} prefixes", grouped(*count as u64));
        rows.push(stages(name, *count, &blocking(prefixes(*count)))?);
    }
    Ok(Applying { rows })
}

fn stages(name: String, entries: usize, policy: &Policy) -> Result<Stages> {
    let yaml = formats::write(policy, Format::Yaml);
    let json = formats::write(policy, Format::Json);
    let read_as = |text: &str, format| {
        median(|| {
            let reading = read("bench", text.as_bytes(), format, &NoFiles);
            reading.policy.context("the policy cannot be read")
        })
    };
    let compiled = compile(policy)?;
    let empty = compile(&Policy::allow_all("empty"))?;
    let capacities = Capacities::around(&compiled);
    let mut ebpf = object::load(&capacities, true)?;
    Programs::load(&mut ebpf)?;
    let mut tables = KernelTables::take(&mut ebpf, capacities)?;
    Ok(Stages {
        name,
        entries,
        read_yaml_ms: read_as(&yaml, Format::Yaml)?,
        read_json_ms: read_as(&json, Format::Json)?,
        compile_ms: median(|| Ok(compile(policy)?))?,
        fill_and_swap_ms: median(|| Ok(tables.apply(&compiled, compiled.mode)?))?,
        swap_ms: median(|| Ok(tables.apply(&empty, empty.mode)?))?,
        memory_bytes: compiled.needs().bytes(),
    })
}

fn median<T>(mut action: impl FnMut() -> Result<T>) -> Result<f64> {
    let mut times_ms = Vec::new();
    for _ in 0..TIMES {
        let start = Instant::now();
        let result = action()?;
        times_ms.push(start.elapsed().as_secs_f64() * 1000.0);
        drop(result);
    }
    times_ms.sort_by(f64::total_cmp);
    Ok(times_ms[TIMES / 2])
}

const HEADS: [&str; 7] = [
    "",
    "read YAML, ms",
    "read JSON, ms",
    "compile, ms",
    "fill and swap, ms",
    "swap to an empty one, ms",
    "tables, MB",
];

impl Applying {
    /// Compiling and bringing into force in 300 ms, and 10 MB for 10,000 rules.
    pub fn aims(&self, aims: &mut Aims) {
        for row in &self.rows {
            if row.entries == 100_000 {
                let ms = row.compile_ms + row.fill_and_swap_ms;
                aims.add(&format!("compiled and in force, {}", row.name), 300.0, ms, "ms");
                let ms = row.read_json_ms + ms;
                aims.add(&format!("read (JSON) and in force, {}", row.name), 300.0, ms, "ms");
            }
            if row.entries == 10_000 && row.name.ends_with("rules") {
                let bytes = row.memory_bytes as f64 / 1e6;
                aims.add(&format!("tables of {}", row.name), 10.0, bytes, "MB");
            }
        }
    }

    fn cells(&self) -> Vec<[String; 7]> {
        let ms = |ms: f64| format!("{ms:.1}");
        let rows = self.rows.iter();
        rows.map(|row| {
            [
                row.name.clone(),
                ms(row.read_yaml_ms),
                ms(row.read_json_ms),
                ms(row.compile_ms),
                ms(row.fill_and_swap_ms),
                ms(row.swap_ms),
                format!("{:.2}", row.memory_bytes as f64 / 1e6),
            ]
        })
        .collect()
    }
}

impl Shown for Applying {
    fn table(&self) -> String {
        let mut text = String::new();
        for [name, rest @ ..] in std::iter::once(HEADS.map(str::to_owned)).chain(self.cells()) {
            let _ = write!(text, "{name:<28}");
            for cell in rest {
                let _ = write!(text, "  {cell:>17}");
            }
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        markdown_table(&HEADS, self.cells())
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("durations have no map with keys that JSON lacks")
    }
}
