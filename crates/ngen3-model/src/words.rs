//! Formatting of numbers, counts and sizes in messages.

use std::fmt::Display;

/// `1 layer`, `12 layers`.
pub fn count<N: Copy + Display + PartialEq + From<u8>>(n: N, one: &str) -> String {
    format!("{n} {}", plural(n, one))
}

/// Returns a noun in the singular or plural: `layer` or `layers`.
pub fn plural<N: PartialEq + From<u8>>(n: N, one: &str) -> String {
    if n == N::from(1) { one.into() } else { format!("{one}s") }
}

/// `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 step`, `1,200 steps`.
pub fn grouped_count(n: u64, one: &str) -> String {
    format!("{} {}", grouped(n), plural(n, one))
}

/// `29 MB`, `1.5 GB`: memory, with two or three digits.
pub fn memory_size(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 1e3 { format!("{megabytes:.0} MB") } else { gigabytes(bytes) }
}

/// `0.3 GB`: memory, always in GB.
pub fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// `12.3 MB`, `1.23 GB`: file sizes and read rates per second.
pub fn file_size(bytes: f64) -> String {
    if bytes < 1e9 { format!("{:.1} MB", bytes / 1e6) } else { format!("{:.2} GB", bytes / 1e9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_things() {
        assert_eq!([0, 1, 2, 21].map(|n: u64| count(n, "layer")), ["0 layers", "1 layer", "2 layers", "21 layers"]);
    }

    #[test]
    fn thousands_are_set_apart() {
        let expected = ["0", "999", "1,000", "12,345", "123,456", "1,234,567", "18,446,744,073,709,551,615"];
        assert_eq!([0, 999, 1_000, 12_345, 123_456, 1_234_567, u64::MAX].map(grouped), expected);
        assert_eq!([1, 1_200].map(|n| grouped_count(n, "step")), ["1 step", "1,200 steps"]);
    }

    #[test]
    fn sizes_are_in_millions_and_from_a_thousand_of_these_in_billions() {
        let bytes = [0, 28_600_000, 999_400_000, 1_000_000_000, 118_500_000_000];
        assert_eq!(bytes.map(memory_size), ["0 MB", "29 MB", "999 MB", "1.0 GB", "118.5 GB"]);
        assert_eq!(bytes.map(gigabytes), ["0.0 GB", "0.0 GB", "1.0 GB", "1.0 GB", "118.5 GB"]);
        let files = bytes.map(|bytes| file_size(bytes as f64));
        assert_eq!(files, ["0.0 MB", "28.6 MB", "999.4 MB", "1.00 GB", "118.50 GB"]);
    }
}
