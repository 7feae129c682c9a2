//! nftables, for benchmarks to compare with.

use std::{
    fmt::Display,
    io::Write as _,
    process::{Command, Stdio},
};

use crate::{Error, Host, Result};

/// Whether the command `nft` is there.
pub fn is_installed() -> bool {
    let mut command = Command::new("nft");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Gives a host the rules that `nft -f` reads.
///
/// # Errors
///
/// If nft cannot be run, or refuses them.
pub fn apply(host: &Host, ruleset: &str) -> Result {
    let failed = |error| Error::system("running nft", error);
    let mut command = host.command("nft");
    let mut child = command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(ruleset.as_bytes()).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(std::io::Error::other("it refused the ruleset")))
    }
}

/// Rules that drop what comes in by an interface from prefixes of IPv4, at the earliest hook that nftables has; all others
/// are forgotten.
pub fn dropping<P: Display>(interface: &str, prefixes: &[P]) -> String {
    let elements: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    format!(
        "flush ruleset\n\
         table netdev firewall {{\n\
         set blocked {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }} }}\n\
         chain ingress {{\n\
         type filter hook ingress device \"{interface}\" priority 0; policy accept;\n\
         ip saddr @blocked drop\n\
         }}\n\
         }}\n",
        elements.join(", ")
    )
}
