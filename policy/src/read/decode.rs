//! From the tree to the policy. All that is wrong is told, not the first thing alone.

#![expect(
    clippy::single_match_else,
    reason = "a value of the right kind and one of any other are read side by side"
)]

use std::{collections::BTreeMap, ops::Range as Span};

use crate::{
    diagnostic::Diagnostic,
    model::{
        Action, Address, DEFAULT_PRIORITY, DefaultVerdict, Defaults, Direction, MalformedVerdict, Mode, Order, Per,
        Policy, Range, Rate, RateLimit, Rule, RuleMode, Set, State,
    },
    text::{self, Number, Refusal},
    tree::{Entry, Node, Value},
};

/// Reads the policy; `None` if not even a part of it can be checked further.
pub(super) fn policy(tree: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<Policy> {
    let mut decoder = Decoder { diagnostics };
    decoder.policy(tree)
}

struct Decoder<'a> {
    diagnostics: &'a mut Vec<Diagnostic>,
}

/// A table whose keys are taken one by one.
struct Table<'t> {
    /// What it is, for messages: `a rule`.
    what: &'static str,
    span: Span<usize>,
    entries: Vec<&'t Entry>,
}

/// A list of the keys that a table may have, and of what people write for them elsewhere.
struct Keys {
    known: &'static [&'static str],
    /// Other words, and what to write.
    meant: &'static [(&'static str, &'static str)],
}

const POLICY: Keys = Keys {
    known: &[
        "version",
        "name",
        "mode",
        "match",
        "defaults",
        "essentials",
        "sets",
        "rules",
    ],
    meant: &[
        ("default", "defaults"),
        ("rule", "rules"),
        ("set", "sets"),
        ("ipsets", "sets"),
        ("groups", "sets"),
    ],
};
const DEFAULTS: Keys = Keys {
    known: &["ingress", "egress", "malformed"],
    meant: &[
        ("in", "ingress"),
        ("input", "ingress"),
        ("out", "egress"),
        ("output", "egress"),
    ],
};
const SET: Keys = Keys {
    known: &["prefixes", "file"],
    meant: &[
        ("addresses", "prefixes"),
        ("cidrs", "prefixes"),
        ("elements", "prefixes"),
        ("path", "file"),
    ],
};
const RULE: Keys = Keys {
    known: &[
        "name",
        "description",
        "priority",
        "mode",
        "direction",
        "protocol",
        "source",
        "destination",
        "source_ports",
        "destination_ports",
        "icmp_type",
        "icmp_code",
        "interface",
        "mac",
        "cgroup",
        "uid",
        "gid",
        "state",
        "action",
    ],
    meant: &[
        ("src", "source"),
        ("saddr", "source"),
        ("from", "source"),
        ("dst", "destination"),
        ("daddr", "destination"),
        ("to", "destination"),
        ("sport", "source_ports"),
        ("dport", "destination_ports"),
        ("port", "destination_ports"),
        ("ports", "destination_ports"),
        ("proto", "protocol"),
        ("iface", "interface"),
        ("user", "uid"),
        ("group", "gid"),
        ("verdict", "action"),
        ("comment", "description"),
    ],
};
const ACTION: Keys = Keys {
    known: &["rate_limit"],
    meant: &[("limit", "rate_limit"), ("ratelimit", "rate_limit")],
};
const RATE_LIMIT: Keys = Keys {
    known: &["packets", "bytes", "burst", "per"],
    meant: &[("pps", "packets"), ("rate", "packets"), ("bps", "bytes")],
};

impl<'t> Table<'t> {
    fn get(&self, key: &str) -> Option<&'t Entry> {
        self.entries.iter().find(|entry| entry.key == key).copied()
    }
}

