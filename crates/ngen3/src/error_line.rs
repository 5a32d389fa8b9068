//! Formats errors for users.
//!
//! Names and texts in an error may come from a hostile file: what reaches the terminal has no control characters and is short.

/// Longest error, in bytes; the middle of a longer one is left out.
const MAX_BYTES: usize = 900;
/// Bytes kept of the end of a longer error, which often says what to do.
const END_BYTES: usize = 200;

/// Replaces control characters, which could move a terminal's cursor or clear it, by U+FFFD. Line breaks and tabs stay.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !"\n\t".contains(c) { '\u{fffd}' } else { c }).collect()
}

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
    shortened(line)
}

/// Leaves out the middle of a long line.
fn shortened(line: String) -> String {
    if line.len() <= MAX_BYTES {
        return line;
    }
    let start = line.floor_char_boundary(MAX_BYTES - END_BYTES);
    let end = line.ceil_char_boundary(line.len() - END_BYTES);
    format!("{} … {}", &line[..start], &line[end..])
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

    #[test]
    fn long_errors_keep_their_start_and_end() {
        let line = one_line(&anyhow::anyhow!("start {} end", "é".repeat(1 << 20)));
        assert!(line.len() <= MAX_BYTES + 10 && line.starts_with("start é") && line.ends_with("é end"), "{line}");
    }

    #[test]
    fn nothing_moves_the_cursor_of_a_terminal() {
        assert_eq!(printable("a\u{1b}[2J\u{7}\r\u{9b}b\n\tc"), "a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}b\n\tc");
    }
}
