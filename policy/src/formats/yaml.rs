//! YAML 1.2 with its core schema: `yes`, `no`, `on` and `off` are texts.

use std::{collections::HashMap, ops::Range};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::lower_first;
use crate::tree::{Entry, MAX_DEPTH, Node, SyntaxError, Value, number};

/// How many values aliases may add. Each is a copy of what its anchor names, so that a few lines could fill the memory.
const MAX_COPIED: usize = 100_000;

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    Builder {
        text,
        places: Places::new(text),
        open: Vec::new(),
        anchors: HashMap::new(),
        copied: 0,
        document: None,
    }
    .build()
}

struct Builder<'a> {
    text: &'a str,
    places: Places,
    /// The collections around the next event, outermost first.
    open: Vec<Open>,
    /// What anchors name.
    anchors: HashMap<usize, Node>,
    copied: usize,
    document: Option<Node>,
}

/// A collection whose end has not come.
struct Open {
    start: usize,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    /// The entries, and the key that waits for its value.
    Map(Vec<Entry>, Option<Node>),
}

impl Builder<'_> {
    fn build(mut self) -> Result<Node, SyntaxError> {
        let mut parser = Parser::new_from_str(self.text);
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| {
                let at = self.places.byte(self.text, error.marker().index());
                self.syntax_error(at, error.info())
            })?;
            self.take(event, span)?;
        }
        Ok(self.document.unwrap_or(Node {
            span: 0..self.text.len(),
            value: Value::Null,
        }))
    }

    fn syntax_error(&self, at: usize, info: &str) -> SyntaxError {
        let rest = &self.text[at.min(self.text.len())..];
        let help = match rest.chars().next() {
            Some('@') => Some("put the name of a set into quotes, as in \"@partners\""),
            Some('\t') => Some("indent with spaces"),
            _ => None,
        };
        let length = rest.chars().next().map_or(0, char::len_utf8);
        SyntaxError {
            span: at..at + length,
            message: lower_first(info),
            help: help.map(str::to_owned),
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let span = self.places.byte(self.text, span.start.index())..self.places.byte(self.text, span.end.index());
        match event {
            Event::DocumentStart(_) if self.document.is_some() => Err(SyntaxError {
                span,
                message: "a second document in the same file".into(),
                help: Some("a policy is one document; remove the `---` or what is behind it".into()),
            }),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
            Event::Alias(anchor) => self.copy(anchor, span),
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag {
                    return Err(no_tags(span, &tag.to_string()));
                }
                let value = match style {
                    ScalarStyle::Plain => plain(&text),
                    _ => Value::String(text.into_owned()),
                };
                let node = Node { span, value };
                self.name(anchor, &node)?;
                self.put(node)
            }
            Event::SequenceStart(anchor, tag) => self.open(Kind::List(Vec::new()), anchor, span, tag.as_deref()),
            Event::MappingStart(anchor, tag) => self.open(Kind::Map(Vec::new(), None), anchor, span, tag.as_deref()),
            Event::SequenceEnd | Event::MappingEnd => self.close(span.end),
        }
    }

    fn open(
        &mut self,
        kind: Kind,
        anchor: usize,
        span: Range<usize>,
        tag: Option<&saphyr_parser::Tag>,
    ) -> Result<(), SyntaxError> {
        if let Some(tag) = tag {
            return Err(no_tags(span, &tag.to_string()));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(SyntaxError::too_deep(span));
        }
        self.open.push(Open {
            start: span.start,
            anchor,
            kind,
        });
        Ok(())
    }

    fn close(&mut self, end: usize) -> Result<(), SyntaxError> {
        let Some(Open { start, anchor, kind }) = self.open.pop() else {
            return Ok(());
        };
        let value = match kind {
            Kind::List(elements) => Value::List(elements),
            Kind::Map(entries, _) => Value::Map(entries),
        };
        // A block ends where the next thing starts; what is between is not part of it.
        let end = start + self.text.get(start..end).map_or(0, |text| text.trim_end().len());
        let node = Node {
            span: start..end,
            value,
        };
        self.name(anchor, &node)?;
        self.put(node)
    }

    fn put(&mut self, node: Node) -> Result<(), SyntaxError> {
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.document = Some(node),
            Some(Kind::List(elements)) => elements.push(node),
            Some(Kind::Map(entries, waiting)) => match waiting.take() {
                None => *waiting = Some(node),
                Some(key) => {
                    let Value::String(text) = key.value else {
                        return Err(SyntaxError {
                            message: format!("a key is a text, and this is {}", key.kind()),
                            span: key.span,
                            help: None,
                        });
                    };
                    entries.push(Entry {
                        key: text,
                        key_span: key.span,
                        node,
                    });
                }
            },
        }
        Ok(())
    }

    /// Keeps what an anchor names. A copy, which counts: anchors inside anchors would double with each.
    fn name(&mut self, anchor: usize, node: &Node) -> Result<(), SyntaxError> {
        if anchor > 0 {
            self.count(node, &node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(())
    }

    fn copy(&mut self, anchor: usize, span: Range<usize>) -> Result<(), SyntaxError> {
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            return Err(SyntaxError {
                span,
                message: "an alias inside of what it stands for".into(),
                help: None,
            });
        };
        self.count(&node, &span)?;
        if depth(&node) + self.open.len() > MAX_DEPTH {
            return Err(SyntaxError::too_deep(span));
        }
        // It is shown where it stands: what is wrong with it may be right elsewhere.
        self.put(Node { span, ..node })
    }

    fn count(&mut self, node: &Node, span: &Range<usize>) -> Result<(), SyntaxError> {
        self.copied += size(node);
        if self.copied > MAX_COPIED {
            return Err(SyntaxError {
                span: span.clone(),
                message: format!("anchors and aliases make more than {MAX_COPIED} values of this file"),
                help: Some("write a set, and its name in each rule".into()),
            });
        }
        Ok(())
    }
}

