//! Any bytes are refused with a message that can be shown, or read as a policy that survives being written.

#![no_main]

use enforcer_policy::{Format, NoFiles, diff::diff, formats::write, read, show};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [format, rest @ ..] = bytes else { return };
    let format = Format::ALL[usize::from(*format) % Format::ALL.len()];
    let reading = read("fuzzed", rest, format, &NoFiles);
    reading.check_text(true);
    serde_json::to_string(&reading.check_json()).expect("it has texts as keys");
    assert_eq!(reading.policy.is_none(), reading.errors() > 0);
    let Some(policy) = reading.policy else { return };
    show::text(&policy);
    for format in Format::ALL {
        let text = write(&policy, format);
        let again = read("written", text.as_bytes(), format, &NoFiles);
        let same = again.policy.as_ref() == Some(&policy);
        assert!(same, "{format}:\n{text}\n{}", again.render(false));
        assert!(diff(&policy, &again.policy.unwrap_or(policy.clone())).is_empty());
    }
});
