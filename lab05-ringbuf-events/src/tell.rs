//! How events, frames and books are shown: as lines of JSON, or as lines for people.

use std::fmt::Write as _;

use lab01_count_packets::text::{binary_bytes, grouped};
use lab05_ringbuf_events_common::{
    decision::{Decision, Outcome},
    process::Deed,
};
use serde_json::{Value, json};

use crate::{
    books::Balance,
    cgroups::CgroupNames,
    clock::Calendar,
    event::{self, Event},
    frame::Frame,
    processes::{Process, text},
};

/// Makes lines.
pub struct Teller {
    style: Style,
    host_id: String,
    calendar: Calendar,
    start_ns: u64,
    observe: bool,
}

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// JSON, an object a line.
    Json,
    /// Aligned columns. What does not fit goes on below its own column.
    Pretty {
        /// The terminal's width, in characters; a line is as long as it gets where there is none.
        width: Option<usize>,
        /// Whether verdicts have a colour.
        colour: bool,
    },
}

/// Colours of the terminal: SGR of ECMA-48.
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

impl Teller {
    /// Lines of this style; times are counted from now.
    pub fn new(style: Style, host_id: &str, calendar: Calendar, start_ns: u64, observe: bool) -> Self {
        Self {
            style,
            host_id: host_id.to_owned(),
            calendar,
            start_ns,
            observe,
        }
    }

    /// What stands above all lines.
    pub fn head(&self) -> Option<String> {
        match self.style {
            Style::Json => None,
            style @ Style::Pretty { .. } => Some(self.columns(style, "TIME", "EVENT", None, "PROCESS", "DETAILS")),
        }
    }

    /// An event.
    pub fn event(&self, event: &Event, cgroups: &mut CgroupNames) -> String {
        match (self.style, event) {
            (Style::Json, Event::Decision(decision)) => self.decision_json(decision, cgroups).to_string(),
            (Style::Json, Event::Process { event, process, parent }) => {
                let kind = event::deed(event).name();
                let mut value = json!({
                    "type": kind,
                    "host_id": self.host_id,
                    "ts": self.calendar.at(event.time_ns),
                    "time_ns": event.time_ns,
                    "pid": event.pid,
                    "tid": event.tid,
                    "ppid": event.parent,
                    "parent": parent,
                    "uid": event.uid,
                    "comm": text(&event.comm),
                    "exe": process.exe,
                    "args": process.args,
                    "args_cut": process.args_cut,
                    "cgroup": cgroups.name(event.cgroup),
                    "start": self.calendar.at(event.start_ns),
                    "threads": process.threads,
                });
                if let (Deed::Exit, Value::Object(fields)) = (event::deed(event), &mut value) {
                    fields.insert("end".into(), event::end_in_words(event.exit_code).into());
                    fields.insert("exit_code".into(), event.exit_code.into());
                }
                value.to_string()
            }
            (style, Event::Decision(decision)) => self.decision_line(style, decision),
            (style, Event::Process { event, process, parent }) => {
                let parent = match parent {
                    Some(name) if !name.is_empty() => format!("{name}[{}]", event.parent),
                    _ => format!("{}", event.parent),
                };
                let details = match event::deed(event) {
                    Deed::Exec => format!("{}  uid {}, by {parent}", command_line(process), event.uid),
                    Deed::Fork if event.tid != event.pid => format!("thread {}, now {}", event.tid, process.threads),
                    Deed::Fork => format!("made by {parent}"),
                    Deed::Exit if event.is_last == 0 => format!("thread {} ended, now {}", event.tid, process.threads),
                    Deed::Exit => format!(
                        "{}, after {}",
                        event::end_in_words(event.exit_code),
                        span(event.time_ns.saturating_sub(event.start_ns))
                    ),
                };
                let who = who(&text(&event.comm), event.pid);
                self.columns(
                    style,
                    &self.time(event.time_ns),
                    event::deed(event).name(),
                    Some(DIM),
                    &who,
                    &details,
                )
            }
        }
    }

