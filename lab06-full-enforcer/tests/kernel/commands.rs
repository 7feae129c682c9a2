//! The commands that talk to a running enforcer, and how it starts (A3, A9, A12, A13, F12, Z4, Z8).

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    thread,
};

use testbed::Running;

use crate::lab::{AT_CGROUP, Lab, PATIENCE};

testbed::listed_tests![
    status_tells_policy_mode_and_hooks,
    a_bad_policy_leaves_the_one_in_force,
    what_is_not_enforced_is_pointed_at,
    a_dry_run_changes_nothing,
    the_mode_of_the_command_line_holds,
    without_a_policy_everything_is_observed_and_allowed,
    each_hook_can_be_left_out,
    what_cannot_be_started_says_why_and_leaves_nothing,
    the_socket_is_for_root_and_its_group,
    what_is_no_request_is_refused,
];

const POLICY: &str = "
version: 1
name: web
rules:
  - { name: web-in, direction: ingress, protocol: tcp, destination_ports: [80, 443], action: allow }
";

fn status_tells_policy_mode_and_hooks() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", POLICY);
    let enforcer = lab.enforce(&policy, &[]);
    let status = lab.json(&["status", "--json"]);
    assert_eq!(status["policy"], "web");
    assert_eq!(status["rules"], 1);
    assert_eq!(
        (&status["mode"], &status["set_by"]),
        (&"observe".into(), &"policy".into())
    );
    assert_eq!(status["process"], enforcer.id());
    let hooks = status["hooks"].as_array().unwrap();
    assert_eq!(
        (&hooks[0]["hook"], &hooks[0]["at"]),
        (&"tc-ingress".into(), &"eth0".into())
    );
    let folder = lab.cgroup.path().display().to_string();
    assert_eq!(
        (&hooks[1]["hook"], &hooks[1]["at"]),
        (&"tc-egress".into(), &"eth0".into())
    );
    assert_eq!(
        (&hooks[2]["hook"], &hooks[2]["at"]),
        (&"cgroup-egress".into(), &folder.into())
    );
    let told = lab.done(&["status"]);
    assert!(
        told.contains("policy    web, 1 rule\n") && told.contains("tc-ingress at eth0 ("),
        "{told}"
    );

    // What is in force is shown as it can be applied again.
    for format in ["yaml", "toml", "json", "hcl"] {
        let shown = lab.done(&["policy", "show", "--as", format]);
        let again = lab.file(&format!("again.{format}"), &shown);
        assert_eq!(
            lab.done(&["policy", "diff", again.to_str().unwrap()]),
            "no difference for any packet\n"
        );
    }
    assert!(lab.done(&["policy", "show"]).contains("web-in"));
    assert!(
        lab.json(&["policy", "show", "--json"])
            .to_string()
            .contains("\"web-in\"")
    );
    assert!(!lab.done(&["policy", "show"]).contains("in force"));
    // Asked of the daemon, `explain` and `show` know its mode.
    lab.done(&["mode", "block"]);
    let told = lab.done(&["policy", "show"]);
    assert!(
        told.contains("in force  mode block (as set by `enforcer mode`"),
        "{told}"
    );
    let explain = [
        "policy",
        "explain",
        "--src",
        "192.0.2.1",
        "--dst",
        "192.0.2.2",
        "--proto",
        "tcp",
        "--dport",
        "80",
    ];
    let told = lab.json(&[&explain[..], &["--json"]].concat());
    assert_eq!((&told["rule"], &told["mode"]), (&"web-in".into(), &"block".into()));
}

