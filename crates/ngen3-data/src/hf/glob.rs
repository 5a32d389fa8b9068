//! File name patterns as `datasets` reads them (those of fsspec): `*`, `?` and `[…]` stay within one folder; `**`, alone
//! between slashes, stands for any number of folders, or at the end for everything below.

/// True if a pattern has anything but plain names in it.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// True if a path is what a pattern stands for. Takes time in the product of their lengths.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let names: Vec<&str> = path.split('/').collect();
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    // reach[n]: whether the parts so far can stand for the first n names.
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
            // At the end it stands for files below, of which there is at least one name.
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

/// `*`, `?` and `[…]` within one name.
fn matches_name(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last `*` was, and how far into the name it reaches: the only place worth going back to.
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
                // A bracket that is never closed is a bracket.
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

/// True if the class that begins after a `[` holds `c`, and its length with the `]`. `None` if it is never closed.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = pattern.first() == Some(&'!');
    let start = usize::from(negated);
    // A `]` that comes first is a member.
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

    /// Pairs and what fsspec 2026.4 says of them.
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
