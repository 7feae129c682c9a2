//! HCL: attributes, objects and lists as in the other formats, and blocks for those who prefer them.
//!
//! `defaults { … }` is a table; `sets "partners" { … }` (or `set`) one of the sets; each `rules "web" { … }` (or `rule`)
//! one of the rules, its label the name. Nothing is computed: no variables, no functions.

use std::ops::Range;

use hcl_edit::{
    Span as _,
    expr::{Expression, ObjectKey},
    structure::{Block, BlockLabel, Body, Structure},
    template::Element,
};

use super::lower_first;
use crate::tree::{Entry, MAX_DEPTH, Node, SyntaxError, Value, number};

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let body = hcl_edit::parser::parse_body(text).map_err(|error| {
        let at = error.location().offset();
        SyntaxError {
            span: at..at + 1,
            message: lower_first(error.message()),
            help: None,
        }
    })?;
    let span = body.span().unwrap_or(0..text.len());
    Ok(Node {
        span,
        value: Value::Map(entries(&body, 0)?),
    })
}

fn entries(body: &Body, depth: usize) -> Result<Vec<Entry>, SyntaxError> {
    let mut entries = Vec::new();
    for structure in body {
        match structure {
            Structure::Attribute(attribute) => entries.push(Entry {
                key: attribute.key.to_string(),
                key_span: attribute.key.span().unwrap_or_default(),
                node: node(&attribute.value, depth + 1)?,
            }),
            Structure::Block(block) => take_block(&mut entries, block, depth)?,
        }
    }
    Ok(entries)
}

fn take_block(entries: &mut Vec<Entry>, block: &Block, depth: usize) -> Result<(), SyntaxError> {
    let ident_span = block.ident.span().unwrap_or_default();
    let span = block.span().unwrap_or_else(|| ident_span.clone());
    if depth >= MAX_DEPTH {
        return Err(SyntaxError::too_deep(span));
    }
    let mut node = Node {
        span: span.clone(),
        value: Value::Map(self::entries(&block.body, depth + 1)?),
    };
    let label = match block.labels.as_slice() {
        [] => None,
        [label] => Some((label.as_str().to_owned(), label_span(label))),
        [_, second, ..] => {
            return Err(SyntaxError {
                span: label_span(second),
                message: "a second label".into(),
                help: Some("a block has one label at most: the name of a rule or a set".into()),
            });
        }
    };
    let ident = block.ident.as_str();
    match (ident, label, depth) {
        ("rule" | "rules", label, 0) => {
            if let (Some((name, label_span)), Value::Map(rule)) = (label, &mut node.value) {
                let name = Node {
                    span: label_span.clone(),
                    value: Value::String(name),
                };
                rule.insert(
                    0,
                    Entry {
                        key: "name".into(),
                        key_span: label_span,
                        node: name,
                    },
                );
            }
            match find(entries, "rules", &ident_span, Value::List(Vec::new())) {
                Value::List(rules) => rules.push(node),
                _ => return Err(twice(ident_span, "rules")),
            }
        }
        ("set" | "sets", Some((name, label_span)), 0) => {
            match find(entries, "sets", &ident_span, Value::Map(Vec::new())) {
                Value::Map(sets) => sets.push(Entry {
                    key: name,
                    key_span: label_span,
                    node,
                }),
                _ => return Err(twice(ident_span, "sets")),
            }
        }
        (_, Some((_, label_span)), _) => {
            return Err(SyntaxError {
                span: label_span,
                message: format!("a label on a block `{ident}`"),
                help: Some("rules and sets have labels, as in `rules \"web\" {`; remove this one".into()),
            });
        }
        (_, None, _) => entries.push(Entry {
            key: ident.to_owned(),
            key_span: ident_span,
            node,
        }),
    }
    Ok(())
}

/// The value of a key, which blocks of the same kind share.
fn find<'a>(entries: &'a mut Vec<Entry>, key: &str, span: &Range<usize>, empty: Value) -> &'a mut Value {
    let place = entries.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
        entries.push(Entry {
            key: key.to_owned(),
            key_span: span.clone(),
            node: Node {
                span: span.clone(),
                value: empty,
            },
        });
        entries.len() - 1
    });
    &mut entries[place].node.value
}

fn twice(span: Range<usize>, key: &str) -> SyntaxError {
    SyntaxError {
        span,
        message: format!("a block beside `{key} = …`, which is no list of blocks"),
        help: Some(format!("write all {key} as blocks, or all in `{key} = …`")),
    }
}

fn label_span(label: &BlockLabel) -> Range<usize> {
    label.span().unwrap_or_default()
}

fn node(expression: &Expression, depth: usize) -> Result<Node, SyntaxError> {
    let span = expression.span().unwrap_or_default();
    if depth > MAX_DEPTH {
        return Err(SyntaxError::too_deep(span));
    }
    let computed = |what: &str| SyntaxError {
        span: span.clone(),
        message: format!("{what}; nothing is computed in a policy"),
        help: Some("write the value itself; texts stand in quotes".into()),
    };
    let value = match expression {
        Expression::Null(_) => Value::Null,
        Expression::Bool(boolean) => Value::Bool(*boolean.value()),
        Expression::Number(literal) => number(&literal.value().to_string()),
        Expression::String(string) => Value::String(string.to_string()),
        Expression::HeredocTemplate(heredoc) => {
            let literals = heredoc.template.iter().map(|element| match element {
                Element::Literal(text) => Ok(text.as_str()),
                _ => Err(computed("a text with parts to be computed")),
            });
            Value::String(literals.collect::<Result<_, _>>()?)
        }
        Expression::Array(array) => {
            let elements = array.iter().map(|element| node(element, depth + 1));
            Value::List(elements.collect::<Result<_, _>>()?)
        }
        Expression::Object(object) => {
            let entries = object.iter().map(|(key, value)| {
                let text = match key {
                    ObjectKey::Ident(ident) => ident.to_string(),
                    ObjectKey::Expression(Expression::String(string)) => string.to_string(),
                    ObjectKey::Expression(Expression::Variable(variable)) => variable.to_string(),
                    ObjectKey::Expression(_) => return Err(computed("a key that is no text")),
                };
                Ok(Entry {
                    key: text,
                    key_span: key.span().unwrap_or_default(),
                    node: node(value.expr(), depth + 1)?,
                })
            });
            Value::Map(entries.collect::<Result<_, _>>()?)
        }
        Expression::UnaryOp(operation) => match (operation.operator.value(), &operation.expr) {
            (hcl_edit::expr::UnaryOperator::Neg, Expression::Number(literal)) => {
                number(&format!("-{}", literal.value()))
            }
            _ => return Err(computed("an operation")),
        },
        Expression::Variable(variable) => return Err(computed(&format!("{} is a variable", variable.value()))),
        Expression::StringTemplate(_) => return Err(computed("a text with parts to be computed")),
        Expression::FuncCall(_) => return Err(computed("a call of a function")),
        Expression::Parenthesis(_) => return Err(computed("parentheses")),
        Expression::Conditional(_) | Expression::Traversal(_) | Expression::BinaryOp(_) | Expression::ForExpr(_) => {
            return Err(computed("an expression"));
        }
    };
    Ok(Node { span, value })
}
