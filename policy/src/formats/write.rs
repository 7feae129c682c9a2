//! Writes a policy in any of the formats, as a person would.

use std::fmt::Write as _;

use super::json;
use crate::{
    model::Policy,
    source::Format,
    tree::{Entry, Node, Value},
};

/// Writes a policy. What it reads back to is the same policy.
pub fn write(policy: &Policy, format: Format) -> String {
    let json = serde_json::to_string_pretty(policy).expect("a policy has texts as keys and no numbers but integers");
    if format == Format::Json {
        return json + "\n";
    }
    // By way of JSON: it has the keys in the order of the types, which is the one that people want.
    let tree = json::parse(&json).expect("it was written by a library");
    let mut text = String::new();
    match format {
        Format::Json => {}
        Format::Yaml => yaml(&mut text, entries(&tree), 0),
        Format::Toml => toml(&mut text, entries(&tree)),
        Format::Hcl => hcl(&mut text, entries(&tree)),
    }
    text
}

fn entries(node: &Node) -> &[Entry] {
    match &node.value {
        Value::Map(entries) => entries,
        _ => &[],
    }
}

/// The longest line that a list or a table is written into.
const LINE: usize = 100;

/// Block style outside, flow style where it fits into a line.
fn yaml(text: &mut String, entries: &[Entry], indent: usize) {
    for entry in entries {
        let _ = write!(text, "{:indent$}{}:", "", yaml_key(&entry.key));
        yaml_value(text, &entry.node, indent, entry.key.len() + 2);
    }
}

fn yaml_value(text: &mut String, node: &Node, indent: usize, used: usize) {
    let flow = yaml_flow(node);
    let fits = indent + used + flow.len() <= LINE;
    match &node.value {
        Value::Map(entries) if !fits || (indent == 0 && entries.iter().any(|entry| is_table(&entry.node))) => {
            text.push('\n');
            yaml(text, entries, indent + 2);
        }
        Value::List(elements) if !fits || elements.iter().any(is_table) => {
            text.push('\n');
            for element in elements {
                match &element.value {
                    Value::Map(entries) => {
                        let mut block = String::new();
                        yaml(&mut block, entries, indent + 4);
                        // The dash takes the place of the first key's indentation.
                        let _ = write!(text, "{:indent$}  - {}", "", block.trim_start());
                    }
                    _ => {
                        let _ = writeln!(text, "{:indent$}  - {}", "", yaml_flow(element));
                    }
                }
            }
        }
        _ => {
            let _ = writeln!(text, " {flow}");
        }
    }
}

fn is_table(node: &Node) -> bool {
    matches!(&node.value, Value::Map(entries) if !entries.is_empty())
}

fn yaml_flow(node: &Node) -> String {
    match &node.value {
        Value::List(elements) => {
            let elements: Vec<String> = elements.iter().map(yaml_flow).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::Map(entries) if entries.is_empty() => "{}".to_owned(),
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|entry| format!("{}: {}", yaml_key(&entry.key), yaml_flow(&entry.node)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::String(string) if is_plain_in_yaml(string) => string.clone(),
        _ => scalar(node),
    }
}

fn yaml_key(key: &str) -> String {
    if is_plain_in_yaml(key) {
        key.to_owned()
    } else {
        quoted(key)
    }
}

/// Whether a text needs no quotes, in a block and inside of brackets: a word, an address or a prefix, a range, a rate.
fn is_plain_in_yaml(text: &str) -> bool {
    let starts_plainly = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let is_simple = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    // What YAML or one of its older versions takes for something else than a text.
    let is_word = |word: &str| text.eq_ignore_ascii_case(word);
    let is_special = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"]
        .into_iter()
        .any(is_word);
    // Numbers, also those of other bases and with exponents, and dates.
    let digits_first = text.starts_with(|c: char| c.is_ascii_digit());
    let is_known = text.contains('/') || text.matches('.').count() == 3 || is_port_range(text);
    starts_plainly && is_simple && !is_special && (!digits_first || is_known)
}

fn is_port_range(text: &str) -> bool {
    text.split_once('-').is_some_and(|(first, last)| {
        let is_number = |side: &str| !side.is_empty() && side.bytes().all(|byte| byte.is_ascii_digit());
        is_number(first) && is_number(last)
    })
}

/// A value without parts, as JSON has it; TOML and HCL have it alike, but for what [`quoted`] sees to.
fn scalar(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".to_owned(),
        Value::Bool(boolean) => boolean.to_string(),
        Value::Integer(integer) => integer.to_string(),
        Value::Other { text, .. } => text.clone(),
        Value::String(string) => quoted(string),
        Value::List(_) | Value::Map(_) => unreachable!("lists and tables are written by their format"),
    }
}

/// A text in double quotes, with the escapes that JSON, YAML, TOML and HCL share.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            // Also those that YAML does not take as they are, and its line ends.
            c if c.is_control() || ['\u{2028}', '\u{2029}', '\u{feff}'].contains(&c) => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Plain keys first, then tables by `[…]`, then lists of tables by `[[…]]`.
fn toml(text: &mut String, entries: &[Entry]) {
    for entry in entries.iter().filter(|entry| !is_section(&entry.node)) {
        let _ = writeln!(text, "{} = {}", toml_key(&entry.key), toml_value(&entry.node));
    }
    for entry in entries.iter().filter(|entry| is_section(&entry.node)) {
        if let Value::List(elements) = &entry.node.value {
            for element in elements {
                let _ = writeln!(text, "\n[[{}]]", toml_key(&entry.key));
                toml_keys(text, self::entries(element));
            }
        } else {
            let _ = writeln!(text, "\n[{}]", toml_key(&entry.key));
            toml_keys(text, self::entries(&entry.node));
        }
    }
}

fn toml_keys(text: &mut String, entries: &[Entry]) {
    for entry in entries {
        let _ = writeln!(text, "{} = {}", toml_key(&entry.key), toml_value(&entry.node));
    }
}

fn is_section(node: &Node) -> bool {
    match &node.value {
        Value::Map(_) => true,
        Value::List(elements) => !elements.is_empty() && elements.iter().all(is_table),
        _ => false,
    }
}

fn toml_value(node: &Node) -> String {
    match &node.value {
        Value::List(elements) => {
            let elements: Vec<String> = elements.iter().map(toml_value).collect();
            list(&elements)
        }
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|entry| format!("{} = {}", toml_key(&entry.key), toml_value(&entry.node)));
            table(&entries.collect::<Vec<_>>())
        }
        _ => scalar(node),
    }
}

