//! A small template for WGSL: constants in front of the source, and lines that are repeated.
//!
//! Lines between `//@repeat I COUNT` and `//@end` are written COUNT times, with `$I` replaced by 0, 1, …; COUNT is a number or one
//! of the constants, and repetitions nest. Values that are kept in registers need it: an array that is indexed in a loop might be kept
//! in memory.

/// Constants of a kernel, by name. Pipelines are cached by their values.
pub type Constants = [(&'static str, u32)];

/// Returns the WGSL of a kernel.
pub fn expand(source: &str, constants: &Constants) -> String {
    let mut out: String = constants.iter().map(|(name, value)| format!("const {name}: u32 = {value}u;\n")).collect();
    repeat(&source.lines().collect::<Vec<_>>(), constants, &[], &mut out);
    out
}

/// Writes lines, with the variables of the repetitions around them replaced.
fn repeat(lines: &[&str], constants: &Constants, variables: &[(&str, u32)], out: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        at += 1;
        let Some(head) = line.trim_start().strip_prefix("//@repeat ") else {
            let replaced = variables
                .iter()
                .fold(line.to_owned(), |line, (name, value)| line.replace(&format!("${name}"), &value.to_string()));
            out.push_str(&replaced);
            out.push('\n');
            continue;
        };
        let (name, count) = head.split_once(' ').expect("a repetition has a name and a count");
        let known = constants.iter().find(|(constant, _)| *constant == count.trim()).map(|(_, value)| *value);
        let count = known.unwrap_or_else(|| count.trim().parse().expect("a count is a number or a constant"));
        let start = at;
        let mut depth = 1;
        while depth > 0 {
            let line = lines[at].trim_start();
            depth += usize::from(line.starts_with("//@repeat "));
            depth -= usize::from(line == "//@end");
            at += 1;
        }
        for value in 0..count {
            repeat(&lines[start..at - 1], constants, &[variables, &[(name, value)]].concat(), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_repeated_within_repetitions() {
        let source = "a\n//@repeat R ROWS\n  r$R\n  //@repeat C 3\n  s$R_$C;\n  //@end\n//@end\nb";
        let expected =
            "const ROWS: u32 = 2u;\na\n  r0\n  s0_0;\n  s0_1;\n  s0_2;\n  r1\n  s1_0;\n  s1_1;\n  s1_2;\nb\n";
        assert_eq!(expand(source, &[("ROWS", 2)]), expected);
    }
}
