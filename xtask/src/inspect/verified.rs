//! How many instructions the verifier of each kernel walks through for each program: `book/verified.json`, with which
//! later runs are compared. More than a tenth more needs a reason, which is recorded beside it.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The record.
pub const FILE: &str = "book/verified.json";

/// By how many percent a program may grow without a reason.
const FREE_PERCENT: u64 = 10;

/// What became of a program on a kernel.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Judgement {
    /// So many instructions were verified.
    Verified(u64),
    /// It was not loaded, for this reason.
    NotLoaded(String),
}

/// By object and program: `lab01-count-packets: count_packets`.
pub type Judgements = BTreeMap<String, Judgement>;

/// Why a program was allowed to grow.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Growth {
    kernel: String,
    program: String,
    from: u64,
    to: u64,
    reason: String,
}

/// The record.
#[derive(Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    kernels: BTreeMap<String, Judgements>,
    growth: Vec<Growth>,
}

/// Reads what `inspect --json` has printed of an object.
pub fn judgements(json: &str) -> Result<Judgements> {
    let report: Value = serde_json::from_str(json).context("inspect printed no JSON")?;
    if let Some(why) = report["not_verified"].as_str() {
        bail!("the kernel's verifier was not asked: {why}");
    }
    let object = Path::new(report["object"].as_str().unwrap_or_default());
    let object = object.file_name().unwrap_or_default().to_string_lossy();
    let mut judgements = Judgements::new();
    for program in report["programs"].as_array().into_iter().flatten() {
        let name = format!("{object}: {}", program["name"].as_str().unwrap_or_default());
        let judgement = if let Some(instructions) = program["verified_instructions"].as_u64() {
            Judgement::Verified(instructions)
        } else {
            Judgement::NotLoaded(why_not(program))
        };
        judgements.insert(name, judgement);
    }
    if judgements.is_empty() {
        bail!("{object} has no programs");
    }
    Ok(judgements)
}

/// Why a program was not loaded: the last line of the verifier's log, if it has said anything, and the kernel's answer.
fn why_not(program: &Value) -> String {
    let cause = program["rejected"].as_str().or(program["not_loaded"].as_str());
    let cause = cause.unwrap_or("the kernel does not tell");
    let log = program["verifier_log"].as_array().into_iter().flatten();
    match log.filter_map(Value::as_str).next_back() {
        Some(verdict) => format!("{verdict}: {cause}"),
        None => cause.to_owned(),
    }
}

impl Record {
    /// Reads it; an absent one is empty.
    pub fn read(root: &Path) -> Result<Self> {
        let Ok(text) = fs::read_to_string(root.join(FILE)) else {
            return Ok(Self::default());
        };
        serde_json::from_str(&text).with_context(|| format!("{FILE} cannot be understood"))
    }

    /// Writes it.
    pub fn write(&self, root: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(root.join(FILE), text).with_context(|| format!("{FILE} cannot be written"))
    }

    /// Where what was seen on a kernel is not what is recorded; a line each, with the mend.
    pub fn differences(&self, kernel: &str, seen: &Judgements) -> Vec<String> {
        let bless = format!("`cargo xtask inspect --kernel {kernel} --bless`");
        let mut lines = Vec::new();
        for (program, judgement) in seen {
            let line = match (self.kernels.get(kernel).and_then(|known| known.get(program)), judgement) {
                (None, _) => format!("{program} on Linux {kernel} is not in {FILE}: {bless}"),
                (Some(Judgement::Verified(from)), Judgement::Verified(to)) if is_growth(*from, *to) => {
                    format!(
                        "{}; if that is worth it: `cargo xtask inspect --kernel {kernel} --bless --reason TEXT`",
                        told(program, kernel, *from, *to)
                    )
                }
                (Some(Judgement::Verified(_)), Judgement::NotLoaded(why)) => {
                    format!("{program} is not loaded on Linux {kernel} any more: {why}; if that is right: {bless}")
                }
                (Some(Judgement::NotLoaded(_)), Judgement::Verified(_)) => {
                    format!("{program} is loaded on Linux {kernel} now: {bless}")
                }
                _ => continue,
            };
            lines.push(line);
        }
        for program in self.gone(kernel, seen) {
            lines.push(format!(
                "{program} on Linux {kernel} is in {FILE}, but its object has no such program: {bless}"
            ));
        }
        lines
    }

