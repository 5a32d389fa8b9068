//! Formats errors for users.

/// Joins an error and its causes into one line. A cause that the line already ends with is not repeated.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        if !line.ends_with(&text) {
            line += if line.is_empty() { "" } else { ": " };
            line += &text;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_take_one_line_and_say_nothing_twice() {
        let error =
            anyhow::anyhow!("the disk\n  is full").context("cannot write a.bin: the disk is full").context("sorry");
        assert_eq!(one_line(&error), "sorry: cannot write a.bin: the disk is full");
        assert_eq!(one_line(&anyhow::anyhow!("a").context("b")), "b: a");
    }
}
