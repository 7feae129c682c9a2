//! TOML.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::lower_first;
use crate::tree::{Entry, MAX_DEPTH, Node, SyntaxError, Value, number};

pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let table = DeTable::parse(text).map_err(|error| SyntaxError {
        span: error.span().unwrap_or(0..0),
        message: lower_first(error.message()),
        help: None,
    })?;
    let span = table.span();
    Ok(Node {
        span,
        value: entries(table.get_ref(), 0)?,
    })
}

fn entries(table: &DeTable<'_>, depth: usize) -> Result<Value, SyntaxError> {
    let entries = table.iter().map(|(key, value)| {
        Ok(Entry {
            key: key.get_ref().to_string(),
            key_span: key.span(),
            node: node(value, depth + 1)?,
        })
    });
    let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
    // The parser sorts them by key; people want them as they stand in the file.
    entries.sort_by_key(|entry| entry.key_span.start);
    Ok(Value::Map(entries))
}

fn node(value: &Spanned<DeValue<'_>>, depth: usize) -> Result<Node, SyntaxError> {
    let span = value.span();
    if depth > MAX_DEPTH {
        return Err(SyntaxError::too_deep(span));
    }
    let value = match value.get_ref() {
        DeValue::String(string) => Value::String(string.to_string()),
        DeValue::Integer(integer) if integer.radix() == 10 => number(integer.as_str().trim_start_matches('+')),
        DeValue::Integer(integer) => Value::Other {
            kind: "no whole number in decimal digits",
            text: integer.as_str().to_owned(),
        },
        DeValue::Float(float) => Value::Other {
            kind: "no whole number in decimal digits",
            text: float.as_str().to_owned(),
        },
        DeValue::Boolean(boolean) => Value::Bool(*boolean),
        DeValue::Datetime(datetime) => Value::Other {
            kind: "a date",
            text: datetime.to_string(),
        },
        DeValue::Array(array) => {
            let elements = array.iter().map(|element| node(element, depth + 1));
            Value::List(elements.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => entries(table, depth)?,
    };
    Ok(Node { span, value })
}
