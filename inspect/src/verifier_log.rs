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
    ///
    /// of which Linux 7 says the stack otherwise:
    ///
    /// ```text
    /// stack depth max 64
    /// subprog 0 (connect4) main insns_self 500 insns_total 512 stack 64
    /// subprog 1 (memset) static insns_self 12 insns_total 12 stack 0
    /// ```
    pub fn of(log: &str) -> Self {
        let after = |start: &str| {
            let line = log.lines().find_map(|line| line.strip_prefix(start))?;
            line.split_whitespace().next()
        };
        let of_functions = log.lines().filter_map(stack_of_function).collect::<Vec<_>>();
        let in_one_line = || -> Vec<_> {
            let depths = after("stack depth ").map(|depths| depths.split('+').filter_map(|depth| depth.parse().ok()));
            depths.map(Iterator::collect).unwrap_or_default()
        };
        Self {
            processed: after("processed ").and_then(|number| number.parse().ok()),
            stack_bytes: if of_functions.is_empty() {
                in_one_line()
            } else {
                of_functions
            },
            verification_us: after("verification time ").and_then(|number| number.parse().ok()),
        }
    }
}

/// The stack in the line that Linux 7 writes of each function.
fn stack_of_function(line: &str) -> Option<u64> {
    is_of_function(line).then(|| line.rsplit_once(" stack ")?.1.trim().parse().ok())?
}

fn is_of_function(line: &str) -> bool {
    line.starts_with("subprog ") && line.contains(" insns_total ")
}

/// Why the verifier rejected a program: the last lines before its statistics, and before the report in which Linux 7.3
/// explains it at length.
pub fn rejection(log: &str) -> Vec<String> {
    const SHOWN: usize = 6;
    let lines: Vec<_> = log
        .lines()
        .take_while(|line| !line.starts_with("Verification failed: "))
        .map(str::trim_end)
        .filter(|line| {
            !line.is_empty()
                && !["processed ", "stack depth ", "verification time "]
                    .iter()
                    .any(|s| line.starts_with(s))
                && !is_of_function(line)
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

    /// As Linux 7.2 wrote it.
    const LOG_OF_LINUX_7: &str = "verification time 9137 usec\nstack depth max 16\n\
                                  subprog 0 (connect4) main insns_self 1 insns_total 9 stack 16\n\
                                  subprog 1 (memset) static insns_self 8 insns_total 8 stack 0\n\
                                  processed 9 insns (limit 1000000) max_states_per_insn 0 total_states 0 \
                                  peak_states 0 mark_read 0\n";

    #[test]
    fn the_figures_of_linux_7_are_read() {
        let statistics = Statistics {
            processed: Some(9),
            stack_bytes: vec![16, 0],
            verification_us: Some(9137),
        };
        assert_eq!(Statistics::of(LOG_OF_LINUX_7), statistics);
        assert_eq!(rejection(LOG_OF_LINUX_7), [] as [&str; 0]);
    }

    #[test]
    fn a_log_without_figures_has_none() {
        assert_eq!(Statistics::of("R0 !read_ok\n"), Statistics::default());
    }

    #[test]
    fn a_rejection_is_told_by_the_last_lines_before_the_figures() {
        let log = format!("0: (b7) r0 = 0\n1: (61) r2 = *(u32 *)(r1 +4)\ninvalid access to packet\n{LOG}");
        assert_eq!(rejection(&log).last().unwrap(), "invalid access to packet");
        let log =
            format!("invalid access to packet\nVerification failed: Memory Safety\nSuggestion:\n  A check.\n{LOG}");
        assert_eq!(rejection(&log), ["invalid access to packet"]);
        assert_eq!(rejection(LOG), [] as [&str; 0]);
    }
}