    /// Replaces what is recorded of the objects that were seen. What has grown needs a reason.
    pub fn take_over(&mut self, kernel: &str, seen: &Judgements, reason: Option<&str>) -> Result<()> {
        let known = self.kernels.get(kernel).cloned().unwrap_or_default();
        for (program, judgement) in seen {
            let (Some(Judgement::Verified(from)), Judgement::Verified(to)) = (known.get(program), judgement) else {
                continue;
            };
            if !is_growth(*from, *to) {
                continue;
            }
            let Some(reason) = reason else {
                bail!("{}: say why by --reason TEXT", told(program, kernel, *from, *to));
            };
            self.growth.push(Growth {
                kernel: kernel.to_owned(),
                program: program.clone(),
                from: *from,
                to: *to,
                reason: reason.to_owned(),
            });
        }
        let gone = self.gone(kernel, seen);
        let known = self.kernels.entry(kernel.to_owned()).or_default();
        known.retain(|program, _| !gone.contains(program));
        known.extend(seen.clone());
        Ok(())
    }

    /// Programs that are recorded and were not seen, though others of their object were.
    fn gone(&self, kernel: &str, seen: &Judgements) -> Vec<String> {
        let was_seen = |object: &str| seen.keys().any(|program| object_of(program) == object);
        let known = self.kernels.get(kernel).into_iter().flat_map(BTreeMap::keys);
        known
            .filter(|program| !seen.contains_key(*program) && was_seen(object_of(program)))
            .cloned()
            .collect()
    }
}

fn object_of(program: &str) -> &str {
    program.split(':').next().unwrap_or_default()
}

fn is_growth(from: u64, to: u64) -> bool {
    to * 100 > from * (100 + FREE_PERCENT)
}

fn told(program: &str, kernel: &str, from: u64, to: u64) -> String {
    let percent = (to - from) * 100 / from.max(1);
    format!("{program} on Linux {kernel} grew from {from} to {to} verified instructions, by {percent} %")
}

