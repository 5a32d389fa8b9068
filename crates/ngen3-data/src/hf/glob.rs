//! File name patterns as in `datasets` (those of fsspec): `*`, `?` and `[…]` match within one folder; `**`, alone between
//! slashes, matches any number of folders, or at the end everything below.

/// True if the text has wildcards.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// True if a path matches a pattern. Takes time in the product of their lengths.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let names: Vec<&str> = path.split('/').collect();
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    // reach[n]: true if the parts so far match the first n names.
    let mut reach = vec![false; names.len() + 1];
    reach[0] = true;
    for (index, part) in parts.iter().enumerate() {
        let mut next = vec![false; names.len() + 1];
        if *part == "**" {
            let mut any = false;
            for n in 0..=names.len() {
                any |= reach[n];
                next[n] = any;
            }
            // At the end it matches files below, so at least one more name.
            if index + 1 == parts.len() {
                return reach[..names.len()].contains(&true);
            }
        } else {
            for n in 0..names.len() {
                next[n + 1] = reach[n] && matches_name(part, names[n]);
            }
        }
        reach = next;
    }
    reach[names.len()]
}

/// Matches `*`, `?` and `[…]` within one name.
fn matches_name(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Position of the last `*` and the end of its match: the only place worth backtracking to.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let next = match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some('?') => Some(p + 1),
            Some('[') => match class(&pattern[p + 1..], name[n]) {
                Some((true, length)) => Some(p + 1 + length),
                Some((false, _)) => None,
                // An unclosed bracket is literal.
                None => (name[n] == '[').then_some(p + 1),
            },
            Some(&c) => (c == name[n]).then_some(p + 1),
            None => None,
        };
        match (next, star) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((at, reached))) => {
                star = Some((at, reached + 1));
                (p, n) = (at + 1, reached + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// Matches `c` against the class after a `[`; returns the result, and the length with the `]`. `None` if it is unclosed.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = pattern.first() == Some(&'!');
    let start = usize::from(negated);
    // A leading `]` is a member.
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|&c| c == ']')?;
    let members = &pattern[start..end];
    let (mut found, mut at) = (false, 0);
    while at < members.len() {
        if members.get(at + 1) == Some(&'-') && at + 2 < members.len() {
            found |= (members[at]..=members[at + 2]).contains(&c);
            at += 3;
        } else {
            found |= members[at] == c;
            at += 1;
        }
    }
    Some((found != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The expected results are those of fsspec 2026.4.
    #[test]
    fn patterns_mean_what_they_mean_to_fsspec() {
        for (pattern, path, expected) in [
            ("data.csv", "data.csv", true),
            ("data.csv", "a/data.csv", false),
            ("*.csv", "data.csv", true),
            ("*.csv", "a/data.csv", false),
            ("**/*.csv", "data.csv", true),
            ("**/*.csv", "a/b/data.csv", true),
            ("data/*", "data/x", true),
            ("data/*", "data/x/y", false),
            ("data/**", "data/x/y", true),
            ("data/**", "data", false),
            ("**", "a/b/c", true),
            ("**/train/**", "train/x.csv", true),
            ("**/train/**", "a/train/b/x.csv", true),
            ("**/train/**", "a/training/x.csv", false),
            ("**/train[-._ 0-9]*", "train.csv", true),
            ("**/train[-._ 0-9]*", "a/train-0.csv", true),
            ("**/train[-._ 0-9]*", "trainer.csv", false),
            ("**/*[-._ 0-9]train[-._ 0-9]*", "my_train.csv", true),
            ("**/*[-._ 0-9]train[-._ 0-9]*", "mytrain.csv", false),
            (
                "data/*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*",
                "data/train-00000-of-00002.parquet",
                true,
            ),
            (
                "data/*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*",
                "data/train-0000-of-00002.parquet",
                false,
            ),
            ("a[!b]c", "adc", true),
            ("a[!b]c", "abc", false),
            ("a[]]c", "a]c", true),
            ("a[c", "a[c", true),
            ("a?c", "aéc", true),
            ("a?c", "a/c", false),
            ("./data/*.csv", "data/x.csv", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_made_to_take_forever_does_not() {
        assert!(!matches(&"**/*a*a*a*a*a*b/".repeat(50), &"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/".repeat(50)));
    }

    proptest! {
        #[test]
        fn names_without_signs_match_themselves_only(
            a in "[a-c.]{0,2}[a-c](/[a-c]{1,2}){0,2}",
            b in "[a-c.]{0,2}[a-c](/[a-c]{1,2}){0,2}",
        ) {
            prop_assert_eq!(matches(&a, &b), a == b);
            prop_assert!(matches(&a, &a));
        }

        #[test]
        fn nothing_panics(pattern in "[-a*?\\[\\]!/]{0,12}", path in "[-a*?\\[\\]!/]{0,12}") {
            matches(&pattern, &path);
        }
    }
}
