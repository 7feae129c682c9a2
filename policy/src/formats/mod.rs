//! The formats: each becomes the same tree, and is written from it.

mod hcl;
mod json;
mod toml;
mod write;
mod yaml;

pub use self::write::write;
use crate::{
    source::Format,
    tree::{Node, SyntaxError},
};

/// Reads a text.
pub fn parse(format: Format, text: &str) -> Result<Node, SyntaxError> {
    match format {
        Format::Yaml => yaml::parse(text),
        Format::Toml => toml::parse(text),
        Format::Json => json::parse(text),
        Format::Hcl => hcl::parse(text),
    }
}

/// A parser's words as ours: without a capital in front.
fn lower_first(message: &str) -> String {
    let mut chars = message.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
