//! The guide as it was built: every link inside leads somewhere, and a reader's browser loads nothing from elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
    sync::LazyLock,
};

use anyhow::{Context as _, Result};
use regex::Regex;

use super::{Checked, Fault, relative};

static TAG: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"<([a-zA-Z][a-zA-Z0-9]*)\s[^>]*>").expect("a pattern"));
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"\s(href|src)="([^"]*)""#).expect("a pattern"));
static ID: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"\sid="([^"]*)""#).expect("a pattern"));
static LOADED_BY_CSS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]*)"#).expect("a pattern"));

/// A built page.
struct Page {
    text: String,
    ids: BTreeSet<String>,
}

/// Checks the pages below `built`.
pub(super) fn check(root: &Path, built: &Path) -> Result<Checked> {
    let mut files = Vec::new();
    collect(built, &mut files)?;
    let mut pages = BTreeMap::new();
    for file in files.iter().filter(|file| is(file, "html")) {
        let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let ids = ID.captures_iter(&text).map(|id| id[1].to_owned()).collect();
        pages.insert(file.clone(), Page { text, ids });
    }

    let mut faults = Vec::new();
    let mut followed = 0;
    for (file, page) in &pages {
        // What mdBook makes for the whole site: its links are the same as every page's, from another folder.
        if file
            .file_name()
            .is_some_and(|name| name == "404.html" || name == "toc.html")
        {
            continue;
        }
        for tag in TAG.captures_iter(&page.text) {
            for reference in REFERENCE.captures_iter(&tag[0]) {
                followed += 1;
                if let Some(text) = dead(file, &tag[1], &reference[2], &pages) {
                    faults.push(Fault::new(relative(root, file), 0, text));
                }
            }
        }
    }
    for file in files.iter().filter(|file| is(file, "css")) {
        let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        for loaded in LOADED_BY_CSS.captures_iter(&text) {
            let text = format!("loads {} from the network; ship it with the guide", &loaded[1]);
            faults.push(Fault::new(relative(root, file), 0, text));
        }
    }
    faults.sort();
    faults.dedup();
    let summary = format!("{followed} followed, nothing loaded from the network");
    Ok(Checked { summary, faults })
}

/// Why a reference from `file` is wrong; `None` if it is right.
fn dead(file: &Path, tag: &str, target: &str, pages: &BTreeMap<PathBuf, Page>) -> Option<String> {
    if target.starts_with("http://") || target.starts_with("https://") || target.starts_with("//") {
        // A link to elsewhere is the reader's own step; anything else is loaded with the page.
        return (tag != "a").then(|| format!("loads {target} from the network; ship it with the guide"));
    }
    if ["mailto:", "data:", "javascript:"]
        .iter()
        .any(|scheme| target.starts_with(scheme))
    {
        return None;
    }
    let (path, id) = target.split_once('#').unwrap_or((target, ""));
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let destination = match path {
        "" => file.to_owned(),
        path => without_dots(&file.with_file_name("").join(path)),
    };
    if !destination.exists() {
        return Some(format!("links to {target}, which does not exist"));
    }
    let page = pages.get(&destination)?;
    let found = id.is_empty() || page.ids.contains(id);
    (!found).then(|| format!("links to {target}, but that page has no place {id:?}"))
}

fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            component => plain.push(component),
        }
    }
    plain
}

fn is(file: &Path, extension: &str) -> bool {
    file.extension().is_some_and(|found| found == extension)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(page: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("index.html"), page).unwrap();
        fs::write(
            folder.path().join("sub/other.html"),
            r#"<h1 id="top">x</h1> <a href="../index.html">y</a>"#,
        )
        .unwrap();
        let checked = check(folder.path(), folder.path()).unwrap();
        checked.faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_that_lead_somewhere_are_right() {
        let page = r##"<p id="here">x <a href="#here">a</a> <a href="sub/other.html#top">b</a>
                       <a href="https://example.com/x">elsewhere</a></p>"##;
        assert_eq!(faults(page), Vec::<String>::new());
    }

    #[test]
    fn a_link_to_a_page_or_a_place_that_is_not_there_is_found() {
        let found = faults(r##"<a href="gone.html">a</a> <a href="sub/other.html#gone">b</a> <a href="#gone">c</a>"##);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(
            found
                .iter()
                .any(|fault| fault.contains("gone.html, which does not exist")),
            "{found:#?}"
        );
    }

    #[test]
    fn what_a_browser_would_load_from_the_network_is_found() {
        let found = faults(r#"<script src="https://example.com/x.js"></script> <img src="//example.com/x.png">"#);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].contains("from the network"), "{found:#?}");
    }
}
