//! Parts of a template's source: text, and the tags, expressions and comments in it.

/// A part of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Text, also that of a raw block.
    Text(&'a str),
    /// A tag, an expression or a comment, with its delimiters.
    Tag(&'a str),
}

/// Characters after `{` that open a tag, an expression or a comment.
const OPEN: [char; 3] = ['%', '{', '#'];

/// Splits a template. What follows an unclosed tag is text, left for the engine to report.
pub(super) fn pieces(template: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut rest) = (Vec::new(), template);
    while let Some(at) = rest.match_indices('{').map(|(at, _)| at).find(|&at| rest[at + 1..].starts_with(OPEN)) {
        let (before, tag) = rest.split_at(at);
        pieces.push(Piece::Text(before));
        rest = tag;
        let Some(end) = end_of(tag) else { break };
        let (tag, after) = tag.split_at(end);
        if inside(tag) == Some("raw") {
            let ends = |&at: &usize| ends_raw(&after[at..]);
            let Some(at) = after.match_indices("{%").map(|(at, _)| at).find(ends) else { break };
            pieces.extend([Piece::Tag(tag), Piece::Text(&after[..at])]);
            rest = &after[at..];
        } else {
            pieces.push(Piece::Tag(tag));
            rest = after;
        }
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// Returns the contents of a tag; `None` if it is not a tag.
pub(super) fn inside(tag: &str) -> Option<&str> {
    Some(tag.strip_prefix("{%")?.strip_suffix("%}")?.trim_matches(['-', '+']).trim())
}

/// True if `text`, which begins like a tag, begins with the tag that ends a raw block.
fn ends_raw(text: &str) -> bool {
    let rest = text[2..].trim_start_matches(['-', '+']).trim_start().strip_prefix("endraw");
    rest.is_some_and(|rest| rest.trim_start().trim_start_matches(['-', '+']).starts_with("%}"))
}

/// Returns the end of the tag, expression or comment at the start of `text`: after its closing characters, outside strings and
/// brackets.
fn end_of(text: &str) -> Option<usize> {
    let close = match text.as_bytes()[1] {
        b'#' => return Some(2 + text[2..].find("#}")? + 2),
        b'%' => "%}",
        _ => "}}",
    };
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (at, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if depth == 0 && text[at..].starts_with(close) => return Some(at + 2),
            None => match c {
                '\'' | '"' => quote = Some(c),
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            },
        }
    }
    None
}

/// Returns the words of a tag or expression outside of strings, each with what follows it.
pub(super) fn words(tag: &str) -> Vec<(&str, &str)> {
    let (mut words, mut rest) = (Vec::new(), tag);
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let end = match first {
            '\'' | '"' => {
                // The first quote does not end the string.
                let mut escaped = true;
                let ends = |c: char| match c {
                    _ if escaped => {
                        escaped = false;
                        false
                    }
                    '\\' => {
                        escaped = true;
                        false
                    }
                    c => c == first,
                };
                rest.find(ends).map_or(rest.len(), |end| end + 1)
            }
            c if is_word(c) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                words.push(rest.split_at(end));
                end
            }
            c => c.len_utf8(),
        };
        rest = &rest[end..];
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole_template() {
        let template = "a{% if x %}{{ '}}' }}{# {% #}{%- raw -%} {{ {% endraw %}b{%";
        let pieces = pieces(template);
        let text = |piece: &Piece| match *piece {
            Piece::Text(text) | Piece::Tag(text) => text.to_owned(),
        };
        assert_eq!(pieces.iter().map(text).collect::<String>(), template);
        let tags: Vec<_> = pieces.iter().filter(|piece| matches!(piece, Piece::Tag(_))).map(text).collect();
        assert_eq!(tags, ["{% if x %}", "{{ '}}' }}", "{# {% #}", "{%- raw -%}", "{% endraw %}"]);
    }

    #[test]
    fn words_are_those_outside_of_strings() {
        let found = words("{{ a['b'] + \"c\\\"d\" ~ loop.index0 and_x }}");
        assert_eq!(found.iter().map(|(word, _)| *word).collect::<Vec<_>>(), ["a", "loop", "index0", "and_x"]);
        assert_eq!(found[1].1, ".index0 and_x }}");
        assert_eq!(words("'a").len(), 0);
    }
}