    // ANCHOR: decision_json
    fn decision_json(&self, decision: &Decision, cgroups: &mut CgroupNames) -> Value {
        let five_tuple = event::sides(decision).map(|(source, destination)| {
            json!({
                // Where a connection has yet to get its source address there is none.
                "src_ip": (!source.ip().is_unspecified()).then(|| source.ip()),
                "dst_ip": destination.ip(),
                "src_port": (source.port() != 0).then(|| source.port()),
                "dst_port": destination.port(),
                "protocol": event::protocol_name(decision.tuple.protocol),
            })
        });
        let process = (decision.pid != 0).then(|| {
            json!({
                "pid": decision.pid,
                "comm": text(&decision.comm),
                "uid": decision.uid,
                "cgroup": cgroups.name(decision.cgroup),
            })
        });
        let reason = event::reason(decision);
        json!({
            "type": "enforce_decision",
            "host_id": self.host_id,
            "ts": self.calendar.at(decision.time_ns),
            "time_ns": decision.time_ns,
            "program": event::hook(decision).program(),
            "hook": event::hook(decision).name(),
            "map": event::map(decision),
            "five_tuple": five_tuple,
            "verdict": event::outcome(decision).name(),
            "reason": reason.name(),
            "malformed": event::malformed(decision).map(lab02_xdp_firewall_common::transport::Malformed::name),
            "rule": event::rule(reason),
            "mode": if self.observe { "observe" } else { "block" },
            "bytes": decision.bytes,
            "interface": (decision.interface != 0).then_some(decision.interface),
            "cookie": (decision.cookie != 0).then_some(decision.cookie),
            "process": process,
        })
    }
    // ANCHOR_END: decision_json

    fn decision_line(&self, style: Style, decision: &Decision) -> String {
        let outcome = event::outcome(decision);
        let (name, colour) = match outcome {
            Outcome::Allow => ("allow", GREEN),
            Outcome::Block => ("block", RED),
            Outcome::ObserveDrop => ("would drop", YELLOW),
        };
        let hook = event::hook(decision);
        let mut details = match event::sides(decision) {
            None => "a packet that cannot be read".to_owned(),
            Some((source, destination)) => {
                let protocol = event::protocol_name(decision.tuple.protocol);
                if hook.sees_packets() {
                    format!("{protocol} {source} → {destination}")
                } else {
                    format!("{protocol} → {destination}")
                }
            }
        };
        let _ = write!(details, " by {}", event::rule(event::reason(decision)));
        if let Some(malformed) = event::malformed(decision) {
            let _ = write!(details, " ({})", malformed.name());
        }
        let _ = write!(details, " at {}", hook.name());
        if hook.sees_packets() {
            let _ = write!(details, ", {} B", decision.bytes);
        }
        let who = if decision.pid == 0 {
            "-".to_owned()
        } else {
            who(&text(&decision.comm), decision.pid)
        };
        self.columns(style, &self.time(decision.time_ns), name, Some(colour), &who, &details)
    }

    /// A frame: one line of JSON, or a line a flow.
    pub fn frame(&self, frame: &Frame, now_ns: u64) -> Vec<String> {
        let style = match self.style {
            Style::Json => return vec![serde_json::to_string(frame).unwrap_or_default()],
            style @ Style::Pretty { .. } => style,
        };
        let lines = frame.flows.iter().map(|flow| {
            let arrow = match flow.dir {
                "egress" => "→",
                "ingress" => "←",
                _ => "–",
            };
            let sum = |packets, bytes| format!("{}/{}", grouped(packets), binary_bytes(bytes).replace(' ', ""));
            let details = format!(
                "{} {} {arrow} {} {} ↑{} ↓{}",
                flow.proto,
                flow.laddr,
                flow.raddr,
                flow.state,
                sum(flow.pkts_out, flow.bytes_out),
                sum(flow.pkts_in, flow.bytes_in),
            );
            let who = flow.pid.map_or_else(|| "-".to_owned(), |pid| who(&flow.comm, pid));
            self.columns(style, &self.time(now_ns), "flow", Some(DIM), &who, &details)
        });
        lines.collect()
    }

    /// The books, at the end.
    pub fn balance(&self, balance: &Balance) -> String {
        if self.style == Style::Json {
            let mut value = serde_json::to_value(balance).unwrap_or_default();
            if let Value::Object(fields) = &mut value {
                fields.insert("type".into(), "balance".into());
                fields.insert("host_id".into(), self.host_id.clone().into());
            }
            return value.to_string();
        }
        let line = |what: &str, line: &crate::books::Line| {
            format!(
                "{} {what}: {} told, {} left out, {} lost",
                grouped(line.happened),
                grouped(line.emitted),
                grouped(line.suppressed),
                grouped(line.lost)
            )
        };
        format!(
            "{}\n{}",
            line("decisions", &balance.decisions),
            line("deeds of processes", &balance.processes)
        )
    }

    fn time(&self, time_ns: u64) -> String {
        // What was recorded before the start is not far before it.
        let since_start = time_ns.saturating_sub(self.start_ns);
        format!("{:.3}", since_start as f64 / 1e9)
    }

    /// A line of the four columns.
    fn columns(&self, style: Style, time: &str, what: &str, colour: Option<&str>, who: &str, details: &str) -> String {
        // As long as the longest there can be: "would drop" is said where nothing is blocked.
        let what_width = if self.observe { 10 } else { 5 };
        columns(style, (time, what, who, details), what_width, colour)
    }
}

