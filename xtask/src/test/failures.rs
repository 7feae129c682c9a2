//! Which tests failed and why, read from what their runners print below the line `failures:`.

/// How many lines of a test's message are kept.
const LINES: usize = 8;

/// Reads a runner's output line by line.
#[derive(Debug, Default)]
pub struct Failures {
    /// The tests that failed, with what they said.
    tests: Vec<(String, Vec<String>)>,
    /// Whether what follows belongs to the last of them.
    open: bool,
}

impl Failures {
    /// Takes a line: `---- NAME stdout ----` or `---- NAME ----` begins what a test said.
    pub fn hear(&mut self, line: &str) {
        let line = line.trim_end();
        let name = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" ----"));
        if let Some(name) = name {
            let name = name.strip_suffix(" stdout").unwrap_or(name);
            self.tests.push((name.to_owned(), Vec::new()));
            self.open = true;
            return;
        }
        let ends = ["failures:", "stack backtrace:", "test result: "];
        if ends.iter().any(|end| line.starts_with(end)) {
            self.open = false;
        }
        let is_noise = line.is_empty() || line.starts_with("note: ");
        if let Some((_, said)) = self.tests.last_mut().filter(|_| self.open && !is_noise) {
            said.push(line.to_owned());
        }
    }

    /// The lines to be repeated at the end: each test's name, and what it said, as far as that is short.
    pub fn told(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, said) in &self.tests {
            lines.push(format!("  {name}"));
            lines.extend(said.iter().take(LINES).map(|line| format!("    {line}")));
            if said.len() > LINES {
                lines.push("    …".to_owned());
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(output: &str) -> Vec<String> {
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.hear(line));
        failures.told()
    }

    #[test]
    fn failed_tests_are_told_with_what_they_said_and_without_backtraces() {
        let of_cargo = "running 2 tests\n.F\nfailures:\n\n---- a::one stdout ----\n\n\
            thread 'a::one' (7) panicked at src/lib.rs:3:5:\nassertion failed: x\nstack backtrace:\n   0: begin\n\
            note: Some details are omitted\n\n\nfailures:\n    a::one\n\ntest result: FAILED. 1 passed; 1 failed\n";
        assert_eq!(
            told(of_cargo),
            [
                "  a::one",
                "    thread 'a::one' (7) panicked at src/lib.rs:3:5:",
                "    assertion failed: x"
            ]
        );
        let on_the_kernel = "failures:\n\n---- it_counts ----\ntest panicked: no packet came\n\n\
            ---- it_drops ----\nleft: 1\nright: 2\n\n\nfailures:\n    it_counts\n    it_drops\n";
        assert_eq!(
            told(on_the_kernel),
            [
                "  it_counts",
                "    test panicked: no packet came",
                "  it_drops",
                "    left: 1",
                "    right: 2"
            ]
        );
    }

    #[test]
    fn a_long_message_is_cut_and_a_pass_says_nothing() {
        let long = format!("---- a ----\n{}", "line\n".repeat(100));
        let told_of_it = told(&long);
        assert_eq!(told_of_it.len(), 1 + LINES + 1);
        assert_eq!(told_of_it.last().unwrap(), "    …");
        assert!(told("test a ... ok\nan error\n\ntest result: ok. 1 passed; 0 failed").is_empty());
    }
}
