//! What all formats have in common: values with the place where they stand.

use std::ops::Range;

/// The deepest nesting that is read. A policy has five levels.
pub const MAX_DEPTH: usize = 32;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Bytes of the source.
    pub span: Range<usize>,
    /// What stands there.
    pub value: Value,
}

/// A value of any format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: `null`, `~`, or a key without a value.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number, written in decimal digits without leading zeros.
    Integer(i64),
    /// Another number, or what a format has beyond: kept as it was written.
    Other {
        /// What it is, with its article.
        kind: &'static str,
        /// As it was written.
        text: String,
    },
    /// A text.
    String(String),
    /// A list.
    List(Vec<Node>),
    /// A table.
    Map(Vec<Entry>),
}

/// A key of a table and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Range<usize>,
    /// Its value.
    pub node: Node,
}

/// A fault of the syntax: nothing can be read behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
}

impl SyntaxError {
    /// What is nested too deep is told so.
    pub(crate) fn too_deep(span: Range<usize>) -> Self {
        Self {
            span,
            message: format!("nested deeper than {MAX_DEPTH} levels"),
            help: Some("a policy has no more than five".into()),
        }
    }
}

impl Node {
    /// The value of a key; of a key that is there twice, the first.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// A rule of the policy that this is.
    pub(crate) fn rule(&self, index: usize) -> Option<&Node> {
        match &self.get("rules")?.node.value {
            Value::List(rules) => rules.get(index),
            _ => None,
        }
    }

    /// Where a key of a rule stands, with its value; the rule's name, if it does not have the key.
    pub(crate) fn key_of_rule(&self, index: usize, key: &str) -> Range<usize> {
        let entry = self.rule(index).and_then(|rule| rule.get(key));
        entry.map_or_else(
            || self.name_of_rule(index),
            |entry| entry.key_span.start..entry.node.span.end.max(entry.key_span.end),
        )
    }

    /// Where a rule's name stands.
    pub(crate) fn name_of_rule(&self, index: usize) -> Range<usize> {
        let rule = self.rule(index);
        let name = rule.and_then(|rule| rule.get("name"));
        name.map(|entry| entry.node.span.clone())
            .or_else(|| rule.map(|rule| rule.span.clone()))
            .unwrap_or_default()
    }

    /// What kind of value it is, with its article.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Integer(_) => "a number",
            Value::Other { kind, .. } => kind,
            Value::String(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a table",
        }
    }
}

/// A number as it was written, in any format: an integer if it is in plain decimal.
pub(crate) fn number(text: &str) -> Value {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'));
    match text.parse() {
        Ok(integer) if is_plain => Value::Integer(integer),
        _ => Value::Other {
            kind: if is_plain {
                "too large a number"
            } else {
                "no whole number in decimal digits"
            },
            text: text.to_owned(),
        },
    }
}