fn a_bad_policy_leaves_the_one_in_force() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", POLICY);
    let _enforcer = lab.enforce(&policy, &AT_CGROUP);
    for (name, text, said) in [
        ("typo.yaml", POLICY.replace("action", "acton"), "acton"),
        ("syntax.yaml", POLICY.replace('}', ""), "error"),
        ("empty.yaml", String::new(), "error"),
        ("nested.yaml", nested_rules(), "the rules overlap in so many ways"),
        ("policy.txt", POLICY.to_owned(), "extension"),
    ] {
        let file = lab.file(name, &text);
        for dry_run in [&["--dry-run"][..], &[]] {
            let args = [&["policy", "apply", file.to_str().unwrap()], dry_run].concat();
            let error = lab.refused(&args, 1);
            assert!(error.contains(said), "{name}: {error}");
        }
        let error = lab.refused(&["policy", "check", file.to_str().unwrap()], 1);
        assert!(error.contains(said), "{name}: {error}");
    }
    let error = lab.refused(&["policy", "apply", "no-such.yaml"], 1);
    assert!(error.contains("no-such.yaml cannot be read"), "{error}");
    let status = lab.json(&["status", "--json"]);
    assert_eq!((&status["policy"], &status["applied"]), (&"web".into(), &1.into()));
}

/// Rules of which each overlaps with all others in another way.
fn nested_rules() -> String {
    let lengths = (1..=20).flat_map(|source| (1..=20).map(move |destination| (source, destination)));
    let rules = lengths.map(|(source, destination)| {
        format!(
            "  - name: rule-{source}-{destination}\n    direction: ingress\n    source: 0.0.0.0/{source}\n    destination: 0.0.0.0/{destination}\n    action: allow\n"
        )
    });
    format!("version: 1\nname: nested\nrules:\n{}", rules.collect::<String>())
}