fn columns(
    style: Style,
    (time, what, who, details): (&str, &str, &str, &str),
    what_width: usize,
    colour: Option<&str>,
) -> String {
    let Style::Pretty {
        width,
        colour: coloured,
    } = style
    else {
        return String::new();
    };
    // Names and arguments are whatever a process made of them, and are not to steer the terminal.
    let harmless = |text: &str| text.replace(char::is_control, "\u{fffd}");
    let (who, details) = (harmless(who), harmless(details));
    let head = format!("{time:>7}  {what:<what_width$}  {who:<20}  ");
    let mut line = match width {
        Some(width) => hanging(&head, &details, width),
        None => head + &details,
    };
    line.truncate(line.trim_end().len());
    match colour {
        Some(colour) if coloured => line.replacen(what, &format!("{colour}{what}{PLAIN}"), 1),
        _ => line,
    }
}

/// Words behind a head, on as many lines of `width` characters as they need; all but the first are indented.
fn hanging(head: &str, words: &str, width: usize) -> String {
    /// Below their column, unless that leaves too little room for words.
    const LEAST_ROOM: usize = 20;
    let head_width = head.chars().count();
    let indent = if head_width + LEAST_ROOM <= width {
        head_width
    } else {
        4
    };
    let mut text = head.to_owned();
    let mut column = head_width;
    for word in words.split_inclusive(' ') {
        // The space behind a word may hang over the edge.
        if column > indent && column + word.trim_end().chars().count() > width {
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        }
        text.push_str(word);
        column += word.chars().count();
    }
    text
}

fn who(comm: &str, pid: u32) -> String {
    format!("{comm}[{pid}]")
}

fn command_line(process: &Process) -> String {
    let mut line = process.exe.clone();
    for arg in &process.args {
        let is_plain = !arg.is_empty()
            && arg
                .chars()
                .all(|letter| !letter.is_whitespace() && !letter.is_control());
        let _ = if is_plain {
            write!(line, " {arg}")
        } else {
            write!(line, " {arg:?}")
        };
    }
    if process.args_cut {
        line.push_str(" … (cut)");
    }
    line
}

/// A span of time in a unit that keeps it short.
fn span(ns: u64) -> String {
    match ns {
        ..10_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        10_000_000..10_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_on_below_their_column_where_the_terminal_is_narrow() {
        let line = |width| {
            let style = Style::Pretty { width, colour: false };
            columns(
                style,
                ("0.1", "block", "curl[7]", "tcp → 192.0.2.1:23 by block-port"),
                5,
                Some(RED),
            )
        };
        let whole = "    0.1  block  curl[7]               tcp → 192.0.2.1:23 by block-port";
        assert_eq!(line(None), whole);
        assert_eq!(line(Some(70)), whole);
        assert_eq!(
            line(Some(69)),
            format!(
                "{}\n{}block-port",
                whole.trim_end_matches(" block-port"),
                " ".repeat(38)
            )
        );
        // No room beside what stands in front: the whole width below it.
        assert_eq!(
            line(Some(40)),
            "    0.1  block  curl[7]\n    tcp → 192.0.2.1:23 by block-port"
        );
    }

    #[test]
    fn verdicts_are_coloured_only_where_that_was_asked_for() {
        let coloured = Style::Pretty {
            width: None,
            colour: true,
        };
        let line = columns(coloured, ("0.1", "block", "block[7]", ""), 5, Some(RED));
        assert_eq!(line.matches('\x1b').count(), 2);
        assert!(line.contains("\x1b[31mblock\x1b[0m "), "{line:?}");
    }

    #[test]
    fn what_a_process_calls_itself_does_not_steer_the_terminal() {
        let plain = Style::Pretty {
            width: None,
            colour: false,
        };
        let line = columns(plain, ("0.1", "exec", "\x1b[2J\r[7]", "/tmp/a\nb"), 5, None);
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(
            line.contains("\u{fffd}[2J\u{fffd}[7]") && line.ends_with("/tmp/a\u{fffd}b"),
            "{line:?}"
        );
    }

    #[test]
    fn arguments_are_told_so_that_they_can_be_told_apart() {
        let process = Process {
            exe: "/bin/sh".into(),
            args: vec!["-c".into(), "sleep 1".into(), String::new()],
            args_cut: true,
            ..Process::default()
        };
        assert_eq!(command_line(&process), "/bin/sh -c \"sleep 1\" \"\" … (cut)");
    }

    #[test]
    fn spans_take_the_unit_that_keeps_them_short() {
        let cases = [
            (0, "0.0 ms"),
            (1_234_567, "1.2 ms"),
            (123_000_000, "123 ms"),
            (11_000_000_000, "11 s"),
        ];
        for (ns, text) in cases {
            assert_eq!(span(ns), text);
        }
    }
}
