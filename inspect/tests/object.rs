//! What `inspect` shows without a kernel: the object as it lies on disk.

mod objects;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use objects::{PASS, WITH_MAP_AND_BRANCH, with_program};
use serde_json::Value;

/// Runs `inspect` as a user who may load nothing, so that the outcome is the same for everybody.
fn inspect(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_inspect");
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--", program]);
        command
    } else {
        Command::new(program)
    };
    command.args(args).output().unwrap()
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

fn output_of(args: &[&str]) -> String {
    let output = inspect(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn error_of(args: &[&str]) -> String {
    let output = inspect(args);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "one line, no backtrace: {error}");
    error
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn sections_maps_and_programs_are_shown_and_what_is_left_out_is_said() {
    let (_folder, object) = with_program(PASS);
    let shown = output_of(&[text(&object)]);
    for line in [
        "licence GPL, no BTF",
        "  xdp           16",
        "  PACKETS  array    4      8       16                 128  -",
        "  judge  xdp      xdp           1             2",
        "Not verified: without root",
    ] {
        assert!(shown.contains(line), "no {line:?} in\n{shown}");
    }
}

#[test]
fn json_holds_the_same() {
    let (_folder, object) = with_program(WITH_MAP_AND_BRANCH);
    let shown: Value = serde_json::from_str(&output_of(&[text(&object), "--json"])).unwrap();
    assert_eq!(shown["licence"], "GPL");
    assert_eq!(shown["maps"][0]["name"], "PACKETS");
    assert_eq!(shown["maps"][0]["estimated_bytes"], 128);
    assert_eq!(shown["programs"][0]["name"], "judge");
    assert_eq!(shown["programs"][0]["instructions"], 6);
    assert!(shown["programs"][0]["verified_instructions"].is_null());
    assert!(shown["not_verified"].as_str().unwrap().starts_with("without root"));
}

#[test]
fn the_graph_has_a_node_for_each_block_and_names_the_map() {
    let (folder, object) = with_program(WITH_MAP_AND_BRANCH);
    let file = folder.path().join("graph.dot");
    output_of(&[text(&object), "--graph", text(&file)]);
    let graph = fs::read_to_string(file).unwrap();
    for line in [
        "label=\"judge\"",
        "p0_0 [label=\"    0: r1 = map PACKETS\\l    2: r0 = 2\\l    3: if r1 == 0x0 goto +1\\l\"]",
        "p0_0 -> p0_5 [label=yes]",
        "p0_0 -> p0_4 [label=no]",
        "p0_4 -> p0_5\n",
    ] {
        assert!(graph.contains(line), "no {line:?} in\n{graph}");
    }
}

#[test]
fn a_program_that_is_not_there_is_answered_with_those_that_are() {
    let (_folder, object) = with_program(PASS);
    let error = error_of(&[text(&object), "--program", "jugde"]);
    assert_eq!(error, "error: the object has no program \"jugde\"; it has judge\n");
}

#[test]
fn a_file_that_is_missing_or_no_object_or_for_another_machine_is_refused_in_one_line() {
    assert!(error_of(&["/nowhere/judge.o"]).starts_with("error: /nowhere/judge.o cannot be read: "));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    fs::write(&file, "no object").unwrap();
    assert!(error_of(&[text(&file)]).contains("is no object file"));

    let own = env!("CARGO_BIN_EXE_inspect");
    assert!(error_of(&[own]).contains("for another machine than eBPF"));
}