fn toml_key(key: &str) -> String {
    let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if is_bare { key.to_owned() } else { quoted(key) }
}

/// Sets and rules as blocks, with their names as labels; everything else as in JSON.
fn hcl(text: &mut String, entries: &[Entry]) {
    let (blocks, keys): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|entry| is_section(&entry.node));
    let width = keys.iter().map(|entry| entry.key.len()).max().unwrap_or(0);
    for entry in keys {
        let _ = writeln!(text, "{:width$} = {}", entry.key, hcl_value(&entry.node));
    }
    for entry in blocks {
        match (entry.key.as_str(), &entry.node.value) {
            ("rules", Value::List(rules)) => {
                for rule in rules {
                    let name = rule.get("name").map_or(&Value::Null, |entry| &entry.node.value);
                    let Value::String(name) = name else { continue };
                    hcl_block(text, &format!("rules {}", hcl_quoted(name)), self::entries(rule));
                }
            }
            ("sets", Value::Map(sets)) => {
                for set in sets {
                    hcl_block(
                        text,
                        &format!("sets {}", hcl_quoted(&set.key)),
                        self::entries(&set.node),
                    );
                }
            }
            (key, _) => hcl_block(text, key, self::entries(&entry.node)),
        }
    }
}

fn hcl_block(text: &mut String, head: &str, entries: &[Entry]) {
    let is_rule = head.starts_with("rules ");
    let entries: Vec<&Entry> = entries.iter().filter(|entry| !is_rule || entry.key != "name").collect();
    if entries.is_empty() {
        let _ = writeln!(text, "\n{head} {{}}");
        return;
    }
    let _ = writeln!(text, "\n{head} {{");
    let width = entries.iter().map(|entry| entry.key.len()).max().unwrap_or(0);
    for entry in entries {
        let _ = writeln!(text, "  {:width$} = {}", entry.key, hcl_value(&entry.node));
    }
    text.push_str("}\n");
}

fn hcl_value(node: &Node) -> String {
    match &node.value {
        Value::List(elements) => {
            let elements: Vec<String> = elements.iter().map(hcl_value).collect();
            list(&elements)
        }
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|entry| format!("{} = {}", entry.key, hcl_value(&entry.node)));
            table(&entries.collect::<Vec<_>>())
        }
        Value::String(string) => hcl_quoted(string),
        _ => scalar(node),
    }
}

/// In HCL `${` and `%{` start what is to be computed, and are doubled where they are meant.
fn hcl_quoted(text: &str) -> String {
    quoted(text).replace("${", "$${").replace("%{", "%%{")
}

fn list(elements: &[String]) -> String {
    let line = elements.join(", ");
    if line.len() <= LINE {
        return format!("[{line}]");
    }
    let mut text = String::from("[\n");
    for element in elements {
        let _ = writeln!(text, "    {element},");
    }
    text + "]"
}

fn table(entries: &[String]) -> String {
    if entries.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{ {} }}", entries.join(", "))
    }
}