fn what_is_not_enforced_is_pointed_at() {
    let lab = Lab::new();
    let file = lab.file(
        "identity.yaml",
        "version: 1
name: identity
rules:
  - name: jobs
    direction: ingress
    mac: \"02:00:00:00:00:01\"
    uid: 100
    action: block
",
    );
    let file = file.to_str().unwrap();
    let told = lab.refused(&["policy", "check", file], 1);
    assert!(
        told.contains("6 |     mac: \"02:00:00:00:00:01\"") && told.contains("^^^"),
        "{told}"
    );
    let finished = lab.finish(&["policy", "check", file, "--json"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((&report["valid"], &report["errors"]), (&false.into(), &1.into()));
    let places: Vec<_> = report["diagnostics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| found["line"].clone())
        .collect();
    assert_eq!(places, [6]);
    // By whoever asks the daemon without the command.
    let policy = lab.file("policy.yaml", POLICY);
    let _enforcer = lab.enforce(&policy, &AT_CGROUP);
    let body = r#"{"version":1,"name":"p","rules":[{"name":"r","direction":"ingress","mac":["02:00:00:00:00:01"],"uid":[5],"action":"block"}]}"#;
    let request = format!(
        "POST /v1/policy HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = ask(&lab.socket(), &request).unwrap();
    assert!(
        answer.contains(" 422 ") && answer.contains("rule r: mac beside cgroup, uid or gid is not enforced"),
        "{answer}"
    );
    assert_eq!(lab.json(&["status", "--json"])["applied"], 1);
}

fn a_dry_run_changes_nothing() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", POLICY);
    let folder = lab.cgroup.path().to_str().unwrap();
    let run = ["run", "--dry-run", "--iface", "eth0", "--cgroup", folder, "--policy"];
    let told = lab.done(&[&run[..], &[policy.to_str().unwrap()]].concat());
    assert!(
        told.starts_with(
            "would enforce policy web (1 rule) in observe mode at:\n  tc-ingress at eth0\n  tc-egress at eth0\n"
        ),
        "{told}"
    );
    assert!(
        told.ends_with("nothing was changed\n") && !lab.socket().exists(),
        "{told}"
    );

    let _enforcer = lab.enforce(&policy, &AT_CGROUP);
    let other = lab.file(
        "other.yaml",
        &POLICY.replace("name: web\n", "name: other\nmode: block\n"),
    );
    let applied = lab.json(&["policy", "apply", other.to_str().unwrap(), "--dry-run", "--json"]);
    assert_eq!(
        (&applied["policy"], &applied["mode"]),
        (&"other".into(), &"block".into())
    );
    assert_eq!(applied["dry_run"], true);
    let status = lab.json(&["status", "--json"]);
    assert_eq!((&status["policy"], &status["mode"]), (&"web".into(), &"observe".into()));
    let diff = lab.done(&["policy", "diff", other.to_str().unwrap()]);
    assert!(diff.contains("~ mode: observe → block\n"), "{diff}");
}

fn the_mode_of_the_command_line_holds() {
    let lab = Lab::new();
    let policy = lab.file(
        "policy.yaml",
        &POLICY.replace("name: web\n", "name: web\nmode: block\n"),
    );
    let _enforcer = lab.enforce(&policy, &["--observe", "--no-xdp", "--no-tc"]);
    let mode = lab.json(&["mode", "--json"]);
    assert_eq!(
        (&mode["mode"], &mode["set_by"]),
        (&"observe".into(), &"command line".into())
    );
    let error = lab.refused(&["mode", "toggle"], 1);
    assert!(
        error.starts_with("error: the mode stays observe: the enforcer was started with --observe"),
        "{error}"
    );
    lab.done(&["policy", "apply", policy.to_str().unwrap()]);
    assert_eq!(lab.json(&["mode", "--json"])["mode"], "observe");
}

fn without_a_policy_everything_is_observed_and_allowed() {
    let lab = Lab::new();
    let mut command = lab.command(&["run", "--no-cgroup"]);
    command.args(["--iface", "eth0"]);
    let enforcer = Running::start(command).unwrap();
    enforcer.wait_for("listening on", PATIENCE).unwrap();
    let status = lab.json(&["status", "--json"]);
    assert_eq!(
        (&status["policy"], &status["mode"]),
        (&"none".into(), &"observe".into())
    );
    assert_eq!(status["rules"], 0);
    assert!(enforcer.stderr().contains("warn: --no-cgroup: nobody knows who sends"));
}

fn each_hook_can_be_left_out() {
    let lab = Lab::new();
    let folder = lab.cgroup.path().to_str().unwrap().to_owned();
    for (args, expected) in [
        (
            vec!["run", "--no-xdp", "--no-tc", "--cgroup", &folder],
            &[
                "cgroup-egress",
                "cgroup-ingress",
                "connect4",
                "connect6",
                "sendmsg4",
                "sendmsg6",
            ][..],
        ),
        (
            vec!["run", "--no-tc", "--no-connect", "--cgroup", &folder],
            &["xdp-ingress", "cgroup-egress", "cgroup-ingress"],
        ),
        (
            vec!["run", "--no-xdp", "--no-connect", "--cgroup", &folder],
            &["tc-ingress", "tc-egress", "cgroup-egress", "cgroup-ingress"],
        ),
        // Every interface but lo.
        (vec!["run", "--no-cg"], &["tc-ingress", "tc-egress"]),
    ] {
        let enforcer = Running::start(lab.command(&args)).unwrap();
        enforcer.wait_for("listening on", PATIENCE).unwrap();
        let status = lab.json(&["status", "--json"]);
        let hooks = status["hooks"].as_array().unwrap();
        assert!(hooks.iter().map(|hook| &hook["hook"]).eq(expected), "{status:#}");
        enforcer.interrupt(PATIENCE).unwrap();
    }
}

fn what_cannot_be_started_says_why_and_leaves_nothing() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", POLICY);
    let policy = policy.to_str().unwrap();
    let folder = lab.cgroup.path().to_str().unwrap();
    for (args, status, said) in [
        (
            &["run", "--iface", "eth9", "--no-cgroup"][..],
            1,
            "error: there is no network interface \"eth9\" here; did you mean eth0",
        ),
        (
            &["run", "--no-tc", "--cgroup", "no/such"],
            1,
            "error: there is no cgroup ",
        ),
        (&["run", "--policy", "no-such.yaml"], 1, "no-such.yaml cannot be read"),
        (&["run", "--policy", "/"], 1, "/ is a folder, and no policy"),
        (
            &["run", "--no-xdp", "--no-tc", "--no-cgroup"],
            2,
            "error: --no-xdp, --no-tc and --no-cgroup leave no hook",
        ),
        (&["run", "--observe", "--block"], 2, "cannot be used with"),
        (
            &["run", "--no-xdp", "--no-tc", "--iface", "eth0"],
            2,
            "error: --iface is about XDP and TC",
        ),
        (&["run", "--no-tc", "--wire", "tc"], 2, "error: --no-tc leaves out"),
        (&["run", "--no-xdp", "--wire", "xdp"], 2, "cannot be used with"),
        (&["run", "--mode", "block"], 2, "unexpected argument"),
        (&["mode", "blok"], 2, "invalid value 'blok'"),
        (&["policy"], 2, "Usage"),
        (&["status"], 1, "error: no enforcer is listening on "),
        (&["policy", "apply", policy], 1, "error: no enforcer is listening on "),
    ] {
        let error = lab.refused(args, status);
        assert!(error.contains(said), "{args:?}: {error}");
        assert!(!lab.socket().exists(), "{args:?}");
    }

    // A second one leaves the first one alone.
    let _enforcer = lab.enforce(policy.as_ref(), &AT_CGROUP);
    let error = lab.refused(&["run", "--no-tc", "--cgroup", folder], 1);
    assert!(
        error.contains("an enforcer is listening on ") && error.contains("already"),
        "{error}"
    );
    assert_eq!(lab.json(&["status", "--json"])["policy"], "web");
}

fn the_socket_is_for_root_and_its_group() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", POLICY);
    // What a killed one has left is no hindrance.
    drop(UnixListener::bind(lab.socket()).unwrap());
    let _enforcer = lab.enforce(&policy, &AT_CGROUP);
    let metadata = fs::metadata(lab.socket()).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o660, 0));

    fs::set_permissions(lab.socket().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let status = |group| {
        as_nobody(group, || {
            ask(
                &lab.socket(),
                "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            )
        })
    };
    assert_eq!(status(NOBODY).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    // Also where the mode lets everybody connect, the enforcer does not.
    fs::set_permissions(lab.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let answer = status(NOBODY).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("this socket is for root, "),
        "{answer}"
    );
    let answer = status(metadata.gid()).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"policy\":\"web\""),
        "{answer}"
    );
}

