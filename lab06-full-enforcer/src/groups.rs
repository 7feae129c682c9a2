//! Whether groups can be kept with sockets, for rules that name them.

use std::net::{Ipv4Addr, UdpSocket};

use aya::{Ebpf, maps::SkStorage};
use enforcer_policy::{Refusal, model::Policy};

use crate::compile::CannotEnforce;

/// Whether this kernel gives storage to sockets, tried with one. From Linux 7 on it does on processors only that can exchange
/// sixteen bytes at once (`kmalloc_nolock` in `mm/slub.c`), which some emulators cannot.
pub fn are_kept(ebpf: &mut Ebpf) -> bool {
    let map = ebpf.map_mut("SOCKET_GROUPS");
    let Some(Ok(mut storage)) = map.map(SkStorage::<_, u32>::try_from) else {
        return false;
    };
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    socket.is_ok_and(|socket| storage.insert(&socket, 0, 0).is_ok())
}

/// Refuses a policy with groups where none are kept.
pub fn check(policy: &Policy, are_kept: bool) -> Result<(), CannotEnforce> {
    let rules = policy.rules.iter().enumerate();
    let causes = rules.filter(|(_, rule)| !are_kept && !rule.gid.is_empty());
    let causes: Vec<Refusal> = causes
        .map(|(index, rule)| Refusal {
            rule: Some(index),
            key: Some("gid"),
            message: format!(
                "rule {}: gid cannot be enforced here: this kernel keeps nothing with sockets",
                rule.name
            ),
            help: "from Linux 7 on, the processor has to have cmpxchg16b for that; decide by uid or cgroup".into(),
        })
        .collect();
    if causes.is_empty() {
        Ok(())
    } else {
        Err(CannotEnforce { causes })
    }
}
