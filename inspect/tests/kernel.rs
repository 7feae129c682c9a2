//! What `inspect` shows of the kernel's judgement.

mod objects;

use std::{path::Path, process::Command};

use objects::{PASS, UNCHECKED, WITH_MAP_AND_BRANCH, with_program};
use serde_json::Value;

fn output_of(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_inspect")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json_of(object: &Path) -> Value {
    serde_json::from_str(&output_of(&[object.to_str().unwrap(), "--json"])).unwrap()
}

testbed::kernel_tests! {
    fn an_accepted_program_has_its_figures() {
        let (_folder, object) = with_program(PASS);
        let shown = json_of(&object);
        let program = &shown["programs"][0];
        assert_eq!(program["verified_instructions"], 2);
        assert_eq!(program["translated_bytes"], 16);
        assert_eq!(program["stack_bytes"], serde_json::json!([0]));
        assert!(shown["not_verified"].is_null());
    }

    fn every_path_is_counted_and_the_map_is_measured() {
        let (_folder, object) = with_program(WITH_MAP_AND_BRANCH);
        let shown = json_of(&object);
        // The wide instruction counts once; the map's address is not zero, so one way is dead and not walked, but by
        // old verifiers (5.10 is one).
        let verified = shown["programs"][0]["verified_instructions"].as_u64();
        assert!(matches!(verified, Some(5 | 6)), "{verified:?}");
        assert!(shown["maps"][0]["measured_bytes"].as_u64().unwrap() >= 128);
    }

    fn a_rejected_program_is_shown_with_the_end_of_the_verifiers_log() {
        let (_folder, object) = with_program(UNCHECKED);
        let shown = output_of(&[object.to_str().unwrap()]);
        assert!(shown.contains("judge was rejected: Permission denied"), "{shown}");
        assert!(shown.contains("    invalid access to packet"), "{shown}");
    }

    fn nothing_is_left_in_the_kernel() {
        let (_folder, object) = with_program(WITH_MAP_AND_BRANCH);
        output_of(&[object.to_str().unwrap()]);
        let left = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .any(|program| program.name() == b"judge");
        assert!(!left);
    }
}
