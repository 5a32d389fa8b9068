//! Python's string methods and random numbers, reproduced because the harness is written in Python.

use rand_mt::Mt;

/// `str.isspace`
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip`
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.rstrip`
pub(crate) fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `str.capitalize`: the first letter in title case, all others in lower case.
pub(crate) fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    let lower = text.to_lowercase();
    let rest = &lower[first.to_lowercase().map(char::len_utf8).sum()..];
    // Of a letter that becomes several (ß), only the first is upper case. The four digraph letters have a title-case form of
    // their own.
    let title = match first {
        'Ǆ' | 'ǆ' => "ǅ".into(),
        'Ǉ' | 'ǉ' => "ǈ".into(),
        'Ǌ' | 'ǌ' => "ǋ".into(),
        'Ǳ' | 'ǳ' => "ǲ".into(),
        _ => {
            let mut upper = first.to_uppercase();
            upper.next().into_iter().chain(upper.flat_map(char::to_lowercase)).collect::<String>()
        }
    };
    title + rest
}

/// `random.Random(seed)`.
pub(crate) struct PythonRandom(Mt);

impl PythonRandom {
    /// Creates a generator seeded with `seed`, as Python's `random.seed` does.
    pub fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// Draws a number below `n`, for `n` at least 1 and below 2³².
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.0.next_u32() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: distinct numbers below `n` in the order drawn, for `k` at most `n` and `n` below 2³².
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        // Python keeps a list of the remaining numbers if that is smaller than a set of the drawn ones.
        let mut set_size = 21;
        if k > 5 {
            set_size += 4usize.pow(((k * 3) as f64).log(4.0).ceil() as u32);
        }
        if n <= set_size {
            let mut pool: Vec<_> = (0..n).collect();
            return (0..k).map(|i| pool.swap_remove(self.below(n - i))).collect();
        }
        let mut drawn: Vec<usize> = Vec::with_capacity(k);
        while drawn.len() < k {
            let number = self.below(n);
            if !drawn.contains(&number) {
                drawn.push(number);
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from Python 3.11.
    #[test]
    fn samples_are_those_of_python() {
        let mut random = PythonRandom::new(1234);
        let first: Vec<_> = (0..4).map(|_| random.0.next_u32()).collect();
        assert_eq!(first, [4_150_886_329, 3_342_196_574, 1_892_932_127, 501_869_158]);
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(5, 3), [3, 0, 4]);
        assert_eq!(random.sample(21, 5), [2, 18, 1, 20, 3]);
        assert_eq!(random.sample(22, 5), [11, 7, 0, 20, 19]);
        assert_eq!(random.sample(1000, 6), [495, 630, 474, 152, 93, 187]);
        assert_eq!(random.sample(40_000, 3), [7498, 958, 32_970]);
        assert_eq!(
            random.sample(100, 33),
            [
                62, 31, 8, 85, 69, 59, 97, 76, 86, 11, 65, 74, 5, 34, 71, 93, 82, 38, 61, 45, 91, 98, 25, 58, 67, 2,
                89, 9, 0, 42, 18, 60, 48
            ]
        );
        assert_eq!(random.sample(7, 7), [1, 0, 5, 3, 4, 2, 6]);
    }

    #[test]
    fn strings_are_those_of_python() {
        assert_eq!(
            ["ABC DEF ΑΣ", "ǆabc", "ßA", "ΑΣ", "", "4 A"].map(capitalize),
            ["Abc def ας", "ǅabc", "Ssa", "Ας", "", "4 a"]
        );
        assert_eq!(strip("\x1c x\u{3000}\x1f"), "x");
        assert_eq!(rstrip(" x \n"), " x");
    }
}
