//! The labs, found by their folders, and the names by which a user may call them.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{usage::UsageError, workspace::Workspace};

/// A lab: a folder `labNN-name`, whose loader is the package of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lab {
    /// The name of the folder and of the loader's package.
    pub name: String,
    /// The lab's folder.
    pub folder: PathBuf,
}

impl Lab {
    /// `lab01` of `lab01-count-packets`.
    pub fn short_name(&self) -> &str {
        self.name.split('-').next().unwrap_or(&self.name)
    }
}

/// Every lab of the workspace, in their order.
pub fn all(workspace: &Workspace) -> Result<Vec<Lab>> {
    let root = workspace.root();
    let mut labs = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("{} cannot be read", root.display()))? {
        let folder = entry?.path();
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if name.starts_with("lab") && folder.join("Cargo.toml").is_file() {
            labs.push(Lab {
                name: name.to_owned(),
                folder,
            });
        }
    }
    labs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(labs)
}

/// The lab that the user calls `wanted`: its number as in `lab01`, or the name of its folder.
pub fn find(workspace: &Workspace, wanted: &str) -> Result<Lab> {
    let labs = all(workspace)?;
    let wanted = wanted.trim_end_matches('/');
    match labs.iter().find(|lab| lab.name == wanted || lab.short_name() == wanted) {
        Some(lab) => Ok(lab.clone()),
        None => Err(UsageError(unknown(&labs, wanted)).into()),
    }
}

fn unknown(labs: &[Lab], wanted: &str) -> String {
    if labs.is_empty() {
        return format!("there is no lab {wanted:?}: this workspace has none");
    }
    let nearest = labs
        .iter()
        .flat_map(|lab| [lab.short_name(), lab.name.as_str()])
        .map(|name| (strsim::damerau_levenshtein(&wanted.to_lowercase(), name), name))
        .filter(|(distance, name)| *distance <= name.len() / 3)
        .min();
    let known = labs.iter().map(|lab| lab.name.as_str()).collect::<Vec<_>>().join(", ");
    match nearest {
        Some((_, name)) => format!("there is no lab {wanted:?}; did you mean {name}? The labs are: {known}"),
        None => format!("there is no lab {wanted:?}; the labs are: {known}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace_with(names: &[&str]) -> (tempfile::TempDir, Workspace) {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("Cargo.toml"), "").unwrap();
        }
        let workspace = Workspace::at(folder.path());
        (folder, workspace)
    }

    #[test]
    fn a_lab_is_found_by_its_number_and_by_its_folder() {
        let (_folder, workspace) = workspace_with(&["lab02-xdp-firewall", "lab01-count-packets", "testbed"]);
        for wanted in ["lab02", "lab02-xdp-firewall", "lab02-xdp-firewall/"] {
            assert_eq!(find(&workspace, wanted).unwrap().name, "lab02-xdp-firewall");
        }
    }

    #[test]
    fn labs_come_in_order_and_other_folders_are_none() {
        let (folder, workspace) = workspace_with(&["lab02-xdp-firewall", "lab01-count-packets", "testbed"]);
        fs::create_dir(folder.path().join("lab09-without-manifest")).unwrap();
        let names: Vec<_> = all(&workspace).unwrap().into_iter().map(|lab| lab.name).collect();
        assert_eq!(names, ["lab01-count-packets", "lab02-xdp-firewall"]);
    }

    #[test]
    fn a_typo_is_answered_with_the_nearest_name_and_is_a_misuse() {
        let (_folder, workspace) = workspace_with(&["lab01-count-packets", "lab02-xdp-firewall"]);
        let error = find(&workspace, "lab01-cuont-packets").unwrap_err();
        assert!(error.is::<UsageError>());
        assert_eq!(
            error.to_string(),
            "there is no lab \"lab01-cuont-packets\"; did you mean lab01-count-packets? \
             The labs are: lab01-count-packets, lab02-xdp-firewall"
        );
    }

    #[test]
    fn what_resembles_no_lab_is_answered_with_all_of_them() {
        let (_folder, workspace) = workspace_with(&["lab01-count-packets"]);
        assert_eq!(
            find(&workspace, "enforcer").unwrap_err().to_string(),
            "there is no lab \"enforcer\"; the labs are: lab01-count-packets"
        );
    }
}
