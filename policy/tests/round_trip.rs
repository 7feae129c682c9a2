//! F9: one schema in four formats. What is written in one of them is read back as the same policy, by both readers.

use enforcer_policy::{Format, NoFiles, Policy, formats::write, read, testing};
use proptest::prelude::*;

fn read_back(policy: &Policy, format: Format) -> Policy {
    let text = write(policy, format);
    let reading = read("policy", text.as_bytes(), format, &NoFiles);
    reading
        .policy
        .clone()
        .unwrap_or_else(|| panic!("{format}:\n{text}\n{}", reading.render(false)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_policy_survives_every_format(policy in testing::policy(6)) {
        for format in Format::ALL {
            prop_assert_eq!(&read_back(&policy, format), &policy, "{}:\n{}", format, write(&policy, format));
        }
    }

    #[test]
    fn serde_reads_what_the_reader_with_positions_reads(policy in testing::policy(6)) {
        let text = write(&policy, Format::Json);
        let by_serde: Policy = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(by_serde, policy);
    }
}

#[test]
fn a_policy_is_written_as_a_person_would() {
    let text = include_str!("../../examples/web-server.yaml");
    let policy = enforcer_policy::read_path(std::path::Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/web-server.yaml"
    )));
    let policy = policy.policy.unwrap();
    let written = write(&policy, Format::Yaml);
    // No key is written that was left out, and none is quoted that need not be.
    let lines = |text: &str| text.lines().filter(|line| !line.trim_start().starts_with('#')).count();
    assert!(lines(&written) <= lines(text) + 4, "{written}");
    assert!(written.contains("destination_ports: [80, 443]"), "{written}");
    assert!(written.contains("source: \"@abuse\""), "{written}");
    for format in Format::ALL {
        assert_looks_like(format, &write(&policy, format));
    }
}

/// What a reader of each format would expect to see.
fn assert_looks_like(format: Format, text: &str) {
    let expected = match format {
        Format::Yaml => "\nrules:\n  - name: ",
        Format::Toml => "\n[[rules]]\nname = \"",
        Format::Json => "\n  \"rules\": [\n    {\n      \"name\": \"",
        Format::Hcl => "\nrules \"",
    };
    assert!(text.contains(expected), "{format}:\n{text}");
}
