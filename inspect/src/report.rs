//! The report: tables for people, or one JSON object.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    kernel::{Accepted, Answers, Kernel, Verdict},
    maps,
    object_file::{Linked, ObjectFile, Section},
    program_kind::LoadAs,
};

/// What was found out about an object.
pub struct Report<'a> {
    object: &'a ObjectFile,
    programs: &'a [Linked],
    kernel: &'a Kernel,
    cpus: u64,
}

impl<'a> Report<'a> {
    /// Of this object, with these of its programs.
    pub fn new(object: &'a ObjectFile, programs: &'a [Linked], kernel: &'a Kernel) -> Self {
        Self {
            object,
            programs,
            kernel,
            cpus: maps::possible_cpus(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let object = self.object;
        // Writing to a string cannot fail.
        writeln!(text, "{}", object.path.display()).ok();
        writeln!(
            text,
            "{} bytes, licence {}, {}",
            grouped(object.size as u64),
            self.licence(),
            self.btf()
        )
        .ok();
        writeln!(text, "\nSections\n{}", self.sections()).ok();
        writeln!(text, "Maps\n{}", self.maps()).ok();
        writeln!(text, "Programs\n{}", self.programs()).ok();
        for (name, cause, log) in self.rejections() {
            writeln!(text, "{name} was rejected: {cause}").ok();
            for line in log {
                writeln!(text, "    {line}").ok();
            }
        }
        for (name, why) in self.not_tried() {
            writeln!(text, "{name} was not loaded: {why}").ok();
        }
        match self.kernel {
            Kernel::Asked(answers) => writeln!(text, "Verified by Linux {}.", answers.release).ok(),
            Kernel::NotAsked(why) => writeln!(text, "Not verified: {why}.").ok(),
        };
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let object = self.object;
        let sections = object
            .sections
            .iter()
            .map(|section| json!({"name": section.name, "bytes": section.size}));
        let maps = object.maps.iter().map(|(name, map)| {
            json!({
                "name": name,
                "type": maps::type_name(map.map_type()),
                "key_bytes": map.key_size(),
                "value_bytes": map.value_size(),
                "max_entries": map.max_entries(),
                "flags": maps::flags(map.map_flags()),
                "estimated_bytes": maps::estimated_bytes(map, self.cpus),
                "measured_bytes": self.answers().and_then(|answers| answers.map_bytes.get(name)),
            })
        });
        let (kernel, not_verified) = match self.kernel {
            Kernel::Asked(answers) => (Some(&answers.release), None),
            Kernel::NotAsked(why) => (None, Some(why)),
        };
        json!({
            "object": object.path.display().to_string(),
            "bytes": object.size,
            "licence": self.licence(),
            "btf": object.debug_info.is_some(),
            "sections": sections.collect::<Vec<_>>(),
            "maps": maps.collect::<Vec<_>>(),
            "programs": self.programs.iter().map(|program| self.program_json(program)).collect::<Vec<_>>(),
            "kernel": kernel,
            "not_verified": not_verified,
        })
    }

    fn program_json(&self, program: &Linked) -> Value {
        let mut value = json!({
            "name": program.name,
            "section": program.section,
            "type": LoadAs::of(&program.kind).type_name(),
            "functions": program.function_starts().len(),
            "instructions": program.function.instructions.len(),
        });
        let more = match self.answers().and_then(|answers| answers.programs.get(&program.name)) {
            Some(Verdict::Accepted(accepted)) => json!({
                "verified_instructions": accepted.verified,
                "translated_bytes": accepted.translated_bytes,
                "jited_bytes": accepted.jited_bytes,
                "stack_bytes": accepted.stack_bytes,
                "load_us": accepted.load_time.as_micros() as u64,
            }),
            Some(Verdict::Rejected { cause, log }) => json!({"rejected": cause, "verifier_log": log}),
            Some(Verdict::NotTried(why)) => json!({"not_loaded": why}),
            None => json!({}),
        };
        if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
            value.extend(more);
        }
        value
    }

    fn licence(&self) -> String {
        self.object.parsed.license.to_string_lossy().into_owned()
    }

    fn btf(&self) -> &'static str {
        let has = |name: &str| self.object.sections.iter().any(|section| section.name == name);
        match (has(".BTF"), has(".BTF.ext")) {
            (true, true) => "BTF with lines of the source",
            (true, false) => "BTF without lines of the source",
            (false, _) => "no BTF",
        }
    }

    fn sections(&self) -> String {
        let mut table = Table::new(&[("name", Align::Left), ("bytes", Align::Right)]);
        let is_debug =
            |section: &&Section| section.name.starts_with(".debug") || section.name.starts_with(".rel.debug");
        let (debug, others): (Vec<_>, Vec<_>) = self.object.sections.iter().partition(is_debug);
        for section in others {
            table.add([section.name.clone(), grouped(section.size)]);
        }
        if !debug.is_empty() {
            // A dozen sections that no loader reads.
            let bytes = debug.iter().map(|section| section.size).sum();
            table.add([format!(".debug* ({} sections)", debug.len()), grouped(bytes)]);
        }
        table.text()
    }

