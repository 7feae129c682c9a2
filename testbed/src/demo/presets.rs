//! Options that a demo gives a program, where the user gave none of the kind.

use std::ffi::OsString;

/// Options for a program, unless the user says something of the kind.
#[derive(Clone, Debug)]
pub(crate) struct Preset {
    /// How the options of the kind begin: `--block` stands for `--block-ip` and `--block-port`.
    pub kind: &'static [&'static str],
    /// The options.
    pub args: Vec<String>,
    /// What a newcomer is to know where they are used; empty for nothing.
    pub note: String,
}

impl Preset {
    /// Whether the user leaves it to the demo.
    pub fn is_wanted(&self, args: &[OsString]) -> bool {
        let is_of_the_kind = |arg: &str| self.kind.iter().any(|beginning| arg.starts_with(beginning));
        !args.iter().filter_map(|arg| arg.to_str()).any(is_of_the_kind)
    }
}

/// The interface of the stage.
pub(crate) fn interface(name: &str) -> Preset {
    Preset {
        kind: &["--iface", "-i", "--no-tc"],
        args: vec!["--iface".into(), name.into()],
        note: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_wanted(preset: &Preset, args: &[&str]) -> bool {
        preset.is_wanted(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn an_interface_of_the_users_is_recognised_in_any_spelling() {
        let preset = interface("eth0");
        for args in [
            &["--iface", "eth1"][..],
            &["--json", "--iface=eth1"],
            &["-i", "eth1"],
            &["-ieth1"],
        ] {
            assert!(!is_wanted(&preset, args), "{args:?}");
        }
        assert!(is_wanted(&preset, &["--interval", "2s"]));
        assert!(is_wanted(&preset, &[]));
    }

    #[test]
    fn one_option_of_the_kind_stands_for_all_of_them() {
        let preset = Preset {
            kind: &["--block", "--rate-limit"],
            args: Vec::new(),
            note: String::new(),
        };
        assert!(!is_wanted(&preset, &["--block-port", "80"]));
        assert!(!is_wanted(&preset, &["--json", "--rate-limit=9"]));
        assert!(is_wanted(&preset, &["--json", "--duration", "5s"]));
    }
}
