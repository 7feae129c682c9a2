//! JSON, as RFC 8259 has it: no comments, no trailing commas.

use jsonc_parser::{
    CollectOptions, ParseOptions,
    ast::{ObjectPropName, Value as Ast},
    common::{Range, Ranged as _},
    parse_to_ast,
};

use super::lower_first;
use crate::tree::{Entry, MAX_DEPTH, Node, SyntaxError, Value, number};

const STRICT: ParseOptions = ParseOptions {
    allow_comments: false,
    allow_loose_object_property_names: false,
    allow_trailing_commas: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let parsed = parse_to_ast(text, &CollectOptions::default(), &STRICT).map_err(|error| SyntaxError {
        span: span(error.range()),
        message: lower_first(&error.kind().to_string()),
        help: None,
    })?;
    match parsed.value {
        Some(value) => node(value, 0),
        None => Ok(Node {
            span: 0..text.len(),
            value: Value::Null,
        }),
    }
}

fn node(ast: Ast<'_>, depth: usize) -> Result<Node, SyntaxError> {
    let span = span(ast.range());
    if depth > MAX_DEPTH {
        return Err(SyntaxError::too_deep(span));
    }
    let value = match ast {
        Ast::NullKeyword(_) => Value::Null,
        Ast::BooleanLit(literal) => Value::Bool(literal.value),
        Ast::NumberLit(literal) => number(literal.value),
        Ast::StringLit(literal) => Value::String(literal.value.into_owned()),
        Ast::Array(array) => {
            let elements = array.elements.into_iter().map(|element| node(element, depth + 1));
            Value::List(elements.collect::<Result<_, _>>()?)
        }
        Ast::Object(object) => {
            let entries = object.properties.into_iter().map(|property| {
                let (key, range) = match property.name {
                    ObjectPropName::String(name) => (name.value.into_owned(), name.range),
                    ObjectPropName::Word(name) => (name.value.to_owned(), name.range),
                };
                Ok(Entry {
                    key,
                    key_span: self::span(range),
                    node: node(property.value, depth + 1)?,
                })
            });
            Value::Map(entries.collect::<Result<_, _>>()?)
        }
    };
    Ok(Node { span, value })
}

fn span(range: Range) -> std::ops::Range<usize> {
    range.start..range.end
}
