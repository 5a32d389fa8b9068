//! Templates that render the turns one after the other, so that a turn never depends on later ones.
//!
//! To find where each turn ends, the first n turns are rendered alone, for each n: the time grows with the square of their number. For
//! a template that is one loop over the messages, all ends are known from a single rendering with a mark before each turn. That its
//! other parts cannot see later turns follows from the words in it; any doubt rules it out.

use super::tags::{Piece, inside, pieces, words};

/// Tags that open a block.
const BLOCKS: [&str; 5] = ["if", "for", "with", "filter", "autoescape"];
/// Words that may lead to later turns, or output what is rendered elsewhere.
const REFUSED: [&str; 15] = [
    "autoescape",
    "block",
    "call",
    "caller",
    "debug",
    "extends",
    "filter",
    "from",
    "import",
    "include",
    "macro",
    "namespace",
    "raw",
    "self",
    "super",
];
/// Properties of the loop that do not depend on later turns.
const OF_LOOP: [&str; 3] = ["first", "index", "index0"];
/// Words after the loop: nothing there depends on the turns.
const AFTER: [&str; 17] = [
    "if",
    "elif",
    "else",
    "endif",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "and",
    "or",
    "not",
    "is",
    "defined",
    "true",
    "false",
    "True",
    "False",
    "none",
];

/// Part of a template.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Within,
    After,
}

/// Returns the template with `mark` at the start of each turn and after the last; `None` if a turn may depend on later ones.
pub(super) fn with_turn_marks(template: &str, mark: char) -> Option<String> {
    let (mut place, mut depth, mut marked) = (Place::Before, 0_usize, String::with_capacity(template.len() + 6));
    let pieces = pieces(template);
    let mut rest = pieces.iter().copied().peekable();
    while let Some(piece) = rest.next() {
        let tag = match piece {
            Piece::Text(text) => {
                marked.push_str(text);
                continue;
            }
            Piece::Tag(tag) => tag,
        };
        marked.push_str(tag);
        if tag.starts_with("{#") {
            continue;
        }
        let found = words(tag);
        let (block, before) = (inside(tag), place);
        let name = block.and(found.first()).map_or("", |(word, _)| *word);
        if place == Place::Before && depth == 0 && block.is_some_and(is_loop) {
            place = Place::Within;
        } else if !found.iter().all(|&(word, after)| is_allowed(word, after, place)) {
            return None;
        }
        if BLOCKS.contains(&name) || name == "set" && block.is_some_and(|block| !block.contains('=')) {
            depth += 1;
        } else if name.starts_with("end") {
            depth = depth.checked_sub(1)?;
        }
        if place == Place::Within && depth == 0 {
            place = Place::After;
        }
        if place != before {
            // White space after the tag is removed as if the mark were not there.
            let text = match rest.next_if(|piece| matches!(piece, Piece::Text(_))) {
                Some(Piece::Text(text)) => text,
                _ => "",
            };
            let is_tag =
                matches!(rest.peek(), Some(Piece::Tag(next)) if !next.starts_with("{{") && !next.starts_with("{%+"));
            marked.push(mark);
            marked.push_str(after_tag(tag, text, is_tag));
        }
    }
    (place == Place::After).then_some(marked)
}

/// True for the contents of the tag of a loop over all messages.
fn is_loop(block: &str) -> bool {
    matches!(block.split_whitespace().collect::<Vec<_>>()[..], ["for", turn, "in", "messages"] if words(turn).len() == 1)
}

fn is_allowed(word: &str, after: &str, place: Place) -> bool {
    let property = || after.strip_prefix('.').and_then(|after| words(after).first().map(|(name, _)| *name));
    match word {
        _ if place == Place::After => AFTER.contains(&word),
        // The first turn is never a later one.
        "messages" => after.starts_with("[0]"),
        "loop" => property().is_some_and(|name| OF_LOOP.contains(&name)),
        word => !REFUSED.contains(&word),
    }
}

/// Returns the text after a tag as the engine leaves it, with `trim_blocks` and `lstrip_blocks`. `is_tag` if another tag follows.
fn after_tag<'a>(tag: &str, text: &'a str, is_tag: bool) -> &'a str {
    if tag.ends_with("-%}") {
        return text.trim_start();
    }
    let line = text.strip_prefix("\r\n").or_else(|| text.strip_prefix('\n')).filter(|_| !tag.ends_with("+%}"));
    match line {
        Some(line) if is_tag && line.trim_start_matches([' ', '\t']).is_empty() => "",
        Some(line) => line,
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
         {{ '<|im_start|>system\\n<|im_end|>\\n' }}{% endif %}{{ message['role'] + message.content }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    #[test]
    fn marks_are_before_each_turn_and_after_the_last() {
        for (template, marked) in [
            (
                "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
                "{{ bos_token }}{% for m in messages %}!{{ m.content }}{% endfor %}!",
            ),
            (
                "{%- for m in messages -%}\n  a{% for x in m.y %}{{ loop.index }}{% endfor %}{%- endfor %}\n  {% if eos_token %}.{% endif %}",
                "{%- for m in messages -%}!a{% for x in m.y %}{{ loop.index }}{% endfor %}{%- endfor %}!{% if eos_token %}.{% endif %}",
            ),
            (
                "{% for m in messages %}\n b{{ m }}{% endfor +%}\n c",
                "{% for m in messages %}! b{{ m }}{% endfor +%}!\n c",
            ),
        ] {
            assert_eq!(with_turn_marks(template, '!').as_deref(), Some(marked));
        }
        assert_eq!(with_turn_marks(CHATML, '!').unwrap().matches('!').count(), 2 + 1, "one in !=");
    }

    #[test]
    fn what_may_see_later_turns_is_refused() {
        let body = |body: &str| format!("{{% for m in messages %}}{body}{{% endfor %}}");
        for template in [
            String::new(),
            "{{ messages }}".into(),
            "{% for m in messages[1:] %}{{ m }}{% endfor %}".into(),
            "{% for m in messages if m.content %}{{ m }}{% endfor %}".into(),
            "{% set all = messages %}{% for m in messages %}{{ all }}{% endfor %}".into(),
            "{% if x %}{% for m in messages %}{{ m }}{% endfor %}{% endif %}".into(),
            "{% set x %}{% for m in messages %}{{ m }}{% endfor %}{% endset %}{{ x }}".into(),
            "{% filter trim %}{% for m in messages %}{{ m }}{% endfor %}{% endfilter %}".into(),
            "{% set n = namespace(x=1) %}{% for m in messages %}{{ m }}{% endfor %}".into(),
            body("{{ loop.last }}"),
            body("{{ loop['last'] }}"),
            body("{{ loop.nextitem }}"),
            body("{{ messages[loop.index0 + 1] }}"),
            body("{{ messages[-1] }}"),
            body("{{ messages | length }}"),
            body("{{ debug() }}"),
            body("{% for x in messages %}{% endfor %}"),
            body("") + &body(""),
            body("") + "{{ messages[0] }}",
            body("") + "{{ x }}",
        ] {
            assert_eq!(with_turn_marks(&template, '!'), None, "{template}");
        }
    }
}
