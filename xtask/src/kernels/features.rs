//! Which features depend on the kernel, by package: `kernels.toml`.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{cargo::Package, test::KERNEL};

/// The name of the file in a package's folder.
pub const FILE: &str = "kernels.toml";

/// What a package declares.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// The package.
    #[serde(skip)]
    pub name: String,
    /// What the tables call it.
    pub title: String,
    /// The features, in the order of the table.
    #[serde(rename = "feature")]
    pub features: Vec<Feature>,
}

/// A feature.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// What the table calls it; unique in its package.
    pub name: String,
    /// The identifiers on the features page, if it is one of those.
    #[serde(default)]
    pub ids: Vec<String>,
    /// The kernel tests that show it, out of the target `kernel`.
    pub tests: Vec<String>,
}

/// Those of all packages with tests on the kernel, in the order of their names.
pub fn read_all(packages: &[Package]) -> Result<Vec<Declared>> {
    let mut all = Vec::new();
    for package in packages {
        if package.has_target("test", KERNEL) && package.folder.join(FILE).is_file() {
            let mut declared = read(&package.folder.join(FILE))?;
            declared.name.clone_from(&package.name);
            all.push(declared);
        }
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

fn read(file: &Path) -> Result<Declared> {
    let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let declared: Declared =
        toml::from_str(&text).with_context(|| format!("{} cannot be understood", file.display()))?;
    let mut names = BTreeSet::new();
    for feature in &declared.features {
        if !names.insert(&feature.name) {
            bail!("{}: two features are called {:?}", file.display(), feature.name);
        }
        if feature.tests.is_empty() {
            bail!("{}: no test shows {:?}", file.display(), feature.name);
        }
    }
    Ok(declared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Declared> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn features_are_read_in_their_order() {
        let declared = read_text(
            "title = 'Lab 03'\n[[feature]]\nname = 'b'\ntests = ['t']\n[[feature]]\nname = 'a'\nids = ['F3']\ntests = ['t', 'u']\n",
        )
        .unwrap();
        let names: Vec<_> = declared.features.iter().map(|feature| feature.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(declared.features[1].ids, ["F3"]);
    }

    #[test]
    fn a_name_twice_a_feature_without_tests_and_an_unknown_key_are_refused() {
        let feature = "[[feature]]\nname = 'a'\n";
        for (text, cause) in [
            (
                format!("{feature}tests = ['t']\n{feature}tests = ['t']\n"),
                "two features are called \"a\"",
            ),
            (format!("{feature}tests = []\n"), "no test shows \"a\""),
            (format!("{feature}test = ['t']\n"), "cannot be understood"),
        ] {
            let error = read_text(&format!("title = 'x'\n{text}")).unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
        }
    }
}
