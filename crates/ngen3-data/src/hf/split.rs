//! Split expressions: `train`, `train[1000:2000]`, `train[:10%]`, and sums of these, as in the `datasets` library.

use std::ops::Range;

use crate::Error;

/// Some records of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// The split's name.
    pub(super) split: String,
    from: Option<Bound>,
    to: Option<Bound>,
    rounding: Rounding,
}

/// Start or end of a slice; negative values count from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Row(i64),
    Percent(i64),
}

/// Rounding of a percentage to records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    Closest,
    /// Every percent has the same number of records; the remainder is dropped.
    DropRemainder,
}

impl Slice {
    /// True if the slice is the whole split.
    pub(super) fn is_whole(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }

    /// Returns the records, unless the range depends on their number.
    pub(super) fn known_range(&self) -> Option<Range<u64>> {
        let row = |bound: Option<Bound>, open: u64| match bound {
            None => Some(open),
            Some(Bound::Row(row)) => u64::try_from(row).ok(),
            Some(Bound::Percent(_)) => None,
        };
        Some(row(self.from, 0)?..row(self.to, u64::MAX)?)
    }

    /// Returns the records, out of `count`.
    ///
    /// # Errors
    /// [`Error::Input`] if there are too few records for the rounding.
    pub(super) fn range_of(&self, count: u64) -> Result<Range<u64>, Error> {
        if self.rounding == Rounding::DropRemainder && count < 100 {
            return Err(Error::Input(format!(
                "split {}: (pct1_dropremainder) needs at least 100 records, got {count}",
                self.split
            )));
        }
        let row = |bound: Option<Bound>, open: u64| {
            let row = match bound {
                None => return open,
                Some(Bound::Row(row)) => i128::from(row),
                Some(Bound::Percent(percent)) => self.percent(percent, count),
            };
            let row = if row < 0 { row + i128::from(count) } else { row };
            // Between 0 and a u64.
            row.clamp(0, count.into()) as u64
        };
        Ok(row(self.from, 0)..row(self.to, count))
    }

    fn percent(&self, percent: i64, count: u64) -> i128 {
        let (percent, count) = (i128::from(percent), i128::from(count));
        match self.rounding {
            Rounding::DropRemainder => percent * (count / 100),
            Rounding::Closest => {
                // Halves round to even, as with Python's `round`.
                let (quotient, rest) = ((percent * count).div_euclid(100), (percent * count).rem_euclid(100));
                quotient + i128::from(rest > 50 || rest == 50 && quotient % 2 != 0)
            }
        }
    }
}

/// Parses a split as the user writes it.
///
/// # Errors
/// [`Error::Input`] with examples of the syntax.
pub(super) fn parse(text: &str) -> Result<Vec<Slice>, Error> {
    text.split('+')
        .map(|slice| {
            parse_slice(slice.trim()).ok_or_else(|| {
                Error::Input(format!(
                    "invalid split {text:?}: expected for example train, train[:10%], train[100:200] or train+test"
                ))
            })
        })
        .collect()
}

fn parse_slice(text: &str) -> Option<Slice> {
    let (text, rounding) = match text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        None => (text, None),
        Some((text, "closest")) => (text, Some(Rounding::Closest)),
        Some((text, "pct1_dropremainder")) => (text, Some(Rounding::DropRemainder)),
        Some(_) => return None,
    };
    let (split, from, to) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        None => (text, None, None),
        Some((split, bounds)) => {
            let (from, to) = bounds.split_once(':')?;
            (split, parse_bound(from)?, parse_bound(to)?)
        }
    };
    let is_percent = |bound: Option<Bound>| matches!(bound, Some(Bound::Percent(_)));
    let percent = is_percent(from) || is_percent(to);
    // As in `datasets`, one percent sign makes both bounds percentages, and only these have a rounding.
    let unit = |bound: Option<Bound>| {
        bound.map(|bound| match bound {
            Bound::Row(n) if percent => Bound::Percent(n),
            bound => bound,
        })
    };
    (is_name(split) && (rounding.is_none() || percent)).then(|| Slice {
        split: split.into(),
        from: unit(from),
        to: unit(to),
        rounding: rounding.unwrap_or(Rounding::Closest),
    })
}

