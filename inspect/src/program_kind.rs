//! What a program's section means to the kernel: its type, what it is to be attached to, and whether that must be
//! named when it is loaded.

use aya_obj::{
    ProgramSection,
    btf::BtfKind,
    generated::{
        BPF_F_SLEEPABLE, BPF_F_XDP_HAS_FRAGS, bpf_attach_type as attach, bpf_attach_type, bpf_prog_type,
        bpf_prog_type as kind,
    },
};

/// How a program is to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadAs {
    /// The type.
    pub program_type: bpf_prog_type,
    /// Where it will be attached, for types that the verifier judges by it.
    pub attach_type: Option<bpf_attach_type>,
    /// Flags of the load.
    pub flags: u32,
    /// What in the kernel's types must be named.
    pub target: Option<Target>,
}

/// Something in the kernel's types, by its prefix and kind; the rest of its name stands in the section's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A type of the kernel.
    KernelType {
        /// What is put before the name.
        prefix: &'static str,
        /// What it is.
        kind: BtfKind,
    },
    /// Another program, which only its loader knows.
    Program,
}

const KERNEL_FUNCTION: Target = Target::KernelType {
    prefix: "",
    kind: BtfKind::Func,
};

impl LoadAs {
    /// What a section means.
    pub fn of(section: &ProgramSection) -> Self {
        match section {
            ProgramSection::KProbe
            | ProgramSection::KRetProbe
            | ProgramSection::UProbe { sleepable: false }
            | ProgramSection::URetProbe { sleepable: false } => Self::plain(kind::BPF_PROG_TYPE_KPROBE),
            ProgramSection::UProbe { sleepable: true } | ProgramSection::URetProbe { sleepable: true } => {
                Self::plain(kind::BPF_PROG_TYPE_KPROBE).sleepable(true)
            }
            ProgramSection::TracePoint => Self::plain(kind::BPF_PROG_TYPE_TRACEPOINT),
            ProgramSection::SocketFilter => Self::plain(kind::BPF_PROG_TYPE_SOCKET_FILTER),
            ProgramSection::Xdp { frags, attach_type } => Self {
                flags: if *frags { BPF_F_XDP_HAS_FRAGS } else { 0 },
                ..Self::at(kind::BPF_PROG_TYPE_XDP, (*attach_type).into())
            },
            ProgramSection::SkMsg => Self::plain(kind::BPF_PROG_TYPE_SK_MSG),
            ProgramSection::SkSkbStream { kind: stream } => Self::at(kind::BPF_PROG_TYPE_SK_SKB, (*stream).into()),
            ProgramSection::SockOps => Self::plain(kind::BPF_PROG_TYPE_SOCK_OPS),
            ProgramSection::SchedClassifier => Self::plain(kind::BPF_PROG_TYPE_SCHED_CLS),
            ProgramSection::CgroupSkb { attach_type } => Self {
                attach_type: attach_type.map(Into::into),
                ..Self::plain(kind::BPF_PROG_TYPE_CGROUP_SKB)
            },
            ProgramSection::CgroupSockAddr { attach_type } => {
                Self::at(kind::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, (*attach_type).into())
            }
            ProgramSection::CgroupSysctl => Self::plain(kind::BPF_PROG_TYPE_CGROUP_SYSCTL),
            ProgramSection::CgroupSockopt { attach_type } => {
                Self::at(kind::BPF_PROG_TYPE_CGROUP_SOCKOPT, (*attach_type).into())
            }
            ProgramSection::LircMode2 => Self::plain(kind::BPF_PROG_TYPE_LIRC_MODE2),
            ProgramSection::PerfEvent => Self::plain(kind::BPF_PROG_TYPE_PERF_EVENT),
            ProgramSection::RawTracePoint => Self::plain(kind::BPF_PROG_TYPE_RAW_TRACEPOINT),
            ProgramSection::Lsm { sleepable } => Self::at(kind::BPF_PROG_TYPE_LSM, attach::BPF_LSM_MAC)
                .sleepable(*sleepable)
                .on("bpf_lsm_", BtfKind::Func),
            ProgramSection::LsmCgroup => {
                Self::at(kind::BPF_PROG_TYPE_LSM, attach::BPF_LSM_CGROUP).on("bpf_lsm_", BtfKind::Func)
            }
            ProgramSection::BtfTracePoint => {
                Self::at(kind::BPF_PROG_TYPE_TRACING, attach::BPF_TRACE_RAW_TP).on("btf_trace_", BtfKind::Typedef)
            }
            ProgramSection::FEntry { sleepable } => Self {
                target: Some(KERNEL_FUNCTION),
                ..Self::at(kind::BPF_PROG_TYPE_TRACING, attach::BPF_TRACE_FENTRY).sleepable(*sleepable)
            },
            ProgramSection::FExit { sleepable } => Self {
                target: Some(KERNEL_FUNCTION),
                ..Self::at(kind::BPF_PROG_TYPE_TRACING, attach::BPF_TRACE_FEXIT).sleepable(*sleepable)
            },
            ProgramSection::FlowDissector => Self::plain(kind::BPF_PROG_TYPE_FLOW_DISSECTOR),
            ProgramSection::Extension => Self {
                target: Some(Target::Program),
                ..Self::plain(kind::BPF_PROG_TYPE_EXT)
            },
            ProgramSection::SkLookup => Self::at(kind::BPF_PROG_TYPE_SK_LOOKUP, attach::BPF_SK_LOOKUP),
            ProgramSection::SkReuseport { attach_type } => {
                Self::at(kind::BPF_PROG_TYPE_SK_REUSEPORT, (*attach_type).into())
            }
            ProgramSection::CgroupSock { attach_type } => {
                Self::at(kind::BPF_PROG_TYPE_CGROUP_SOCK, (*attach_type).into())
            }
            ProgramSection::CgroupDevice => Self::plain(kind::BPF_PROG_TYPE_CGROUP_DEVICE),
            ProgramSection::Iter { sleepable } => Self::at(kind::BPF_PROG_TYPE_TRACING, attach::BPF_TRACE_ITER)
                .sleepable(*sleepable)
                .on("bpf_iter_", BtfKind::Func),
        }
    }

