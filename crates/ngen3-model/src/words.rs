//! How messages count things.

use std::fmt::Display;

/// `1 layer`, `12 layers`.
pub fn count<N: Copy + Display + PartialEq + From<u8>>(n: N, one: &str) -> String {
    format!("{n} {}", plural(n, one))
}

/// What so many are called, of which one is called `one`: `layer` or `layers`.
pub fn plural<N: PartialEq + From<u8>>(n: N, one: &str) -> String {
    if n == N::from(1) { one.into() } else { format!("{one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_things() {
        assert_eq!([0, 1, 2, 21].map(|n: u64| count(n, "layer")), ["0 layers", "1 layer", "2 layers", "21 layers"]);
    }
}
