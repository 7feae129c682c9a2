//! Cgroups found, opened, made and entered.

use std::{fs, path::Path};

use lab04_cgroup_policy::cgroup::{CgroupError, Hierarchy};
use testbed::{Cgroup, Host, Result, Running};

use crate::client::PATIENCE;

testbed::listed_tests![
    cgroup2_is_found_where_it_is_mounted,
    a_cgroup_is_opened_by_any_of_its_names,
    a_cgroup_that_was_made_goes_and_one_that_was_there_stays,
    a_cgroup_in_use_outlives_whoever_made_it,
    what_is_no_cgroup_is_refused_with_those_that_are,
    a_command_starts_inside,
];

fn hierarchy() -> Hierarchy {
    Hierarchy::find().unwrap()
}

fn cgroup2_is_found_where_it_is_mounted() {
    let root = hierarchy().root().to_owned();
    // Version 1 has no such file.
    assert!(root.join("cgroup.controllers").is_file(), "{}", root.display());
    assert!(hierarchy().open(Path::new("/")).unwrap().is_present());
}

fn a_cgroup_is_opened_by_any_of_its_names() -> Result {
    let above = Cgroup::new("names")?;
    let below = above.child("below")?;
    let name = below.name()?;
    for called in [below.path().to_owned(), name.clone(), Path::new("/").join(&name)] {
        let opened = hierarchy().open(&called).unwrap();
        assert_eq!(opened.path(), below.path());
        assert_eq!(opened.name(), Path::new("/").join(&name));
        assert_eq!(opened.id(), below.id()?);
    }
    let opened = hierarchy().open(&name).unwrap();
    assert!(opened.is_present());
    drop(below);
    assert!(!opened.is_present());
    fs::create_dir(opened.path()).unwrap();
    assert!(!opened.is_present(), "made again, it is another");
    Ok(())
}

fn a_cgroup_that_was_made_goes_and_one_that_was_there_stays() -> Result {
    let above = Cgroup::new("made")?;
    let path = above.path().join("new");
    let made = hierarchy().open_or_make(&path).unwrap();
    let again = hierarchy().open_or_make(&path).unwrap();
    assert_eq!(made.id(), again.id());
    drop(again);
    assert!(path.is_dir());
    drop(made);
    assert!(!path.exists());
    Ok(())
}

fn a_cgroup_in_use_outlives_whoever_made_it() -> Result {
    let above = Cgroup::new("made")?;
    let path = above.path().join("new");
    let made = hierarchy().open_or_make(&path).unwrap();
    let host = Host::new("host")?;
    let mut command = host.command("sleep");
    command.arg("60");
    made.enrol(&mut command).unwrap();
    let sleeping = Running::start(command)?;
    drop(made);
    assert!(path.is_dir());
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap();
    assert_eq!(processes.trim(), sleeping.id().to_string());
    Ok(())
}

fn what_is_no_cgroup_is_refused_with_those_that_are() -> Result {
    let above = Cgroup::new("errors")?;
    let _children = [above.child("red")?, above.child("blue")?];
    let refused = |name: &Path| hierarchy().open(name).unwrap_err();
    let missing = above.path().join("green");
    assert_eq!(
        refused(&missing).to_string(),
        format!(
            "there is no cgroup {}; in {} there are blue, red",
            missing.display(),
            above.path().display()
        )
    );
    let deeper = hierarchy()
        .open_or_make(&missing.join("light"))
        .unwrap_err()
        .to_string();
    assert!(
        deeper.starts_with(&format!("there is no cgroup {}", missing.join("light").display())),
        "{deeper}"
    );
    for elsewhere in ["/usr/bin", "/proc/self"] {
        let error = refused(Path::new(elsewhere));
        assert!(matches!(error, CgroupError::Elsewhere { .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with(&format!("{elsewhere} is no cgroup of version 2; ")),
            "{error}"
        );
    }
    let climbing = hierarchy().open_or_make(Path::new("../../climbed")).unwrap_err();
    assert!(matches!(climbing, CgroupError::Elsewhere { .. }), "{climbing}");
    let file = refused(&above.path().join("cgroup.procs"));
    assert!(matches!(file, CgroupError::Elsewhere { .. }), "{file}");
    Ok(())
}

fn a_command_starts_inside() -> Result {
    let cgroup = Cgroup::new("inside")?;
    let opened = hierarchy().open(cgroup.path()).unwrap();
    let mut command = Host::new("host")?.command("cat");
    command.arg("/proc/self/cgroup");
    opened.enrol(&mut command).unwrap();
    let finished = Running::start(command)?.wait(PATIENCE)?;
    let expected = format!("0::{}\n", opened.name().display());
    assert!(finished.stdout.ends_with(&expected), "{finished:#?}");
    Ok(())
}
