//! Lists of prefixes: one a line, `#` starts a comment, empty lines are nothing.

use alloc::{borrow::ToOwned as _, string::String, vec::Vec};

use crate::{prefix_set::build::Prefix, value::WrittenPrefix};

/// The prefixes of a list, and how many of its lines had host bits, which are cleared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// In the order of the lines.
    pub prefixes: Vec<Prefix>,
    /// The number and the text of the first line that had host bits, if one had.
    pub first_with_host_bits: Option<(usize, String)>,
}

/// A line of a list that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Counted from 1.
    pub number: usize,
    /// Where its text starts: bytes from the start of the list.
    pub offset: usize,
    /// Without its comment and the spaces around it.
    pub text: &'a str,
    /// The prefix, or what is wrong with it.
    pub prefix: Result<WrittenPrefix, String>,
}

/// The lines of a list but for those that are empty or a comment alone.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut start = 0;
    let lines = bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .map(move |(index, line)| {
            let offset = start;
            start += line.len() + 1;
            (index + 1, offset, line)
        });
    lines.filter_map(|(number, offset, line)| {
        let Ok(line) = core::str::from_utf8(line) else {
            return Some(Line {
                number,
                offset,
                text: "",
                prefix: Err("this line is not text (UTF-8)".to_owned()),
            });
        };
        let before_comment = line.split('#').next().unwrap_or_default();
        let text = before_comment.trim();
        (!text.is_empty()).then(|| Line {
            number,
            offset: offset + before_comment.len() - before_comment.trim_start().len(),
            text,
            prefix: text.parse(),
        })
    })
}

/// Reads a list; an error is the number of a line, from 1, and what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<List, (usize, String)> {
    let mut list = List::default();
    for line in lines(bytes) {
        let written = line.prefix.map_err(|reason| (line.number, reason))?;
        if written.host_bits_of.is_some() && list.first_with_host_bits.is_none() {
            list.first_with_host_bits = Some((line.number, line.text.to_owned()));
        }
        list.prefixes.push(written.prefix);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec::Vec};

    use super::*;

    #[test]
    fn comments_empty_lines_and_carriage_returns_are_nothing() {
        let list = parse(b"# abuse\r\n\r\n192.0.2.1 # one\r\n  2001:db8::/32\n\n203.0.113.0/24").unwrap();
        let prefixes: Vec<String> = list.prefixes.iter().map(ToString::to_string).collect();
        assert_eq!(prefixes, ["192.0.2.1/32", "2001:db8::/32", "203.0.113.0/24"]);
    }

    #[test]
    fn an_empty_file_is_an_empty_list() {
        assert_eq!(parse(b"").unwrap(), List::default());
    }

    #[test]
    fn a_bad_line_is_named() {
        assert_eq!(parse(b"192.0.2.1\nbanana\n").unwrap_err().0, 2);
        assert_eq!(
            parse(b"192.0.2.1\n\n\n\xff\xfe\n").unwrap_err(),
            (4, "this line is not text (UTF-8)".into())
        );
        assert_eq!(parse(b"192.0.2.0/24 192.0.2.1").unwrap_err().0, 1);
    }

    #[test]
    fn host_bits_are_remembered_once() {
        let list = parse(b"192.0.2.1\n192.0.2.7/24\n192.0.2.9/24").unwrap();
        assert_eq!(list.first_with_host_bits, Some((2, "192.0.2.7/24".into())));
    }
}