impl Decoder<'_> {
    fn say(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// A table without unknown and repeated keys.
    fn table<'t>(&mut self, node: &'t Node, what: &'static str, keys: Option<&Keys>) -> Option<Table<'t>> {
        let Value::Map(entries) = &node.value else {
            let help = keys.map(|keys| format!("{what} is a table with the keys {}", keys.known.join(", ")));
            self.say(
                Diagnostic::error(
                    "type",
                    node.span.clone(),
                    format!("{what} is a table, and this is {}", node.kind()),
                )
                .help(help),
            );
            return None;
        };
        let mut table = Table {
            what,
            span: node.span.clone(),
            entries: Vec::with_capacity(entries.len()),
        };
        // By key, so that a table of many keys is not searched for each of them.
        let mut seen: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in entries {
            if let Some(keys) = keys
                && !keys.known.contains(&entry.key.as_str())
            {
                self.unknown(entry, what, keys);
            } else if let Some(first) = seen.get(entry.key.as_str()) {
                self.say(
                    Diagnostic::error(
                        "duplicate-key",
                        entry.key_span.clone(),
                        format!("the key `{}` is here twice", entry.key),
                    )
                    .related(first.key_span.clone(), "first here"),
                );
            } else {
                seen.insert(&entry.key, entry);
                table.entries.push(entry);
            }
        }
        Some(table)
    }

    fn unknown(&mut self, entry: &Entry, what: &str, keys: &Keys) {
        let lower = entry.key.to_lowercase();
        let meant = keys
            .meant
            .iter()
            .find_map(|(other, meant)| (*other == lower).then_some(*meant));
        let meant = meant.or_else(|| text::nearest(&entry.key, keys.known.iter().copied()));
        let help = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("the keys of {what} are {}", keys.known.join(", ")),
        };
        self.say(
            Diagnostic::error(
                "unknown-key",
                entry.key_span.clone(),
                format!("{what} has no key `{}`", entry.key),
            )
            .help(help),
        );
    }

    fn missing(&mut self, table: &Table<'_>, key: &str, help: &str) {
        self.say(
            Diagnostic::error(
                "missing-key",
                table.span.clone(),
                format!("{} needs the key `{key}`", table.what),
            )
            .help(help.to_owned()),
        );
    }

    fn refuse(&mut self, code: &'static str, node: &Node, refusal: Refusal) {
        self.say(Diagnostic::error(code, node.span.clone(), refusal.message).help(refusal.help));
    }

    fn wrong_type(&mut self, node: &Node, key: &str, wanted: &str) {
        let found = match &node.value {
            Value::Other { kind, text } => format!("{text} is {kind}"),
            _ => format!("this is {}", node.kind()),
        };
        self.say(Diagnostic::error(
            "type",
            node.span.clone(),
            format!("`{key}` is {wanted}, and {found}"),
        ));
    }

    fn string<'t>(&mut self, node: &'t Node, key: &str) -> Option<&'t str> {
        match &node.value {
            Value::String(text) => Some(text),
            _ => {
                self.wrong_type(node, key, "a text");
                None
            }
        }
    }

    /// A text that `parse` takes.
    fn text<T>(&mut self, entry: &Entry, code: &'static str, parse: impl Fn(&str) -> Result<T, Refusal>) -> Option<T> {
        let text = self.string(&entry.node, &entry.key)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(refusal) => {
                self.refuse(code, &entry.node, refusal);
                None
            }
        }
    }

    /// One of a few words.
    fn word<T: Copy>(&mut self, entry: &Entry, words: &[(&str, T)], meant: &[(&str, &str)]) -> Option<T> {
        self.word_of(&entry.node, &entry.key, words, meant)
    }

    fn word_of<T: Copy>(&mut self, node: &Node, key: &str, words: &[(&str, T)], meant: &[(&str, &str)]) -> Option<T> {
        let list = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let Value::String(text) = &node.value else {
            self.wrong_type(node, key, &format!("one of {list}"));
            return None;
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| word == text) {
            return Some(*value);
        }
        let lower = text.to_lowercase();
        let near = meant
            .iter()
            .find_map(|(other, meant)| (*other == lower).then_some(*meant))
            .or_else(|| text::nearest(&lower, words.iter().map(|(word, _)| *word)));
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write one of {list}"),
        };
        self.say(Diagnostic::error("value", node.span.clone(), format!("`{key}` cannot be {text:?}")).help(help));
        None
    }

    /// The elements of a list, or the one value that stands for a list of one.
    fn elements<'t>(&mut self, entry: &'t Entry) -> &'t [Node] {
        match &entry.node.value {
            Value::List(elements) if elements.is_empty() => {
                self.say(
                    Diagnostic::error(
                        "empty-list",
                        entry.node.span.clone(),
                        format!("`{}` is an empty list, which matches nothing", entry.key),
                    )
                    .help("leave the key out for anything".to_owned()),
                );
                &[]
            }
            Value::List(elements) => elements,
            _ => std::slice::from_ref(&entry.node),
        }
    }

    /// A list of values, each read by `read`.
    fn list<T>(&mut self, table: &Table<'_>, key: &str, mut read: impl FnMut(&mut Self, &Node) -> Option<T>) -> Vec<T> {
        let Some(entry) = table.get(key) else {
            return Vec::new();
        };
        let elements = self.elements(entry);
        elements.iter().filter_map(|node| read(self, node)).collect()
    }

    fn texts<T>(
        &mut self,
        table: &Table<'_>,
        key: &'static str,
        code: &'static str,
        parse: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Vec<T> {
        self.list(table, key, |decoder, node| {
            let text = decoder.string(node, key)?;
            match parse(text) {
                Ok(value) => Some(value),
                Err(refusal) => {
                    decoder.refuse(code, node, refusal);
                    None
                }
            }
        })
    }

    fn ranges<T: Number>(&mut self, table: &Table<'_>, key: &'static str, code: &'static str) -> Vec<Range<T>> {
        self.list(table, key, |decoder, node| {
            let read = match &node.value {
                Value::Integer(number) => text::number((*number).into()).map(Range::single),
                Value::String(text) => text::parse_range(text),
                _ => {
                    decoder.wrong_type(node, key, &format!("numbers or ranges such as {}", T::EXAMPLE));
                    return None;
                }
            };
            match read {
                Ok(range) => Some(range),
                Err(refusal) => {
                    decoder.refuse(code, node, refusal);
                    None
                }
            }
        })
    }

    fn policy(&mut self, tree: &Node) -> Option<Policy> {
        if tree.value == Value::Null {
            self.say(
                Diagnostic::error("empty", tree.span.start..tree.span.start, "the policy is empty")
                    .help("the least is `version: 1` and `name: …`".to_owned()),
            );
            return None;
        }
        let table = self.table(tree, "a policy", Some(&POLICY))?;
        match table.get("version") {
            None => self.missing(&table, "version", "write `version: 1`"),
            Some(entry) => match entry.node.value {
                Value::Integer(1) => {}
                Value::Integer(other) => self.say(
                    Diagnostic::error(
                        "version",
                        entry.node.span.clone(),
                        format!("version {other} is not known"),
                    )
                    .help("write 1, the only one there is".to_owned()),
                ),
                _ => self.wrong_type(&entry.node, "version", "the number 1"),
            },
        }
        let name = match table.get("name") {
            None => {
                self.missing(&table, "name", "a policy is known by its name in logs and statistics");
                None
            }
            Some(entry) => self.text(entry, "name", text::parse_name),
        };
        let mode = table.get("mode").and_then(|entry| {
            self.word(
                entry,
                &[("observe", Mode::Observe), ("block", Mode::Block)],
                &[
                    ("enforce", "block"),
                    ("enforcing", "block"),
                    ("permissive", "observe"),
                    ("monitor", "observe"),
                    ("audit", "observe"),
                ],
            )
        });
        let order = table.get("match").and_then(|entry| {
            self.word(
                entry,
                &[("priority", Order::Priority), ("specific", Order::Specific)],
                &[("first", "priority"), ("most-specific", "specific")],
            )
        });
        let defaults = table
            .get("defaults")
            .map(|entry| self.defaults(&entry.node))
            .unwrap_or_default();
        let essentials = table.get("essentials").and_then(|entry| match entry.node.value {
            Value::Bool(essentials) => Some(essentials),
            _ => {
                self.wrong_type(&entry.node, "essentials", "true or false");
                None
            }
        });
        let sets = table
            .get("sets")
            .map(|entry| self.sets(&entry.node))
            .unwrap_or_default();
        let rules = table
            .get("rules")
            .map(|entry| self.rules(&entry.node))
            .unwrap_or_default();
        Some(Policy {
            version: 1,
            // What is missing was told; the rest can still be checked.
            name: name.unwrap_or_default(),
            mode: mode.unwrap_or_default(),
            order: order.unwrap_or_default(),
            defaults,
            essentials: essentials.unwrap_or(true),
            sets,
            rules,
        })
    }

    fn defaults(&mut self, node: &Node) -> Defaults {
        const VERDICTS: [(&str, DefaultVerdict); 2] =
            [("allow", DefaultVerdict::Allow), ("deny", DefaultVerdict::Deny)];
        const MEANT: [(&str, &str); 6] = [
            ("block", "deny"),
            ("drop", "deny"),
            ("reject", "deny"),
            ("accept", "allow"),
            ("pass", "allow"),
            ("permit", "allow"),
        ];
        let Some(table) = self.table(node, "`defaults`", Some(&DEFAULTS)) else {
            return Defaults::default();
        };
        let mut verdict = |key| {
            let entry = table.get(key)?;
            self.word(entry, &VERDICTS, &MEANT)
        };
        let (ingress, egress) = (verdict("ingress"), verdict("egress"));
        let malformed = table.get("malformed").and_then(|entry| {
            self.word(
                entry,
                &[("drop", MalformedVerdict::Drop), ("allow", MalformedVerdict::Allow)],
                &[
                    ("deny", "drop"),
                    ("block", "drop"),
                    ("pass", "allow"),
                    ("accept", "allow"),
                ],
            )
        });
        Defaults {
            ingress: ingress.unwrap_or_default(),
            egress: egress.unwrap_or_default(),
            malformed: malformed.unwrap_or_default(),
        }
    }

    fn sets(&mut self, node: &Node) -> BTreeMap<String, Set> {
        let mut sets = BTreeMap::new();
        let Some(table) = self.table(node, "`sets`", None) else {
            return sets;
        };
        for entry in table.entries {
            if let Err(refusal) = text::parse_set_name(&entry.key) {
                self.say(Diagnostic::error("name", entry.key_span.clone(), refusal.message).help(refusal.help));
            }
            if let Some(set) = self.set(&entry.node) {
                sets.insert(entry.key.clone(), set);
            }
        }
        sets
    }

    fn set(&mut self, node: &Node) -> Option<Set> {
        let table = self.table(node, "a set", Some(&SET))?;
        if table.entries.is_empty() {
            self.say(
                Diagnostic::error("missing-key", node.span.clone(), "a set needs `prefixes` or `file`")
                    .help("write `prefixes: [203.0.113.0/24]` or `file: prefixes.txt`".to_owned()),
            );
        }
        let prefixes = match table.get("prefixes") {
            // A set may be empty, for `enforcer set add` to fill; a rule that names it is warned of.
            Some(Entry {
                node: Node {
                    value: Value::List(elements),
                    ..
                },
                ..
            }) if elements.is_empty() => Vec::new(),
            _ => self.texts(&table, "prefixes", "prefix", text::parse_prefix),
        };
        let file = table.get("file").and_then(|entry| {
            let file = self.string(&entry.node, "file")?;
            if file.is_empty() {
                self.say(Diagnostic::error(
                    "set-file",
                    entry.node.span.clone(),
                    "the name of the file is empty",
                ));
            }
            Some(file.to_owned())
        });
        Some(Set {
            prefixes,
            file,
            from_file: Vec::new(),
        })
    }

    fn rules(&mut self, node: &Node) -> Vec<Rule> {
        let Value::List(elements) = &node.value else {
            self.wrong_type(node, "rules", "a list");
            return Vec::new();
        };
        // One rule for each element, also where it is wrong: its place in the list finds it in the tree.
        elements.iter().map(|node| self.rule(node)).collect()
    }

    fn rule(&mut self, node: &Node) -> Rule {
        // Of what cannot be read, the action that the checks behind this have the least to say about.
        let mut rule = Rule::new("", Action::Block);
        let Some(table) = self.table(node, "a rule", Some(&RULE)) else {
            return rule;
        };
        match table.get("name") {
            None => self.missing(&table, "name", "statistics are kept by the names of rules"),
            Some(entry) => {
                if let Some(name) = self.text(entry, "name", text::parse_name) {
                    rule.name = name;
                }
            }
        }
        rule.description = table
            .get("description")
            .and_then(|entry| Some(self.string(&entry.node, "description")?.to_owned()));
        rule.priority = table
            .get("priority")
            .map_or(DEFAULT_PRIORITY, |entry| match entry.node.value {
                Value::Integer(number) => u32::try_from(number).unwrap_or_else(|_| {
                    let message = format!("{number} is no priority");
                    let help = format!(
                        "priorities are numbers from 0 to {}; the lowest is asked first",
                        u32::MAX
                    );
                    self.say(Diagnostic::error("priority", entry.node.span.clone(), message).help(help));
                    DEFAULT_PRIORITY
                }),
                _ => {
                    self.wrong_type(&entry.node, "priority", "a number");
                    DEFAULT_PRIORITY
                }
            });
        rule.mode = table.get("mode").and_then(|entry| self.rule_mode(entry));
        rule.direction = table.get("direction").and_then(|entry| self.direction(entry));
        rule.protocol = table.get("protocol").and_then(|entry| {
            let read = match &entry.node.value {
                Value::Integer(number) => text::protocol_number((*number).into()),
                Value::String(text) => text::parse_protocol(text),
                _ => {
                    self.wrong_type(&entry.node, "protocol", "tcp, udp, icmp, icmpv6 or a number");
                    return None;
                }
            };
            read.map_err(|refusal| self.refuse("protocol", &entry.node, refusal))
                .ok()
        });
        rule.source = self.addresses(&table, "source");
        rule.destination = self.addresses(&table, "destination");
        rule.source_ports = self.ranges(&table, "source_ports", "port");
        rule.destination_ports = self.ranges(&table, "destination_ports", "port");
        rule.icmp_type = self.ranges(&table, "icmp_type", "icmp");
        rule.icmp_code = self.ranges(&table, "icmp_code", "icmp");
        rule.interface = self.texts(&table, "interface", "interface", text::parse_interface);
        rule.mac = self.texts(&table, "mac", "mac", text::parse_mac);
        rule.cgroup = self.texts(&table, "cgroup", "cgroup", text::parse_cgroup);
        rule.uid = self.ranges(&table, "uid", "uid");
        rule.gid = self.ranges(&table, "gid", "gid");
        rule.state = self.list(&table, "state", |decoder, node| {
            decoder.word_of(
                node,
                "state",
                &[
                    ("new", State::New),
                    ("established", State::Established),
                    ("related", State::Related),
                    ("invalid", State::Invalid),
                ],
                &[],
            )
        });
        match table.get("action") {
            None => self.missing(
                &table,
                "action",
                "write `action: allow`, `block`, `log` or `{ rate_limit: … }`",
            ),
            Some(entry) => {
                if let Some(action) = self.action(&entry.node) {
                    rule.action = action;
                }
            }
        }
        rule
    }

    fn rule_mode(&mut self, entry: &Entry) -> Option<RuleMode> {
        if entry.node.value == Value::String("block".to_owned()) {
            self.say(
                Diagnostic::error(
                    "value",
                    entry.node.span.clone(),
                    "a rule's own mode can only be `observe`",
                )
                .help(
                    "leave the key out: what a rule blocks is dropped as soon as the policy's mode is `block`"
                        .to_owned(),
                ),
            );
            return None;
        }
        self.word(entry, &[("observe", RuleMode::Observe)], &[])
    }

    fn direction(&mut self, entry: &Entry) -> Option<Direction> {
        if let Value::String(text) = &entry.node.value
            && ["both", "any", "all"].contains(&text.to_lowercase().as_str())
        {
            self.say(
                Diagnostic::error(
                    "value",
                    entry.node.span.clone(),
                    format!("`direction` cannot be {text:?}"),
                )
                .help("leave the key out for both".to_owned()),
            );
            return None;
        }
        self.word(
            entry,
            &[("ingress", Direction::Ingress), ("egress", Direction::Egress)],
            &[
                ("in", "ingress"),
                ("input", "ingress"),
                ("inbound", "ingress"),
                ("out", "egress"),
                ("output", "egress"),
                ("outbound", "egress"),
            ],
        )
    }

    fn addresses(&mut self, table: &Table<'_>, key: &'static str) -> Vec<Address> {
        self.texts(table, key, "prefix", text::parse_address)
    }

    fn action(&mut self, node: &Node) -> Option<Action> {
        match &node.value {
            Value::Map(_) => {
                let table = self.table(node, "an action", Some(&ACTION))?;
                match table.get("rate_limit") {
                    Some(entry) => self.rate_limit(&entry.node).map(Action::RateLimit),
                    None => {
                        if table.entries.is_empty() {
                            self.missing(
                                &table,
                                "rate_limit",
                                "write `action: allow`, `block` or `log` otherwise",
                            );
                        }
                        None
                    }
                }
            }
            Value::String(text) if text == "rate_limit" => {
                self.refuse("value", node, text::one_rate());
                None
            }
            _ => self.word_of(
                node,
                "action",
                &[("allow", Action::Allow), ("block", Action::Block), ("log", Action::Log)],
                &[
                    ("accept", "allow"),
                    ("pass", "allow"),
                    ("permit", "allow"),
                    ("deny", "block"),
                    ("drop", "block"),
                    ("reject", "block"),
                    ("limit", "rate_limit"),
                ],
            ),
        }
    }

    fn rate_limit(&mut self, node: &Node) -> Option<RateLimit> {
        let table = self.table(node, "a rate limit", Some(&RATE_LIMIT))?;
        let rate = match (table.get("packets"), table.get("bytes")) {
            (Some(packets), None) => self.rate(packets, text::parse_packets).map(Rate::Packets),
            (None, Some(bytes)) => self.rate(bytes, text::parse_bytes).map(Rate::Bytes),
            (None, None) => {
                self.refuse("rate", node, text::one_rate());
                None
            }
            (Some(_), Some(bytes)) => {
                let refusal = text::one_rate();
                self.say(Diagnostic::error("rate", bytes.key_span.clone(), refusal.message).help(refusal.help));
                None
            }
        };
        let per = table.get("per").and_then(|entry| {
            self.word(
                entry,
                &[("rule", Per::Rule), ("source", Per::Source), ("flow", Per::Flow)],
                &[
                    ("src", "source"),
                    ("ip", "source"),
                    ("client", "source"),
                    ("connection", "flow"),
                ],
            )
        });
        let burst = table.get("burst").map(|entry| {
            let read = match &entry.node.value {
                Value::Integer(number) => text::burst((*number).into()),
                _ => {
                    self.wrong_type(&entry.node, "burst", "a number of packets or bytes");
                    return None;
                }
            };
            read.map_err(|refusal| self.refuse("rate", &entry.node, refusal)).ok()
        });
        let rate = rate?;
        Some(RateLimit {
            rate,
            burst: match burst {
                None => rate.default_burst(),
                Some(burst) => burst?,
            },
            per: per.unwrap_or_default(),
        })
    }

    fn rate(&mut self, entry: &Entry, parse: impl Fn(&str) -> Result<u64, Refusal>) -> Option<u64> {
        if let Value::Integer(number) = entry.node.value {
            let help = format!("write what it is a second of: {number}/s");
            self.say(
                Diagnostic::error(
                    "rate",
                    entry.node.span.clone(),
                    format!("the rate {number} has no unit"),
                )
                .help(help),
            );
            return None;
        }
        self.text(entry, "rate", parse)
    }
}
