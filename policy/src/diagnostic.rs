//! What is wrong with a policy, where, and how to mend it; for a terminal and as JSON.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use crate::source::{Position, Source};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy cannot be used.
    Error,
    /// It can, and does something else than it seems to.
    Warning,
}

/// A place in one of the sources, and a few words on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The index of the source.
    pub source: usize,
    /// In bytes.
    pub span: Range<usize>,
    /// May be empty.
    pub text: String,
}

/// An error or a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What kind it is, in kebab case; stable, for programs.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// Where. `None` where there is no place: a file that cannot be read.
    pub label: Option<Label>,
    /// What else there is to see.
    pub related: Vec<Label>,
    /// How to mend it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error in the policy itself.
    pub(crate) fn error(code: &'static str, span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            label: Some(Label {
                source: 0,
                span,
                text: String::new(),
            }),
            related: Vec::new(),
            help: None,
        }
    }

    /// A warning about the policy itself.
    pub(crate) fn warning(code: &'static str, span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, span, message)
        }
    }

    /// With a few words on the place.
    pub(crate) fn label(mut self, text: impl Into<String>) -> Self {
        if let Some(label) = &mut self.label {
            label.text = text.into();
        }
        self
    }

    /// With how to mend it.
    pub(crate) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// With another place in the policy.
    pub(crate) fn related(mut self, span: Range<usize>, text: impl Into<String>) -> Self {
        self.related.push(Label {
            source: 0,
            span,
            text: text.into(),
        });
        self
    }
}

/// A diagnostic as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Json {
    /// `error` or `warning`.
    pub severity: Severity,
    /// What kind it is.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// Where; the keys are those of [`Place`].
    #[serde(flatten)]
    pub place: Option<Place>,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// What else there is to see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Place>,
}

/// A place as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// Of the first character behind it.
    pub end_line: usize,
    /// Of the first character behind it.
    pub end_column: usize,
    /// A few words on it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
}

impl Diagnostic {
    /// As JSON.
    pub fn json(&self, sources: &[Source]) -> Json {
        Json {
            severity: self.severity,
            code: self.code,
            message: self.message.clone(),
            place: self.label.as_ref().and_then(|label| place(label, sources)),
            help: self.help.clone(),
            related: self.related.iter().filter_map(|label| place(label, sources)).collect(),
        }
    }

    /// As rustc would show it, in lines that end with the last one's newline. `colour` is for a terminal that has some.
    pub fn render(&self, sources: &[Source], colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let message = visible(&self.message);
        let mut main = Group::with_title(level.primary_title(&message).id(self.code));
        // One snippet a source, in the order in which they are first named.
        let labels: Vec<(bool, &Label)> = self
            .label
            .iter()
            .map(|label| (true, label))
            .chain(self.related.iter().map(|label| (false, label)))
            .collect();
        let mut shown: Vec<usize> = Vec::new();
        for (_, label) in &labels {
            let Some(source) = sources.get(label.source) else {
                continue;
            };
            if shown.contains(&label.source) {
                continue;
            }
            shown.push(label.source);
            let in_source = labels.iter().filter(|(_, other)| other.source == label.source);
            main = main.element(snippet(source, in_source.copied()));
        }
        let help = self.help.as_deref().map(visible);
        if let Some(help) = &help {
            main = main.element(Level::HELP.message(help));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = renderer.render(&[main]);
        text.push('\n');
        text
    }
}

/// The lines around a place that are given to the renderer: it would copy the whole of a large file.
const CONTEXT_LINES: usize = 2;
/// A longer line is not shown: nobody could read it, and a terminal would be flooded.
const LONGEST_LINE: usize = 400;

fn snippet<'a>(
    source: &'a Source,
    labels: impl Iterator<Item = (bool, &'a Label)> + Clone,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let fitted = labels.clone().map(|(_, label)| source.fit(label.span.clone()));
    let first = fitted.clone().map(|span| span.start).min().unwrap_or(0);
    let last = fitted.map(|span| span.start).max().unwrap_or(0);
    let first_line = source.position(first).line.saturating_sub(CONTEXT_LINES).max(1);
    let last_line = source.position(last).line;
    let start = source.line(first_line).start;
    let end = source.line(last_line).end;
    let excerpt = &source.text[start..end];
    let too_long = excerpt.lines().any(|line| line.len() > LONGEST_LINE);
    let position = source.position(first);
    if too_long {
        return Snippet::source("")
            .line_start(position.line)
            .path(format!("{}:{}:{}", source.name, position.line, position.column));
    }
    let mut snippet = Snippet::source(excerpt).line_start(first_line).path(&source.name);
    for (primary, label) in labels {
        let span = source.fit(label.span.clone());
        // What goes over several lines is pointed at by its first one.
        let line_end = source.line(source.position(span.start).line).end;
        let end_of_span = span.end.min(line_end).max(span.start);
        let kind = if primary {
            AnnotationKind::Primary
        } else {
            AnnotationKind::Context
        };
        let annotation = kind.span(span.start - start..end_of_span - start);
        snippet = snippet.annotation(if label.text.is_empty() {
            annotation
        } else {
            annotation.label(visible(&label.text))
        });
    }
    snippet
}

fn place(label: &Label, sources: &[Source]) -> Option<Place> {
    let source = sources.get(label.source)?;
    let span = source.fit(label.span.clone());
    let (Position { line, column }, end) = (source.position(span.start), source.position(span.end));
    Some(Place {
        file: source.name.clone(),
        line,
        column,
        end_line: end.line,
        end_column: end.column,
        label: label.text.clone(),
    })
}

/// A text without what a terminal would obey.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c })
        .collect()
}
