//! Shows a policy: its rules in the order in which they are asked, and what happens where none decides.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    diagnostic::Json,
    model::{
        Action, DefaultVerdict, Direction, ESSENTIAL, MalformedVerdict, Mode, Order, Per, Policy, Range, Rate,
        RateLimit, Rule, State,
    },
    read::Reading,
    text,
};

/// What `check` says, as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct CheckJson {
    /// Whether the policy can be used.
    pub valid: bool,
    /// How many errors there are.
    pub errors: usize,
    /// How many warnings there are.
    pub warnings: usize,
    /// What is wrong.
    pub diagnostics: Vec<Json>,
    /// How many diagnostics are left out.
    pub left_out: usize,
    /// What the policy is, if it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<SummaryJson>,
}

/// What a policy is, in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SummaryJson {
    /// Its name.
    pub name: String,
    /// Its mode.
    pub mode: Mode,
    /// How many rules it has.
    pub rules: usize,
    /// How many sets.
    pub sets: usize,
    /// How many prefixes all sets have together.
    pub prefixes: usize,
    /// The default of what comes in.
    pub ingress: DefaultVerdict,
    /// The default of what goes out.
    pub egress: DefaultVerdict,
}

impl Reading {
    /// What `check` prints: every diagnostic, and a line that sums up.
    pub fn check_text(&self, colour: bool) -> String {
        let mut text = self.render(colour);
        let _ = writeln!(text, "{}", self.summary());
        text
    }

    /// One line: whether the policy can be used, and what it is.
    pub fn summary(&self) -> String {
        let found = [(self.errors(), "error"), (self.warnings(), "warning")]
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| counted(number, what))
            .collect::<Vec<_>>()
            .join(" and ");
        let name = self.sources.first().map_or("", |source| &source.name);
        match &self.policy {
            None => format!("{name}: {found}; this policy cannot be used"),
            Some(policy) => {
                let mut line = format!("{name}: {}", one_line(policy));
                if !found.is_empty() {
                    let _ = write!(line, "; {found}");
                }
                line
            }
        }
    }

    /// What `check --json` prints.
    pub fn check_json(&self) -> CheckJson {
        CheckJson {
            valid: self.policy.is_some(),
            errors: self.errors(),
            warnings: self.warnings(),
            diagnostics: self.diagnostics.iter().map(|found| found.json(&self.sources)).collect(),
            left_out: self.left_out,
            policy: self.policy.as_ref().map(summary),
        }
    }
}

/// What a policy is, in numbers.
pub fn summary(policy: &Policy) -> SummaryJson {
    SummaryJson {
        name: policy.name.clone(),
        mode: policy.mode,
        rules: policy.rules.len(),
        sets: policy.sets.len(),
        prefixes: policy.sets.values().map(crate::model::Set::len).sum(),
        ingress: policy.defaults.ingress,
        egress: policy.defaults.egress,
    }
}

fn one_line(policy: &Policy) -> String {
    let SummaryJson {
        name,
        rules,
        sets,
        prefixes,
        ..
    } = summary(policy);
    let mut line = format!("policy {name}, {}", counted(rules, "rule"));
    if sets > 0 {
        let all = if prefixes == 1 {
            "1 prefix".to_owned()
        } else {
            format!("{prefixes} prefixes")
        };
        let _ = write!(line, ", {} of {all}", counted(sets, "set"));
    }
    line
}

fn counted(number: usize, what: &str) -> String {
    if number == 1 {
        format!("1 {what}")
    } else {
        format!("{number} {what}s")
    }
}

