//! A small difference of two texts, line by line.

/// How `new` differs from `old`: lines that went, marked `-`, and lines that came, marked `+`, with a line of context
/// around them. Empty if they are the same.
pub fn lines(old: &str, new: &str) -> Vec<String> {
    let changes = changes(&old.lines().collect::<Vec<_>>(), &new.lines().collect::<Vec<_>>());
    let is_near_change = |index: usize| {
        let near = index.saturating_sub(1)..(index + 2).min(changes.len());
        changes[near].iter().any(|(mark, _)| *mark != ' ')
    };
    changes
        .iter()
        .enumerate()
        .filter(|(index, _)| is_near_change(*index))
        .map(|(_, (mark, line))| format!("{mark} {line}").trim_end().to_owned())
        .collect()
}

/// Every line of both, in order, with ` ` for those that both have: by the longest common subsequence.
fn changes<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    // common[i][j] is how many lines old[i..] and new[j..] have in common.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut changes = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            changes.push((' ', old[i]));
            i += 1;
            j += 1;
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            changes.push(('-', old[i]));
            i += 1;
        } else {
            changes.push(('+', new[j]));
            j += 1;
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_the_same_do_not_differ() {
        assert_eq!(lines("a\nb\n", "a\nb\n"), Vec::<String>::new());
    }

    #[test]
    fn a_changed_line_is_shown_with_a_line_of_context() {
        let old = "one\ntwo\nthree\nfour\nfive";
        let new = "one\ntwo\nTHREE\nfour\nfive";
        assert_eq!(lines(old, new), ["  two", "- three", "+ THREE", "  four"]);
    }

    #[test]
    fn lines_that_only_one_text_has_are_shown() {
        assert_eq!(lines("a\nb", "a"), ["  a", "- b"]);
        assert_eq!(lines("", "a"), ["+ a"]);
    }
}
