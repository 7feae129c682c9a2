//! The guide's page on the language: its examples are policies, and no key and no code is missing.

use std::{fs, path::Path};

use enforcer_policy::{Folder, Format, diagnostic::Severity, read};

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../book/src/policy.md")).unwrap()
}

/// The blocks of the page, with their language.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let inside: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((language.to_owned(), inside.join("\n") + "\n"));
        }
    }
    blocks
}

#[test]
fn every_example_of_the_page_is_a_policy_without_a_warning() {
    let mut checked = 0;
    for (language, text) in blocks(&page()) {
        if text.starts_with("{{#include") {
            continue;
        }
        let format = Format::of(Path::new(&format!("example.{language}")));
        let format = format.unwrap_or_else(|| panic!("a block in {language:?}"));
        // Parts of a policy get what they lack.
        let text = if text.starts_with("- name:") {
            format!("rules:\n{text}")
        } else {
            text
        };
        let text = if text.contains("version") {
            text
        } else {
            format!("version: 1\nname: part\n{text}")
        };
        let reading = read("page", text.as_bytes(), format, &Folder(".".into()));
        assert!(reading.diagnostics.is_empty(), "{text}\n{}", reading.render(false));
        checked += 1;
    }
    assert!(checked >= 9, "{checked}");
}

#[test]
fn every_key_is_on_the_page() {
    let page = page();
    let schema = enforcer_policy::json_schema();
    let rules = schema["$defs"]["Rule"]["properties"].as_object().unwrap();
    let all = rules.keys().chain(schema["properties"].as_object().unwrap().keys());
    assert!(rules.len() >= 19);
    for key in all {
        assert!(
            page.contains(&format!("\n| `{key}` |")),
            "{key} is not in the page's tables"
        );
    }
}

#[test]
fn every_code_is_on_the_page() {
    let page = page();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = ["check.rs", "read.rs", "read/decode.rs"].map(|file| fs::read_to_string(folder.join(file)).unwrap());
    let mut found = 0;
    for source in &sources {
        // The first text behind each call that makes a diagnostic is its code.
        for call in ["Diagnostic::error(", "Diagnostic::warning(", "refused(name, "] {
            for (at, _) in source.match_indices(call) {
                let code = source[at + call.len()..].trim_start();
                let Some(code) = code.strip_prefix('"') else { continue };
                let code = code.split('"').next().unwrap();
                assert!(page.contains(&format!("`{code}`")), "{code} is not on the page");
                found += 1;
            }
        }
    }
    assert!(found > 30, "{found}");
    assert_eq!(
        Severity::Warning.max(Severity::Error),
        Severity::Warning,
        "errors sort first"
    );
}