/// Parses a bound: empty, or a number with an optional percent sign; `None` for anything else.
fn parse_bound(text: &str) -> Option<Option<Bound>> {
    if text.is_empty() {
        return Some(None);
    }
    let (digits, percent) = text.strip_suffix('%').map_or((text, false), |digits| (digits, true));
    let number = digits.replace('_', "").parse().ok()?;
    Some(Some(if percent { Bound::Percent(number) } else { Bound::Row(number) }))
}

/// True for a valid name of a split: words of letters, digits and `_`, with dots between them.
pub(super) fn is_name(text: &str) -> bool {
    text.split('.').all(|word| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(text: &str, count: u64) -> Vec<(String, Range<u64>)> {
        let slices = parse(text).unwrap();
        slices.into_iter().map(|slice| (slice.split.clone(), slice.range_of(count).unwrap())).collect()
    }

    /// The expected ranges are those of `datasets` 5.2 (`ReadInstruction.from_spec(…).to_absolute`).
    #[test]
    fn slices_are_what_datasets_makes_of_them() {
        for (text, count, expected) in [
            ("train", 1000, 0..1000),
            ("train[:10%]", 1000, 0..100),
            ("train[10%:]", 1000, 100..1000),
            ("train[33%:66%]", 10, 3..7),
            ("train[:5%]", 10, 0..0),
            ("train[:15%]", 10, 0..2),
            ("train[:25%]", 10, 0..2),
            ("train[-10%:]", 1000, 900..1000),
            ("train[:-5%]", 1000, 0..950),
            ("train[1000:2000]", 1500, 1000..1500),
            ("train[1_000:]", 1500, 1000..1500),
            ("train[-3:]", 10, 7..10),
            ("train[-30:]", 10, 0..10),
            ("train[:33%](pct1_dropremainder)", 199, 0..33),
            ("train[10:20%](closest)", 1000, 100..200),
        ] {
            assert_eq!(rows(text, count), [("train".to_owned(), expected)], "{text}");
        }
        assert!(rows("train[5:2]", 10)[0].1.is_empty());
        assert_eq!(rows("a.b[:1] + test", 5), [("a.b".into(), 0..1), ("test".into(), 0..5)]);
        let slice = &parse("train[:33%](pct1_dropremainder)").unwrap()[0];
        assert!(slice.range_of(99).unwrap_err().to_string().contains("at least 100 records, got 99"));
    }

    #[test]
    fn rows_are_known_beforehand_where_that_can_be() {
        let known = |text: &str| parse(text).unwrap()[0].known_range();
        assert_eq!(known("train"), Some(0..u64::MAX));
        assert_eq!(known("train[10:20]"), Some(10..20));
        assert_eq!(known("train[:10%]"), None);
        assert_eq!(known("train[-5:]"), None);
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "",
            "train[",
            "train[]",
            "train[5]",
            "train[a:b]",
            "train[:1](closest)",
            "train[:1%](up)",
            "a+",
            "a-b",
            "a/b",
        ] {
            assert!(parse(text).unwrap_err().to_string().contains("invalid split"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn slices_stay_within_the_split(from in any::<i64>(), to in any::<i64>(), percent: bool, count: u64) {
            let sign = if percent { "%" } else { "" };
            let slice = &parse(&format!("x[{from}{sign}:{to}{sign}]")).unwrap()[0];
            let rows = slice.range_of(count).unwrap();
            prop_assert!(rows.start <= count && rows.end <= count);
        }

        #[test]
        fn nothing_panics(text in "[a\\[\\]:%+()0-9_-]{0,12}") {
            let _ = parse(&text);
        }
    }
}