/// A line for each program with a column for each kernel, and the reasons below.
pub fn table(kernels: &[(String, Judgements)]) -> String {
    let mut rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut reasons: Vec<&str> = Vec::new();
    for program in kernels.iter().flat_map(|(_, seen)| seen.keys()) {
        rows.insert(program, Vec::new());
    }
    for (program, row) in &mut rows {
        for (_, seen) in kernels {
            row.push(match seen.get(*program) {
                None => "–".into(),
                Some(Judgement::Verified(instructions)) => instructions.to_string(),
                Some(Judgement::NotLoaded(why)) => {
                    let known = reasons.iter().position(|reason| reason == why);
                    let number = known.unwrap_or_else(|| {
                        reasons.push(why);
                        reasons.len() - 1
                    });
                    format!("no [{}]", number + 1)
                }
            });
        }
    }
    let width = rows.keys().map(|program| program.chars().count()).max().unwrap_or(0);
    // Writing to a string cannot fail.
    let mut text = format!("{:width$}", "verified instructions");
    for (kernel, _) in kernels {
        write!(text, "  {kernel:>8}").ok();
    }
    text.push('\n');
    for (program, row) in rows {
        write!(text, "{program:width$}").ok();
        for cell in row {
            write!(text, "  {cell:>8}").ok();
        }
        text.push('\n');
    }
    for (number, reason) in reasons.iter().enumerate() {
        writeln!(text, "[{}] {reason}", number + 1).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(programs: &[(&str, Judgement)]) -> Judgements {
        let owned = |(name, judgement): &(&str, Judgement)| ((*name).to_owned(), judgement.clone());
        programs.iter().map(owned).collect()
    }

    fn verified(instructions: u64) -> Judgements {
        seen(&[("lab01: count", Judgement::Verified(instructions))])
    }

    fn refused() -> Judgements {
        seen(&[("lab01: count", Judgement::NotLoaded("no such helper".into()))])
    }

    fn recorded(judgements: &Judgements) -> Record {
        let mut record = Record::default();
        record.take_over("5.10", judgements, None).unwrap();
        record
    }

    #[test]
    fn a_tenth_more_is_free_and_one_more_than_that_is_a_difference_which_needs_a_reason() {
        let mut record = recorded(&verified(100));
        assert_eq!(record.differences("5.10", &verified(110)), Vec::<String>::new());
        assert_eq!(record.differences("5.10", &verified(7)), Vec::<String>::new());
        let differences = record.differences("5.10", &verified(111));
        assert_eq!(
            differences,
            [
                "lab01: count on Linux 5.10 grew from 100 to 111 verified instructions, by 11 %; if that is worth it: \
                 `cargo xtask inspect --kernel 5.10 --bless --reason TEXT`"
            ]
        );
        let error = record.take_over("5.10", &verified(111), None).unwrap_err();
        assert!(error.to_string().ends_with("say why by --reason TEXT"), "{error}");
        assert_eq!(
            record,
            recorded(&verified(100)),
            "nothing is taken over without the reason"
        );
        record
            .take_over("5.10", &verified(111), Some("reads fragments"))
            .unwrap();
        assert_eq!(record.growth[0].reason, "reads fragments");
        assert_eq!(record.differences("5.10", &verified(111)), Vec::<String>::new());
    }

    #[test]
    fn small_steps_add_up_as_long_as_they_are_not_taken_over() {
        let record = recorded(&verified(100));
        assert!(record.differences("5.10", &verified(109)).is_empty());
        assert_eq!(record.differences("5.10", &verified(118)).len(), 1);
    }

    #[test]
    fn what_is_new_gone_or_loaded_no_more_is_a_difference() {
        let record = recorded(&verified(100));
        assert_eq!(
            record.differences("6.1", &verified(100)).len(),
            1,
            "nothing is known of 6.1"
        );
        assert!(record.differences("5.10", &refused())[0].contains("any more: no such helper"));
        assert!(recorded(&refused()).differences("5.10", &verified(1))[0].contains("is loaded"));
        assert!(recorded(&refused()).differences("5.10", &refused()).is_empty());
        let other = seen(&[("lab01: drop", Judgement::Verified(1))]);
        assert_eq!(record.differences("5.10", &other).len(), 2, "one is new and one gone");
        let of_other_lab = seen(&[("lab02: drop", Judgement::Verified(1))]);
        assert_eq!(
            record.differences("5.10", &of_other_lab).len(),
            1,
            "lab01 was not looked at"
        );
        let mut record = record;
        record.take_over("5.10", &other, None).unwrap();
        assert!(record.differences("5.10", &other).is_empty());
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("book")).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), Record::default());
        let mut record = recorded(&verified(100));
        record.take_over("6.1", &refused(), None).unwrap();
        record.take_over("5.10", &verified(200), Some("more")).unwrap();
        record.write(folder.path()).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap(), record);
    }

    #[test]
    fn the_judgements_stand_in_what_inspect_prints() {
        let json = r#"{"object": "/w/lab01", "not_verified": null, "programs": [
            {"name": "a", "verified_instructions": 7}, {"name": "b", "rejected": "too large", "verifier_log": []},
            {"name": "c", "not_loaded": "no such hook"},
            {"name": "d", "rejected": "EINVAL", "verifier_log": ["5: (85) call 200", "unknown func 200"]}]}"#;
        let expected = seen(&[
            ("lab01: a", Judgement::Verified(7)),
            ("lab01: b", Judgement::NotLoaded("too large".into())),
            ("lab01: c", Judgement::NotLoaded("no such hook".into())),
            ("lab01: d", Judgement::NotLoaded("unknown func 200: EINVAL".into())),
        ]);
        assert_eq!(judgements(json).unwrap(), expected);
        let not_asked = judgements(r#"{"not_verified": "no root", "programs": []}"#).unwrap_err();
        assert!(not_asked.to_string().ends_with("no root"));
        assert!(judgements("error").is_err() && judgements("{}").is_err());
    }

    #[test]
    fn the_table_has_a_column_for_each_kernel_and_each_reason_once() {
        let kernels = [("5.10".to_owned(), refused()), ("6.1".to_owned(), verified(12))];
        let expected = "verified instructions      5.10       6.1\n\
                        lab01: count    no [1]        12\n\
                        [1] no such helper\n";
        assert_eq!(table(&kernels), expected);
    }
}
