//! The policies in `examples/`: each is valid, without a warning, as the JSON Schema wants it, and does what it says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use enforcer_policy::{
    Flow, Format, Identity, Packet, Policy, Verdict, decide,
    model::Direction::{Egress, Ingress},
    packet, read_path,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn all() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| Format::of(path).is_some())
        .collect();
    paths.sort();
    assert!(paths.len() >= 8, "{paths:?}");
    paths
}

fn load(name: &str) -> Policy {
    let reading = read_path(&folder().join(name));
    assert!(reading.diagnostics.is_empty(), "{}", reading.render(false));
    reading.policy.unwrap()
}

fn verdict(policy: &Policy, packet: &Packet, identity: &Identity) -> (Verdict, String) {
    let decision = decide(policy, packet, &Flow::New, identity);
    (decision.verdict, decision.rule_name(policy).to_owned())
}

#[test]
fn every_example_is_valid_and_without_a_warning() {
    for path in all() {
        load(path.file_name().unwrap().to_str().unwrap());
    }
}

#[test]
fn an_example_says_the_same_in_every_format() {
    let yaml = load("web-server.yaml");
    if std::env::var_os("BLESS").is_some() {
        for (format, comment) in [
            (Format::Toml, "# The policy of web-server.yaml in TOML.\n"),
            (Format::Json, ""),
            (Format::Hcl, "# The policy of web-server.yaml in HCL.\n"),
        ] {
            let text = format!("{comment}{}", enforcer_policy::formats::write(&yaml, format));
            fs::write(folder().join(format!("web-server.{}", format.extension())), text).unwrap();
        }
    }
    for name in ["web-server.toml", "web-server.json", "web-server.hcl"] {
        assert_eq!(load(name), yaml, "{name}");
    }
}

#[test]
fn the_web_server_answers_on_its_ports_and_goes_out_for_updates() {
    let policy = load("web-server.yaml");
    let unknown = Identity::UNKNOWN;
    let from = |source: &str, port: u16| packet(Ingress, "eth0").tcp(source, &format!("192.0.2.80:{port}"));
    assert_eq!(
        verdict(&policy, &from("203.0.113.5:40000", 443), &unknown),
        (Verdict::RateLimit, "web".into())
    );
    assert_eq!(
        verdict(&policy, &from("203.0.113.66:40000", 443), &unknown),
        (Verdict::Block, "no-abuse".into())
    );
    assert_eq!(
        verdict(&policy, &from("192.0.2.9:40000", 22), &unknown),
        (Verdict::Allow, "ssh".into())
    );
    assert_eq!(
        verdict(&policy, &from("203.0.113.5:40000", 22), &unknown),
        (Verdict::Block, "default".into())
    );
    let out = packet(Egress, "eth0").tcp("192.0.2.80:40000", "203.0.113.5:443");
    let of = |uid| Identity {
        uid: Some(uid),
        ..Identity::UNKNOWN
    };
    assert_eq!(verdict(&policy, &out, &of(0)), (Verdict::Allow, "updates".into()));
    assert_eq!(verdict(&policy, &out, &of(33)), (Verdict::Block, "default".into()));
}

#[test]
fn the_workstation_may_go_anywhere_and_is_reached_from_home_alone() {
    let policy = load("workstation.yaml");
    let unknown = Identity::UNKNOWN;
    let out = |port: u16| packet(Egress, "wlan0").tcp("192.168.1.7:40000", &format!("203.0.113.5:{port}"));
    assert_eq!(
        verdict(&policy, &out(443), &unknown),
        (Verdict::Allow, "default".into())
    );
    assert_eq!(
        verdict(&policy, &out(25), &unknown),
        (Verdict::Block, "no-mail-but-by-the-relay".into())
    );
    let mdns = |source| packet(Ingress, "wlan0").udp(source, "224.0.0.251:5353");
    assert_eq!(
        verdict(&policy, &mdns("192.168.1.8:5353"), &unknown),
        (Verdict::Allow, "discovery".into())
    );
    assert_eq!(
        verdict(&policy, &mdns("203.0.113.5:5353"), &unknown),
        (Verdict::Block, "default".into())
    );
}

#[test]
fn the_database_is_reached_by_its_application_and_others_are_recorded() {
    let policy = load("database.yaml");
    let from = |source| packet(Ingress, "eth0").tcp(source, "192.0.2.32:5432");
    let decision = decide(&policy, &from("192.0.2.20:40000"), &Flow::New, &Identity::UNKNOWN);
    assert_eq!(
        (decision.verdict, decision.rule_name(&policy)),
        (Verdict::Allow, "queries")
    );
    let decision = decide(&policy, &from("203.0.113.5:40000"), &Flow::New, &Identity::UNKNOWN);
    assert_eq!(
        (decision.verdict, decision.rule_name(&policy)),
        (Verdict::Block, "default")
    );
    let logged: Vec<&str> = decision
        .logged_by
        .iter()
        .map(|index| policy.rules[*index].name.as_str())
        .collect();
    assert_eq!(logged, ["others-who-try"]);
}

#[test]
fn a_build_reaches_the_mirror_and_not_the_networks_inside() {
    let policy = load("ci-runner.yaml");
    let build = Identity {
        cgroup: Some("builds.slice/job-17.scope".into()),
        uid: Some(1000),
        gid: None,
    };
    let other = Identity {
        cgroup: Some("system.slice/sshd.service".into()),
        uid: Some(0),
        gid: None,
    };
    let to = |destination: &str| packet(Egress, "eth0").tcp("10.0.0.7:40000", destination);
    assert_eq!(
        verdict(&policy, &to("10.0.0.80:443"), &build),
        (Verdict::Allow, "mirror".into())
    );
    assert_eq!(
        verdict(&policy, &to("10.0.0.81:443"), &build),
        (Verdict::Block, "not-inside".into())
    );
    assert_eq!(
        verdict(&policy, &to("169.254.169.254:80"), &build),
        (Verdict::Block, "not-inside".into())
    );
    assert_eq!(
        verdict(&policy, &to("203.0.113.5:443"), &build),
        (Verdict::RateLimit, "upload".into())
    );
    assert_eq!(
        verdict(&policy, &to("10.0.0.81:443"), &other),
        (Verdict::Allow, "default".into())
    );
    let call = packet(Ingress, "eth0").tcp("10.0.0.9:40000", "10.0.0.7:22");
    assert_eq!(
        verdict(&policy, &call, &build),
        (Verdict::Block, "nobody-calls-a-build".into())
    );
    assert_eq!(verdict(&policy, &call, &other), (Verdict::Allow, "ssh".into()));
}

#[test]
fn deny_all_lets_essentials_pass_and_nothing_else() {
    let policy = load("deny-all.yaml");
    let unknown = Identity::UNKNOWN;
    let ping = packet(Ingress, "eth0").icmp("192.0.2.1", "192.0.2.2", 8, 0);
    assert_eq!(verdict(&policy, &ping, &unknown), (Verdict::Block, "default".into()));
    let solicitation = packet(Egress, "eth0").icmp("fe80::1", "ff02::1:ff00:2", 135, 0);
    assert_eq!(
        verdict(&policy, &solicitation, &unknown),
        (Verdict::Allow, "essential".into())
    );
}
