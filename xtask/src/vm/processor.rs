//! The processors that guests can have.

use clap::ValueEnum;

/// A kind of processor, by Debian's name for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Processor {
    /// x86-64, as this machine has.
    #[default]
    Amd64,
    /// 64-bit ARM, always emulated.
    Arm64,
}

impl Processor {
    /// Debian's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// What a series of kernels is called for it: `6.12`, and `6.12-arm64`, which has no column in the tables.
    pub fn series(self, series: &str) -> String {
        match self {
            Self::Amd64 => series.to_owned(),
            Self::Arm64 => format!("{series}-{}", self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernel::is_image;

    #[test]
    fn a_kernel_for_arm64_is_none_of_the_tables() {
        assert_eq!(Processor::Amd64.series("6.12"), "6.12");
        assert!(!is_image(&Processor::Amd64.series("6.12")));
        assert_eq!(Processor::Arm64.series("6.12"), "6.12-arm64");
        assert!(is_image(&Processor::Arm64.series("6.12")));
    }
}