    /// The name of the type, as bpftool writes it.
    pub fn type_name(&self) -> String {
        format!("{:?}", self.program_type)
            .trim_start_matches("BPF_PROG_TYPE_")
            .to_lowercase()
    }

    fn plain(program_type: bpf_prog_type) -> Self {
        Self {
            program_type,
            attach_type: None,
            flags: 0,
            target: None,
        }
    }

    fn at(program_type: bpf_prog_type, attach_type: bpf_attach_type) -> Self {
        Self {
            attach_type: Some(attach_type),
            ..Self::plain(program_type)
        }
    }

    fn sleepable(self, sleepable: bool) -> Self {
        Self {
            flags: if sleepable { BPF_F_SLEEPABLE } else { 0 },
            ..self
        }
    }

    fn on(self, prefix: &'static str, kind: BtfKind) -> Self {
        Self {
            target: Some(Target::KernelType { prefix, kind }),
            ..self
        }
    }
}

/// What a section says a program attaches to: `tcp_connect` of `fentry/tcp_connect`.
pub fn attaches_to(section: &str) -> Option<&str> {
    section
        .split_once('/')
        .map(|(_, name)| name)
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_called_as_bpftool_calls_them() {
        assert_eq!(LoadAs::of(&ProgramSection::SchedClassifier).type_name(), "sched_cls");
        assert_eq!(LoadAs::of(&ProgramSection::SocketFilter).type_name(), "socket_filter");
    }

    #[test]
    fn tracing_programs_name_what_they_trace() {
        let load = LoadAs::of(&ProgramSection::BtfTracePoint);
        let target = Target::KernelType {
            prefix: "btf_trace_",
            kind: BtfKind::Typedef,
        };
        assert_eq!(load.target, Some(target));
        assert_eq!(load.attach_type, Some(attach::BPF_TRACE_RAW_TP));
    }

    #[test]
    fn flags_say_whether_a_program_may_sleep_or_sees_fragments() {
        assert_eq!(
            LoadAs::of(&ProgramSection::FEntry { sleepable: true }).flags,
            BPF_F_SLEEPABLE
        );
        assert_eq!(LoadAs::of(&ProgramSection::FEntry { sleepable: false }).flags, 0);
        let frags = ProgramSection::Xdp {
            frags: true,
            attach_type: aya_obj::programs::XdpAttachType::Interface,
        };
        assert_eq!(LoadAs::of(&frags).flags, BPF_F_XDP_HAS_FRAGS);
    }

    #[test]
    fn what_is_attached_to_stands_behind_the_slash() {
        assert_eq!(attaches_to("fentry/tcp_connect"), Some("tcp_connect"));
        assert_eq!(attaches_to("xdp"), None);
        assert_eq!(attaches_to("tp_btf/"), None);
    }
}
