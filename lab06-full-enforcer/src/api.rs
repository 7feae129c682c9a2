//! What the daemon and its clients say to each other, in JSON over HTTP. The same shapes are what `--json` prints.

use serde::{Deserialize, Serialize};

/// Where each thing is found.
pub mod path {
    /// The policy in force: get it, or post another one (`?dry_run=true` only tries it).
    pub const POLICY: &str = "/v1/policy";
    /// The sets of the policy in force; behind it, after a slash, the name of one: get its entries, or post a change.
    pub const SETS: &str = "/v1/sets";
    /// The mode: get it, or put another one.
    pub const MODE: &str = "/v1/mode";
    /// What is going on.
    pub const STATUS: &str = "/v1/status";
    /// What was counted.
    pub const STATS: &str = "/v1/stats";
}

/// How the mode is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeChange {
    /// Observe.
    Observe,
    /// Block.
    Block,
    /// The other one than now.
    Toggle,
}

/// Asks for a mode.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeRequest {
    /// Which.
    pub mode: ModeChange,
}

/// The mode in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeReport {
    /// `observe` or `block`.
    pub mode: String,
    /// Who says so: `command line`, `mode command` or `policy`.
    pub set_by: String,
}

/// What applying a policy has done, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The policy's name.
    pub policy: String,
    /// How many rules it has.
    pub rules: u64,
    /// The mode that is now in force, or would be.
    #[serde(flatten)]
    pub mode: ModeReport,
    /// The interfaces and cgroups that it names and that are not there.
    #[serde(default)]
    pub missing: Vec<String>,
    /// How many entries of sets, added by `enforcer set`, are kept.
    #[serde(default)]
    pub kept_entries: u64,
    /// How many entries of sets, added or removed by `enforcer set`, are so no more.
    #[serde(default)]
    pub forgotten_entries: u64,
    /// Whether it was only tried.
    pub dry_run: bool,
}

/// Whether an entry of a set is added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Added.
    Add,
    /// Removed.
    Remove,
}

/// Asks for a change of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRequest {
    /// Which.
    pub change: ChangeKind,
    /// The entry: a prefix without host bits, or an address.
    pub prefix: String,
    /// For how long, in milliseconds; without, for good.
    #[serde(default)]
    pub for_ms: Option<u64>,
}

/// What changing a set has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetChanged {
    /// Its name.
    pub set: String,
    /// The entry.
    pub prefix: String,
    /// What became of it.
    pub change: ChangeKind,
    /// For how long, in milliseconds; without, for good.
    pub for_ms: Option<u64>,
    /// How many entries the set has now.
    pub entries: u64,
    /// The rules that name the set.
    pub rules: Vec<String>,
}

/// A set of the policy in force, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSummary {
    /// Its name.
    pub set: String,
    /// The rules that name it.
    pub rules: Vec<String>,
    /// How many entries it has.
    pub entries: u64,
    /// How many of them were added by `enforcer set`.
    pub added: u64,
    /// How many were removed by `enforcer set`.
    pub removed: u64,
}

/// A set of the policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReport {
    /// Its name.
    pub set: String,
    /// The rules that name it.
    pub rules: Vec<String>,
    /// What is in it: what the policy says, then what was added.
    pub entries: Vec<SetEntry>,
    /// What the policy says is in it and was removed.
    pub removed: Vec<SetEntry>,
}

/// An entry of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetEntry {
    /// The prefix.
    pub prefix: String,
    /// Who says so: `policy` or `command`.
    pub by: String,
    /// For how many seconds more; without, for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
}

/// Why something was refused, a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Each with its mend.
    pub errors: Vec<String>,
}

/// What is going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The daemon's process id.
    pub process: u32,
    /// For how long it has been enforcing, in seconds.
    pub uptime_s: u64,
    /// The kernel, as `uname -r` has it.
    pub kernel: String,
    /// The name of the policy in force.
    pub policy: String,
    /// How many rules it has.
    pub rules: u64,
    /// How many policies have been put into force since the start, the first one included.
    pub applied: u64,
    /// The mode in force.
    #[serde(flatten)]
    pub mode: ModeReport,
    /// The interfaces and cgroups that the policy names and that are not there.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Where packets are decided about.
    pub hooks: Vec<HookStatus>,
    /// What has happened in the table of flows.
    #[serde(default)]
    pub flows: FlowEvents,
    /// All packets, by what became of them.
    #[serde(flatten)]
    pub total: Amounts,
}

/// What has happened in the table of flows since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEvents {
    /// How many flows have begun.
    pub created: u64,
    /// How many of them were proven: both ends have heard each other.
    pub established: u64,
    /// How many that were not have been forgotten for another one.
    pub evicted_half_open: u64,
    /// How many that were have been.
    pub evicted_established: u64,
}

/// Where packets are decided about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    /// `xdp-ingress`, `tc-ingress`, `tc-egress`, `cgroup-egress` or `cgroup-ingress`.
    pub hook: String,
    /// The interface, or the cgroup's folder.
    pub at: String,
    /// `native`, `generic`, `tcx`, `clsact` or `link`.
    pub attached_by: String,
}

/// Packets and bytes, counted from the IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// By what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// They passed.
    pub passed: Amount,
    /// They passed in observe mode, and would have been blocked otherwise.
    pub observed: Amount,
    /// They were blocked.
    pub dropped: Amount,
}

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The name of the policy in force.
    pub policy: String,
    /// The mode in force.
    #[serde(flatten)]
    pub mode: ModeReport,
    /// By rule: those in force in the order of matching, then those that have gone, as long as they are remembered.
    pub rules: Vec<RuleStats>,
    /// By hook and reason; a packet that a rule decided about is in both lists.
    pub reasons: Vec<ReasonStats>,
    /// By the way in which packets were malformed; those that did not occur are left out.
    pub malformed: Vec<MalformedStats>,
}

/// What was counted for a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStats {
    /// Its name.
    pub rule: String,
    /// `allow`, `block` or `log`; none for a rule that is not in force any more.
    pub action: Option<String>,
    /// How much.
    #[serde(flatten)]
    pub amounts: Amounts,
}

/// What was counted at a hook for a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonStats {
    /// `xdp-ingress`, `tc-ingress`, `tc-egress`, `cgroup-egress` or `cgroup-ingress`.
    pub hook: String,
    /// `rule`, `default`, `essential` or `malformed`.
    pub reason: String,
    /// How much.
    #[serde(flatten)]
    pub amounts: Amounts,
}

/// What was counted for a way of being malformed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MalformedStats {
    /// Which.
    pub malformed: String,
    /// How much, whatever became of it.
    #[serde(flatten)]
    pub amount: Amount,
}