fn no_tags(span: Range<usize>, tag: &str) -> SyntaxError {
    SyntaxError {
        span,
        message: format!("the tag {tag} has no meaning here"),
        help: Some("remove it".into()),
    }
}

/// A scalar without quotes, by the core schema (YAML 1.2.2 section 10.3.2).
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        text if is_number(text) => number(text.strip_prefix('+').unwrap_or(text)),
        text => Value::String(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let radix = |prefix: &str, radix: u32| {
        text.strip_prefix(prefix)
            .is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)))
    };
    let is_float = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit())
        && digits.parse::<f64>().is_ok();
    is_float || radix("0x", 16) || radix("0o", 8) || matches!(digits, ".inf" | ".Inf" | ".INF") || text == ".nan"
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(elements) => elements.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|entry| size(&entry.node)).sum(),
        _ => 0,
    }
}

fn depth(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(elements) => elements.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => entries.iter().map(|entry| depth(&entry.node)).max().unwrap_or(0),
        _ => 0,
    }
}

/// The parser counts characters; this finds the bytes.
enum Places {
    /// Each character is a byte.
    Ascii,
    /// The byte of each [`Places::STEP`]th character.
    Other(Vec<usize>),
}

impl Places {
    const STEP: usize = 256;

    fn new(text: &str) -> Self {
        if text.is_ascii() {
            return Self::Ascii;
        }
        Self::Other(text.char_indices().step_by(Self::STEP).map(|(byte, _)| byte).collect())
    }

    fn byte(&self, text: &str, character: usize) -> usize {
        match self {
            Self::Ascii => character.min(text.len()),
            Self::Other(steps) => steps.get(character / Self::STEP).map_or(text.len(), |start| {
                let rest = &text[*start..];
                let within = rest.char_indices().nth(character % Self::STEP);
                start + within.map_or(rest.len(), |(byte, _)| byte)
            }),
        }
    }
}
