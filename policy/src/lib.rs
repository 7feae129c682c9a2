//! The policy of the enforcer.
//!
//! - [`model`] is the policy as a program sees it: plain data,
//! - [`read()`] reads it from YAML, TOML, JSON or HCL, and says all that is wrong with it, and where,
//! - [`mod@decide`] is what it means: the reference that every classifier is compared with,
//! - [`show`] and [`mod@diff`] tell people and programs what a policy is, and in what two of them differ.
//!
//! No eBPF and no system in here: it runs in the kernel's user space, in tests, in fuzzers and in a browser.
//!
//! ```
//! use enforcer_policy::{Format, NoFiles, Verdict, decide, model::Direction, packet, read};
//!
//! let text = "
//! version: 1
//! name: web-server
//! defaults: { ingress: deny }
//! rules:
//!   - name: web
//!     direction: ingress
//!     protocol: tcp
//!     destination_ports: [80, 443]
//!     action: allow
//! ";
//! let policy = read("web.yaml", text.as_bytes(), Format::Yaml, &NoFiles).policy.expect("it has no error");
//! let syn = packet(Direction::Ingress, "eth0").tcp("192.0.2.1:40000", "203.0.113.1:443");
//! let decision = decide(&policy, &syn, &Default::default(), &Default::default());
//! assert_eq!((decision.verdict, decision.rule_name(&policy)), (Verdict::Allow, "web"));
//! ```

mod check;
pub mod decide;
pub mod diagnostic;
pub mod diff;
pub mod formats;
pub mod model;
pub mod read;
pub mod show;
pub mod source;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod tree;

pub use crate::{
    decide::{
        Content, DecidedBy, Decision, Flow, Identity, Ip, Originator, Outcome, Packet, Reason, Transport, Verdict,
        decide, decide_at_hook, decide_at_socket, packet,
    },
    model::Policy,
    read::{Files, Folder, NoFiles, Reading, Refusal, read, read_path},
    source::Format,
};

/// The schema of policies for editors, as JSON Schema (draft 2020-12).
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Policy).to_value()
}