const NOBODY: u32 = 65_534;

/// Does something as nobody, who is of this group, on a thread of its own.
fn as_nobody<T: Send>(group: u32, action: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let nobody = scope.spawn(|| {
            // The system calls, and not the functions of these names, which change all threads of the process.
            // SAFETY: they take numbers, and change the rights of this thread alone.
            let results = unsafe {
                [
                    libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
                    libc::syscall(libc::SYS_setresgid, group, group, group),
                    libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY),
                ]
            };
            assert_eq!(results, [0; 3]);
            action()
        });
        nobody.join().unwrap()
    })
}

fn ask(socket: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn what_is_no_request_is_refused() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", POLICY);
    let _enforcer = lab.enforce(&policy, &AT_CGROUP);
    let ask = |request: &str| ask(&lab.socket(), request).unwrap();
    let with_body = |method: &str, path: &str, body: &str| {
        let length = body.len();
        ask(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    };
    for (answer, status, said) in [
        (with_body("GET", "/v2/status", ""), 404, "there is nothing here"),
        (
            with_body("PUT", "/v1/mode", "{\"mode\": \"maybe\"}"),
            422,
            "unknown variant",
        ),
        (with_body("PUT", "/v1/mode", "not JSON"), 422, "\\\"toggle\\\""),
        (with_body("POST", "/v1/policy", "{\"version\": 1"), 422, "errors"),
        (
            with_body("POST", "/v1/policy?dry_run=perhaps", "{}"),
            400,
            "?dry_run=true",
        ),
        (with_body("DELETE", "/v1/policy", ""), 405, ""),
        (ask("hello\r\n\r\n"), 400, ""),
    ] {
        let first_line = answer.lines().next().unwrap();
        assert!(
            first_line.contains(&status.to_string()) && answer.contains(said),
            "{status} {said}: {answer}"
        );
    }
    assert!(with_body("GET", "/v1/status", "").contains("\"policy\":\"web\""));
}