    fn maps(&self) -> String {
        let measured = self.answers().is_some_and(|answers| !answers.map_bytes.is_empty());
        let memory = if measured { "memory" } else { "memory (estimated)" };
        let mut table = Table::new(&[
            ("name", Align::Left),
            ("type", Align::Left),
            ("key", Align::Right),
            ("value", Align::Right),
            ("entries", Align::Right),
            (memory, Align::Right),
            ("flags", Align::Left),
        ]);
        for (name, map) in &self.object.maps {
            let measured = self.answers().and_then(|answers| answers.map_bytes.get(name)).copied();
            let bytes = measured.or_else(|| maps::estimated_bytes(map, self.cpus));
            table.add([
                name.clone(),
                maps::type_name(map.map_type()),
                map.key_size().to_string(),
                map.value_size().to_string(),
                grouped(map.max_entries().into()),
                bytes.map_or_else(|| "?".to_owned(), grouped),
                maps::flags(map.map_flags()),
            ]);
        }
        table.text()
    }

    fn programs(&self) -> String {
        let mut columns = vec![
            ("name", Align::Left),
            ("section", Align::Left),
            ("type", Align::Left),
            ("functions", Align::Right),
            ("instructions", Align::Right),
        ];
        if self.answers().is_some() {
            columns.extend([
                ("verified", Align::Right),
                ("translated", Align::Right),
                ("machine code", Align::Right),
                ("stack", Align::Right),
                ("load", Align::Right),
            ]);
        }
        let mut table = Table::new(&columns);
        for program in self.programs {
            let mut row = vec![
                program.name.clone(),
                program.section.clone(),
                LoadAs::of(&program.kind).type_name(),
                program.function_starts().len().to_string(),
                grouped(program.function.instructions.len() as u64),
            ];
            if let Some(answers) = self.answers() {
                row.extend(match answers.programs.get(&program.name) {
                    Some(Verdict::Accepted(accepted)) => accepted_columns(accepted),
                    Some(Verdict::Rejected { .. }) => ["rejected", "", "", "", ""].map(str::to_owned),
                    Some(Verdict::NotTried(_)) | None => ["not loaded", "", "", "", ""].map(str::to_owned),
                });
            }
            table.add(row);
        }
        table.text()
    }

    fn answers(&self) -> Option<&'a Answers> {
        match self.kernel {
            Kernel::Asked(answers) => Some(answers),
            Kernel::NotAsked(_) => None,
        }
    }

    fn rejections(&self) -> impl Iterator<Item = (&'a str, &'a str, &'a [String])> {
        let programs = self.answers().into_iter().flat_map(|answers| &answers.programs);
        programs.filter_map(|(name, verdict)| match verdict {
            Verdict::Rejected { cause, log } => Some((name.as_str(), cause.as_str(), log.as_slice())),
            Verdict::Accepted(_) | Verdict::NotTried(_) => None,
        })
    }

    fn not_tried(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let programs = self.answers().into_iter().flat_map(|answers| &answers.programs);
        programs.filter_map(|(name, verdict)| match verdict {
            Verdict::NotTried(why) => Some((name.as_str(), why.as_str())),
            Verdict::Accepted(_) | Verdict::Rejected { .. } => None,
        })
    }
}

fn accepted_columns(accepted: &Accepted) -> [String; 5] {
    let stack: Vec<_> = accepted.stack_bytes.iter().map(u64::to_string).collect();
    [
        accepted.verified.map_or_else(|| "?".to_owned(), grouped),
        format!("{} B", grouped(accepted.translated_bytes.into())),
        match accepted.jited_bytes {
            0 => "interpreted".to_owned(),
            bytes => format!("{} B", grouped(bytes.into())),
        },
        if stack.is_empty() {
            "?".to_owned()
        } else {
            format!("{} B", stack.join("+"))
        },
        format!("{:.1} ms", accepted.load_time.as_secs_f64() * 1e3),
    ]
}

/// On which side a column is flush.
#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

/// A table with aligned columns, indented by two.
struct Table {
    alignments: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            alignments: columns.iter().map(|(_, alignment)| *alignment).collect(),
            rows: vec![columns.iter().map(|(name, _)| (*name).to_owned()).collect()],
        }
    }

    fn add(&mut self, row: impl Into<Vec<String>>) {
        self.rows.push(row.into());
    }

    fn text(&self) -> String {
        if self.rows.len() == 1 {
            return "  none\n".to_owned();
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut text = String::new();
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&self.alignments)
                .enumerate()
                .map(|(column, (cell, alignment))| {
                    let width = width(column);
                    match alignment {
                        Align::Left => format!("{cell:width$}"),
                        Align::Right => format!("{cell:>width$}"),
                    }
                });
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(text, "  {}", line.trim_end()).ok();
        }
        text
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&[("name", Align::Left), ("bytes", Align::Right)]);
        table.add(["xdp".to_owned(), "1,024".to_owned()]);
        table.add(["license".to_owned(), "4".to_owned()]);
        assert_eq!(table.text(), "  name     bytes\n  xdp      1,024\n  license      4\n");
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(Table::new(&[("name", Align::Left)]).text(), "  none\n");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
