//! What the commands print for people.

use std::iter;

use lab01_count_packets::text::{Table, binary_bytes, grouped};

use crate::{
    api::{Amounts, Applied, ChangeKind, ModeReport, SetChanged, SetEntry, SetReport, SetSummary, Stats, Status},
    compile::Cost,
    explain::{Explanation, NO_HOOK},
};

/// As lines.
pub fn status(status: &Status) -> Vec<String> {
    let mut lines = vec![
        format!(
            "enforcer  {}, process {}, up for {}, Linux {}",
            status.version,
            status.process,
            duration(status.uptime_s),
            status.kernel
        ),
        format!(
            "policy    {}, {}{}",
            status.policy,
            counted(status.rules, "rule"),
            match status.applied {
                0 | 1 => String::new(),
                applied => format!("; the {applied}th policy since the start"),
            }
        ),
        format!("mode      {}", mode_line(&status.mode)),
    ];
    lines.extend(missing(&status.missing));
    if status.hooks.is_empty() {
        lines.push("hooks     none: nothing is decided about".into());
    }
    for (hook, number) in status.hooks.iter().zip(0..) {
        let label = if number == 0 { "hooks" } else { "" };
        lines.push(format!(
            "{label:<8}  {} at {} ({})",
            hook.hook, hook.at, hook.attached_by
        ));
    }
    let flows = &status.flows;
    lines.push(format!(
        "flows     {} begun, {} answered{}",
        grouped(flows.created),
        grouped(flows.established),
        match flows.evicted_half_open + flows.evicted_established {
            0 => String::new(),
            _ => format!(
                "; forgotten early, for others: {} unanswered, {} answered",
                grouped(flows.evicted_half_open),
                grouped(flows.evicted_established)
            ),
        }
    ));
    lines.push(format!(
        "packets   {} passed, {} would have been blocked, {} blocked",
        grouped(status.total.passed.packets),
        grouped(status.total.observed.packets),
        grouped(status.total.dropped.packets),
    ));
    lines
}

/// What the policy names and is not there, as lines.
pub fn missing(names: &[String]) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "missing   {}: what the policy says of them holds as soon as they are there",
        names.join(", ")
    )]
}

/// As lines.
pub fn stats(stats: &Stats) -> Vec<String> {
    let mut table = Table::new(&["rule", "action", "passed", "would block", "blocked", "bytes"]);
    for rule in &stats.rules {
        let action = rule.action.as_deref().unwrap_or("(gone)");
        table.row(row(&rule.rule, action, &rule.amounts));
    }
    for reason in &stats.reasons {
        if reason.reason == "rule" || reason.amounts.packets() == 0 {
            continue;
        }
        table.row(row(
            &format!("({}, {})", reason.reason, reason.hook),
            "",
            &reason.amounts,
        ));
    }
    let mut lines = vec![
        format!("policy {}, mode {}", stats.policy, mode_line(&stats.mode)),
        String::new(),
    ];
    lines.extend(table.lines());
    if !stats.malformed.is_empty() {
        let kinds = stats.malformed.iter();
        let kinds: Vec<String> = kinds
            .map(|kind| format!("{} {}", grouped(kind.amount.packets), kind.malformed))
            .collect();
        lines.extend([String::new(), format!("malformed: {}", kinds.join(", "))]);
    }
    lines
}

fn row(name: &str, action: &str, amounts: &Amounts) -> Vec<String> {
    let bytes = amounts.passed.bytes + amounts.observed.bytes + amounts.dropped.bytes;
    vec![
        name.to_owned(),
        action.to_owned(),
        grouped(amounts.passed.packets),
        grouped(amounts.observed.packets),
        grouped(amounts.dropped.packets),
        binary_bytes(bytes),
    ]
}

/// As one line.
pub fn mode(report: &ModeReport) -> String {
    format!("mode {}", mode_line(report))
}

fn mode_line(report: &ModeReport) -> String {
    let by = match report.set_by.as_str() {
        "policy" => "as the policy says",
        "mode command" => "as set by `enforcer mode`, until the next apply",
        _ => "as given on the command line",
    };
    format!("{} ({by})", report.mode)
}

/// As lines.
pub fn applied(applied: &Applied) -> Vec<String> {
    let rules = counted(applied.rules, "rule");
    let first = if applied.dry_run {
        format!(
            "policy {} could be applied: {rules}, mode {}; nothing was changed",
            applied.policy, applied.mode.mode
        )
    } else {
        format!(
            "policy {} is in force: {rules}, mode {}",
            applied.policy,
            mode_line(&applied.mode)
        )
    };
    let kept = match applied.kept_entries {
        0 => None,
        1 => Some("1 entry that `enforcer set` has added stays in its set".to_owned()),
        kept => Some(format!(
            "{} entries that `enforcer set` has added stay in their sets",
            grouped(kept)
        )),
    };
    let forgotten = match applied.forgotten_entries {
        0 => None,
        1 => Some("1 change by `enforcer set` is forgotten".to_owned()),
        forgotten => Some(format!(
            "{} changes by `enforcer set` are forgotten",
            grouped(forgotten)
        )),
    };
    let lines = iter::once(first).chain(kept).chain(forgotten);
    lines.chain(missing(&applied.missing)).collect()
}

