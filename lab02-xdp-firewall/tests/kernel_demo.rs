//! The command in the demo, with the hosts and the traffic that `cargo xtask run lab02` shows it with.

use std::{collections::BTreeMap, env, ffi::OsString, process::Command, time::Duration};

use serde_json::Value;
use testbed::{
    Running,
    demo::{self, Demo, Traffic},
};

testbed::kernel_tests! {
    fn every_frame_of_the_fixed_traffic_meets_its_reason() {
        let shown = Shown::with(
            "every_frame_of_the_fixed_traffic_meets_its_reason",
            &["--block-ip", "192.0.2.3", "--block-port", "tcp/23", "--rate-limit", "8bit", "--burst", "20000"],
        );
        // amber: 8 pings, 40 questions, 5 times 6 packets of TCP; coral: 4 pings; ecru: 2 pings, 5 datagrams in 3
        // fragments; denim: as many packets of 46 bytes as 20,000 bytes hold.
        let passed = 8 + 40 + 30 + 4 + 2 + 15 + 434;
        let expected = [
            (("pass", "default"), passed),
            (("drop", "address"), 3),
            (("drop", "port"), 2),
            // The rest of the flood, and the ping behind it.
            (("drop", "rate-limit"), 1000 - 434 + 1),
            (("drop", "malformed"), 5),
        ];
        assert_eq!(shown.by_reason(), expected.map(|((verdict, reason), packets)| ((verdict.into(), reason.into()), packets)).into());
        shown.has_answered([("amber", 8, 8), ("blue", 0, 3), ("coral", 4, 4), ("denim", 0, 1), ("ecru", 2, 2)]);
    }

    fn a_blocked_address_stops_a_real_ping_and_no_other() {
        let name = "a_blocked_address_stops_a_real_ping_and_no_other";
        for (blocked, [blue, coral, ecru]) in [
            ("192.0.2.6", [3, 4, 0]),
            ("192.0.2.3/32", [0, 4, 2]),
            ("2001:db8:0:1::4", [3, 0, 2]),
            ("198.51.100.0/24", [3, 4, 2]),
        ] {
            let shown = Shown::with(name, &["--block-ip", blocked]);
            shown.has_answered([("amber", 8, 8), ("blue", blue, 3), ("coral", coral, 4), ("denim", 1, 1), ("ecru", ecru, 2)]);
        }
    }

    fn rules_of_the_users_take_the_place_of_the_demos() {
        let name = "rules_of_the_users_take_the_place_of_the_demos";
        let told = "You gave no rules, so these hold: --block-ip 192.0.2.3 --block-port tcp/23 ";
        let shown = Shown::with(name, &[]);
        assert!(shown.stderr.contains(told), "{}", shown.stderr);
        assert_eq!(shown.by_reason()[&("drop".into(), "address".into())], 3);
        let shown = Shown::with(name, &["--fragments=drop"]);
        assert!(!shown.stderr.contains("You gave no rules"), "{}", shown.stderr);
        let dropped: Vec<_> = shown.by_reason().into_iter().filter(|((verdict, _), _)| verdict == "drop").collect();
        assert_eq!(dropped, [(("drop".into(), "fragment".into()), 15), (("drop".into(), "malformed".into()), 5)]);
    }
}

/// Set in the process that is the demo.
const INNER: &str = "LAB02_DEMO";

/// What the demo's fixed traffic was shown as.
struct Shown {
    report: Value,
    stderr: String,
}

impl Shown {
    /// Runs the demo, as a process of its own: this test program once more, in the test `test`.
    fn with(test: &str, options: &[&str]) -> Self {
        if let Some(options) = env::var_os(INNER) {
            be_the_demo(&options);
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", test])
            .env(INNER, options.join(" "))
            .env_remove("RUST_LOG");
        let finished = Running::start(command).unwrap().wait(Duration::from_mins(1)).unwrap();
        assert!(finished.status.success(), "{finished:#?}");
        let last = finished.stdout.lines().rfind(|line| line.starts_with('{')).unwrap();
        Self {
            report: serde_json::from_str(last).unwrap(),
            stderr: finished.stderr,
        }
    }

    /// Packets by verdict and reason.
    fn by_reason(&self) -> BTreeMap<(String, String), u64> {
        let lines = self.report["by_reason"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        lines
            .map(|line| {
                (
                    (text(&line["verdict"]), text(&line["reason"])),
                    line["packets"].as_u64().unwrap(),
                )
            })
            .collect()
    }

    /// Compares the pings that were answered, by host, with those that should have been.
    #[track_caller]
    fn has_answered<const N: usize>(&self, expected: [(&str, u64, u64); N]) {
        let summary = self
            .stderr
            .split("Pings that the server answered:\n")
            .nth(1)
            .unwrap_or_else(|| panic!("{}", self.stderr));
        let told: Vec<(&str, u64, u64)> = summary
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [host, _address, answered, "of", sent] = words[..] else {
                    panic!("{line}")
                };
                (host, answered.parse().unwrap(), sent.parse().unwrap())
            })
            .collect();
        assert_eq!(told, expected, "{}", self.stderr);
    }
}

/// Runs the lab's program in the demo, and ends as it does.
fn be_the_demo(options: &std::ffi::OsStr) -> ! {
    let options = options.to_str().unwrap().split_whitespace();
    let program: Vec<OsString> = [env!("CARGO_BIN_EXE_lab02-xdp-firewall"), "--json", "--duration", "8s"]
        .into_iter()
        .chain(options)
        .map(OsString::from)
        .collect();
    let status = demo::run(Demo::find("lab02").unwrap(), Traffic::Fixed, &program).unwrap();
    std::process::exit(status.into());
}
