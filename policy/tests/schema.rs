//! The JSON Schema for editors: whatever the reader takes, it takes, and it refuses what an editor should mark.

use std::{fs, path::Path, sync::LazyLock};

use enforcer_policy::{Format, NoFiles, formats::write, read, read_path, testing};
use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::{Value, json};

/// What is wrong with `policy` by the schema, as an editor would say it.
fn check(policy: &Value) -> Option<String> {
    static SCHEMA: LazyLock<Validator> =
        LazyLock::new(|| jsonschema::validator_for(&enforcer_policy::json_schema()).expect("a schema"));
    SCHEMA
        .iter_errors(policy)
        .next()
        .map(|error| format!("{}: {error}", error.instance_path()))
}

#[test]
fn the_schema_that_is_shipped_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policy.schema.json");
    let expected = format!("{:#}\n", enforcer_policy::json_schema());
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let shipped = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        shipped == expected,
        "the types have changed: BLESS=1 cargo test -p enforcer-policy --test schema writes policy.schema.json anew"
    );
}

#[test]
fn every_example_is_as_the_schema_wants_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut checked = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if Format::of(&path).is_none() {
            continue;
        }
        let policy = read_path(&path).policy.unwrap();
        assert_eq!(
            check(&serde_json::to_value(&policy).unwrap()),
            None,
            "{}",
            path.display()
        );
        if Format::of(&path) == Some(Format::Json) {
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(
                check(&serde_json::from_str(&text).unwrap()),
                None,
                "as it stands in the file"
            );
        }
        checked += 1;
    }
    assert!(checked >= 8, "{checked}");
}

#[test]
fn an_editor_marks_what_the_reader_refuses() {
    let with = |rule: Value| json!({ "version": 1, "name": "test", "rules": [rule] });
    let right = json!({ "name": "r", "protocol": "tcp", "destination_ports": [80, "8000-8999"], "action": "allow" });
    assert_eq!(check(&with(right.clone())), None);
    let changed = |key: &str, value: Value| {
        let mut rule = right.clone();
        rule[key] = value;
        with(rule)
    };
    let wrong = [
        json!({ "name": "test" }),
        json!({ "version": 2, "name": "test" }),
        json!({ "version": 1, "name": "a b" }),
        json!({ "version": 1, "name": "test", "moed": "block" }),
        json!({ "version": 1, "name": "test", "defaults": { "egress": "drop" } }),
        json!({ "version": 1, "name": "test", "sets": { "s": {} } }),
        json!({ "version": 1, "name": "test", "sets": { "s s": { "prefixes": [] } } }),
        json!({ "version": 1, "name": "test", "sets": { "s": { "prefixes": ["banana"] } } }),
        changed("port", json!(80)),
        changed("destination_ports", json!(0)),
        changed("destination_ports", json!(70_000)),
        changed("destination_ports", json!([])),
        changed("destination_ports", json!(80.5)),
        changed("protocol", json!("tpc")),
        changed("protocol", json!(256)),
        changed("source", json!("banana")),
        changed("direction", json!("both")),
        changed("mode", json!("block")),
        changed("action", json!("drop")),
        changed("action", json!({ "rate_limit": {} })),
        changed("action", json!({ "rate_limit": { "packets": "10" } })),
        changed(
            "action",
            json!({ "rate_limit": { "packets": "10/s", "bytes": "10/s" } }),
        ),
        changed("action", json!({ "rate_limit": { "packets": "10/s", "burst": 0 } })),
        changed("mac", json!("02-00")),
        changed("uid", json!(-1)),
        changed("state", json!("fresh")),
    ];
    for policy in wrong {
        assert!(check(&policy).is_some(), "{policy}");
        let reading = read("test.json", policy.to_string().as_bytes(), Format::Json, &NoFiles);
        assert!(reading.policy.is_none(), "{policy}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_policy_is_as_the_schema_wants_it(policy in testing::policy(6)) {
        let text = write(&policy, Format::Json);
        prop_assert_eq!(check(&serde_json::from_str(&text).unwrap()), None, "{}", text);
    }
}