/// As lines.
pub fn set_changed(changed: &SetChanged) -> Vec<String> {
    let is = match changed.change {
        ChangeKind::Add => "is in",
        ChangeKind::Remove => "is no longer in",
    };
    let time = changed
        .for_ms
        .map(|time| format!(", for {}", duration(time.div_ceil(1000))));
    let mut lines = vec![format!(
        "{} {is} the set {}{}; it has {}",
        changed.prefix,
        changed.set,
        time.unwrap_or_default(),
        entries(changed.entries)
    )];
    if changed.rules.is_empty() {
        lines.push(format!(
            "no rule names the set {}, so nothing changes for any packet",
            changed.set
        ));
    }
    lines
}

/// As lines.
pub fn sets(sets: &[SetSummary]) -> Vec<String> {
    if sets.is_empty() {
        return vec!["the policy in force has no sets".into()];
    }
    let mut table = Table::new(&["set", "entries", "added", "removed", "rules"]);
    for set in sets {
        table.row(vec![
            set.set.clone(),
            grouped(set.entries),
            grouped(set.added),
            grouped(set.removed),
            grouped(set.rules.len() as u64),
        ]);
    }
    table.lines()
}

/// As lines.
pub fn set(set: &SetReport) -> Vec<String> {
    let named_by = match set.rules.as_slice() {
        [] => "no rule".into(),
        rules => named(rules, 0),
    };
    let mut lines = vec![
        format!(
            "set {}, {}, named by {named_by}",
            set.set,
            entries(set.entries.len() as u64)
        ),
        String::new(),
    ];
    let mut table = Table::new(&["entry", "by", "for"]);
    let mut add = |entry: &SetEntry, by: &str| {
        let time = entry.left_s.map_or_else(|| "good".into(), duration);
        table.row(vec![entry.prefix.clone(), by.to_owned(), time]);
    };
    for entry in &set.entries {
        add(entry, &entry.by);
    }
    for entry in &set.removed {
        add(entry, "removed");
    }
    lines.extend(table.lines());
    lines
}

fn entries(count: u64) -> String {
    match count {
        1 => "1 entry".into(),
        count => format!("{} entries", grouped(count)),
    }
}

/// How many rules are named in a step.
const NAMED_RULES: usize = 5;

/// As lines.
pub fn explanation(explanation: &Explanation) -> Vec<String> {
    let what = match explanation.outcome {
        "drop" => "and it is dropped",
        "observe_drop" => "and it passes all the same: the mode is observe",
        _ if explanation.verdict == "rate_limit" => "and it passes as long as the rate is not exceeded",
        _ => "and it passes",
    };
    let why = match explanation.rule.as_str() {
        "default" => "by default, as no rule matches".to_owned(),
        "essential" => format!("as essential ({})", explanation.reason),
        rule => format!("by rule {rule}"),
    };
    let mut lines = vec![
        format!("{} {why}, {what}", explanation.verdict),
        match explanation.hook.as_str() {
            NO_HOOK => "decided nowhere: the enforcer is not attached where it comes by".to_owned(),
            hook => format!("decided at {hook}"),
        },
    ];
    if explanation.connect_is_refused {
        lines.push("connect is refused at once, unless the destination is this host's own".to_owned());
    }
    if !explanation.logged_by.is_empty() {
        lines.push(format!("counted before by {}", explanation.logged_by.join(", ")));
    }
    lines.push(String::new());
    let width = explanation.steps.iter().map(|step| step.looked_up.chars().count());
    let width = width.max().unwrap_or(0).max("looked up".len());
    lines.push(format!("{:<width$}  rules still in question", "looked up"));
    for step in &explanation.steps {
        lines.push(format!("{:<width$}  {}", step.looked_up, named(&step.rules, step.more)));
    }
    lines.push(format!(
        "{:<width$}  {}",
        "search",
        counted(u64::from(explanation.searched), "step")
    ));
    lines
}

fn named(rules: &[String], more: usize) -> String {
    match rules.len().min(NAMED_RULES) {
        0 => "none".into(),
        shown if shown < rules.len() + more => {
            format!("{} and {} more", rules[..shown].join(", "), rules.len() + more - shown)
        }
        _ => rules.join(", "),
    }
}

/// What a policy costs, as lines.
pub fn cost(cost: &Cost) -> Vec<String> {
    let [incoming, outgoing] = cost.tables;
    vec![
        format!(
            "tables: {} for incoming and {} for outgoing packets, {} records, {}",
            incoming,
            outgoing,
            grouped(cost.records as u64),
            binary_bytes(cost.bytes)
        ),
        format!(
            "steps of a packet: {} at most, of {} that it may take",
            grouped(u64::from(cost.steps.deciding.max(cost.steps.counting))),
            grouped(u64::from(cost.steps_limit))
        ),
    ]
}

/// `1 rule`, `2 rules`.
pub fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{} {what}s", grouped(count)),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
