//! What the verifier says of a program that it has been asked to report on (log level 4, `BPF_LOG_STATS`).

/// The figures in a verifier's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How many instructions it walked through, over all paths.
    pub processed: Option<u64>,
    /// The stack, in bytes, of the program and of each function that it calls.
    pub stack_bytes: Vec<u64>,
    /// How long it took, in microseconds.
    pub verification_us: Option<u64>,
}

impl Statistics {
    /// Reads them from a log such as
    ///
    /// ```text
    /// verification time 120 usec
    /// stack depth 64+0
    /// processed 512 insns (limit 1000000) max_states_per_insn 4 total_states 20 peak_states 20 mark_read 5
    /// ```
    pub fn of(log: &str) -> Self {
        let after = |start: &str| {
            let line = log.lines().find_map(|line| line.strip_prefix(start))?;
            line.split_whitespace().next()
        };
        Self {
            processed: after("processed ").and_then(|number| number.parse().ok()),
            stack_bytes: after("stack depth ")
                .map(|depths| depths.split('+').filter_map(|depth| depth.parse().ok()).collect())
                .unwrap_or_default(),
            verification_us: after("verification time ").and_then(|number| number.parse().ok()),
        }
    }
}

/// Why the verifier rejected a program: the last lines before its statistics.
pub fn rejection(log: &str) -> Vec<String> {
    const SHOWN: usize = 6;
    let lines: Vec<_> = log
        .lines()
        .map(str::trim_end)
        .filter(|line| {
            !line.is_empty()
                && !["processed ", "stack depth ", "verification time "]
                    .iter()
                    .any(|s| line.starts_with(s))
        })
        .collect();
    let start = lines.len().saturating_sub(SHOWN);
    lines[start..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "verification time 120 usec\nstack depth 64+0+16\nprocessed 512 insns (limit 1000000) \
                       max_states_per_insn 4 total_states 20 peak_states 20 mark_read 5\n";

    #[test]
    fn the_figures_are_read() {
        let statistics = Statistics {
            processed: Some(512),
            stack_bytes: vec![64, 0, 16],
            verification_us: Some(120),
        };
        assert_eq!(Statistics::of(LOG), statistics);
    }

    #[test]
    fn a_log_without_figures_has_none() {
        assert_eq!(Statistics::of("R0 !read_ok\n"), Statistics::default());
    }

    #[test]
    fn a_rejection_is_told_by_the_last_lines_before_the_figures() {
        let log = format!("0: (b7) r0 = 0\n1: (61) r2 = *(u32 *)(r1 +4)\ninvalid access to packet\n{LOG}");
        assert_eq!(rejection(&log).last().unwrap(), "invalid access to packet");
        assert_eq!(rejection(LOG), [] as [&str; 0]);
    }
}