/// What `show` prints.
pub fn text(policy: &Policy) -> String {
    let mut text = String::new();
    let mode = match policy.mode {
        Mode::Observe => "observe: nothing is dropped",
        Mode::Block => "block",
    };
    let _ = writeln!(text, "{}\nmode  {mode}", one_line(policy));
    for (name, set) in &policy.sets {
        let file = set
            .file
            .as_ref()
            .map_or(String::new(), |file| format!(", some of {file}"));
        let ending = if set.len() == 1 { "" } else { "es" };
        let _ = writeln!(text, "@{name}  {} prefix{ending}{file}", set.len());
    }
    let order = match policy.order {
        Order::Priority => "by priority, then as in the file",
        Order::Specific => "the most specific first",
    };
    let _ = writeln!(text, "\nrules, {order}:");
    let names = policy.rules.iter().map(|rule| rule.name.len());
    let width = names.chain([ESSENTIAL.len()]).max().unwrap_or(0);
    if policy.essentials {
        let _ = writeln!(
            text,
            "{:>4}  {:width$}  allow     loopback, ARP, neighbour discovery, MLD, DHCP client, ICMP errors of flows",
            "", ESSENTIAL
        );
    }
    for (place, index) in policy.order().into_iter().enumerate() {
        let rule = &policy.rules[index];
        let _ = writeln!(
            text,
            "{:>4}  {:width$}  {:8}  {}{}",
            place + 1,
            rule.name,
            action(&rule.action),
            conditions(rule),
            match &rule.action {
                Action::RateLimit(limit) => format!("; {}", self::limit(limit)),
                _ => String::new(),
            }
        );
    }
    let verdict = |direction| match policy.default_for(direction) {
        DefaultVerdict::Allow => "allow",
        DefaultVerdict::Deny => "block",
    };
    let malformed = match policy.defaults.malformed {
        MalformedVerdict::Drop => "block",
        MalformedVerdict::Allow => "allow",
    };
    let _ = writeln!(
        text,
        "\ndefault  ingress {}, egress {}, malformed {malformed}",
        verdict(Direction::Ingress),
        verdict(Direction::Egress)
    );
    text
}

/// What a rule does, in a word.
pub fn action(action: &Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Block => "block",
        Action::Log => "log",
        Action::RateLimit(_) => "limit",
    }
}

/// A rate, who shares it, and its burst.
pub fn limit(limit: &RateLimit) -> String {
    let rate = match limit.rate {
        Rate::Packets(rate) => format!("{rate} packets/s"),
        Rate::Bytes(rate) => format!("{rate} bytes/s"),
    };
    let per = match limit.per {
        Per::Rule => "",
        Per::Source => " per source",
        Per::Flow => " per flow",
    };
    format!("{rate}{per}, burst {}", limit.burst)
}

/// What a packet has to be like, in the words of the policy; `anything` for a rule without keys.
pub fn conditions(rule: &Rule) -> String {
    let mut parts = Vec::new();
    if let Some(direction) = rule.direction {
        parts.push(word(direction));
    }
    if let Some(protocol) = rule.protocol {
        parts.push(protocol.to_string());
    }
    let mut list = |name: &str, values: Vec<String>| {
        if !values.is_empty() {
            parts.push(format!("{name} {}", shortened(&values)));
        }
    };
    list("from", rule.source.iter().map(ToString::to_string).collect());
    list("to", rule.destination.iter().map(ToString::to_string).collect());
    list("source_ports", ranges(&rule.source_ports));
    list("destination_ports", ranges(&rule.destination_ports));
    list("icmp_type", ranges(&rule.icmp_type));
    list("icmp_code", ranges(&rule.icmp_code));
    list("interface", rule.interface.clone());
    list("mac", rule.mac.iter().map(text::mac).collect());
    list("cgroup", rule.cgroup.clone());
    list("uid", ranges(&rule.uid));
    list("gid", ranges(&rule.gid));
    list("state", rule.state.iter().map(|state: &State| word(*state)).collect());
    if rule.mode.is_some() {
        parts.push("(observe)".to_owned());
    }
    if parts.is_empty() {
        "anything".to_owned()
    } else {
        parts.join(", ")
    }
}

/// The most elements of a list that are shown.
const SHOWN: usize = 6;

fn shortened(values: &[String]) -> String {
    match values {
        [one] => one.clone(),
        few if few.len() <= SHOWN => format!("[{}]", few.join(", ")),
        many => format!("[{}, … {} in all]", many[..SHOWN - 1].join(", "), many.len()),
    }
}

fn ranges<T: std::fmt::Display + PartialEq>(ranges: &[Range<T>]) -> Vec<String> {
    ranges.iter().map(ToString::to_string).collect()
}

/// A word of the policy, as it is written there.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// What `show --json` prints: the policy, and the names of its rules in the order in which they are asked.
pub fn json(policy: &Policy) -> serde_json::Value {
    let order: Vec<&str> = policy
        .order()
        .into_iter()
        .map(|index| policy.rules[index].name.as_str())
        .collect();
    serde_json::json!({ "policy": policy, "summary": summary(policy), "order": order })
}
