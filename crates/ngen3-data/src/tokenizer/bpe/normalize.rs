//! Unicode's normalization form C, which Qwen's tokenizers ask for: `e` with a combining accent becomes `é`.
//!
//! The crate is the one that `tokenizers` uses, since another would know another version of Unicode. Most text is normalized
//! already, which a quick check tells.

use std::borrow::Cow;

use unicode_normalization_alignments::char::{canonical_combining_class, decompose_canonical};
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Normalization of a text before it is split into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokenizer) enum Normalizer {
    /// Nothing.
    None,
    /// Normalization form C.
    Nfc,
}

impl Normalizer {
    /// Normalizes `text`; borrowed if nothing changes.
    pub(in crate::tokenizer) fn apply(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::None => text.into(),
            Self::Nfc => nfc(text),
        }
    }

    /// Returns true if both parts are normalized as the whole is when a text is split between these characters, and neither
    /// the left one nor the class of the right one changes.
    pub(in crate::tokenizer) fn separates(self, left: char, right: char) -> bool {
        self == Self::None || (is_stable(left) && is_stable(right))
    }
}

fn nfc(text: &str) -> Cow<'_, str> {
    match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => text.into(),
        IsNormalized::No | IsNormalized::Maybe => text.nfc().map(|(c, _)| c).collect::<String>().into(),
    }
}

/// Changes `places` in the normalized form of `text`, ascending, to places in `text`, in bytes. Those within characters that
/// normalization changed become the place where these begin.
pub(in crate::tokenizer) fn to_places_in(text: &str, places: &mut [usize]) {
    let mut places = places.iter_mut().peekable();
    // Each segment is normalized by itself.
    let (mut start, mut normal_start) = (0, 0);
    while start < text.len() {
        let next = text[start..].char_indices().skip(1).find(|&(_, c)| begins_segment(c));
        let end = next.map_or(text.len(), |(at, _)| start + at);
        let segment = &text[start..end];
        let normal = nfc(segment);
        while let Some(place) = places.next_if(|place| **place < normal_start + normal.len()) {
            let within = if normal == segment { *place - normal_start } else { 0 };
            *place = start + within;
        }
        (start, normal_start) = (end, normal_start + normal.len());
    }
}

/// Returns true if a character never combines with those before it, nor does what normalization makes of it.
fn begins_segment(c: char) -> bool {
    let mut first = None;
    decompose_canonical(c, |part| {
        first.get_or_insert(part);
    });
    is_stable(first.unwrap_or(c))
}

/// Returns true if a character is in normalized text whatever precedes it, and never combines with it.
fn is_stable(c: char) -> bool {
    c.is_ascii() || (canonical_combining_class(c) == 0 && is_nfc_quick(std::iter::once(c)) == IsNormalized::Yes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::classes::{Classes, classes, single_digits};
    use super::*;

    /// Text that normalization changes: letters and signs with marks, jamo, characters that decompose.
    fn text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            3 => "[a-zA-Z<=>' 1]",
            3 => "[\u{300}-\u{345}\u{338}\u{315}\u{327}]{1,3}",
            2 => "[\u{1100}-\u{1105}\u{1161}-\u{1165}\u{11a8}-\u{11ad}가각]{1,3}",
            2 => "[éÅ\u{212b}\u{212a}\u{958}\u{f900}\u{340}\u{344}\u{1f71}\u{2126}\u{37e}]",
            1 => "[\u{9c7}\u{9be}\u{9d7}\u{b92}\u{bd7}か\u{3099}]{1,2}",
            1 => any::<char>().prop_map(String::from),
        ];
        prop::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
    }

    #[test]
    fn the_quick_check_is_right_about_every_character() {
        for c in '\0'..=char::MAX {
            for text in [format!("{c}"), format!("a{c}"), format!("{c}\u{301}"), format!("가{c}")] {
                let normal: String = text.nfc().map(|(c, _)| c).collect();
                assert_eq!(Normalizer::Nfc.apply(&text), normal, "{text:?}");
            }
        }
    }

    #[test]
    fn a_mark_never_changes_the_class_of_its_character() {
        let class = |table: &Classes, c: char| table.at(c.to_string().as_bytes(), 0).0;
        let mut composed = 0;
        for c in '\0'..=char::MAX {
            let parts: String = c.to_string().nfd().map(|(c, _)| c).collect();
            let first = parts.chars().next().unwrap();
            if first != c && nfc(&parts) == c.to_string() {
                composed += 1;
                for table in [classes(), single_digits()] {
                    assert_eq!(class(table, first), class(table, c), "{c:?}");
                }
            }
        }
        assert!(composed > 10_000, "{composed}");
    }

    #[test]
    fn a_normalized_text_is_not_copied() {
        assert!(matches!(Normalizer::Nfc.apply("Größe, 한글, 中文"), Cow::Borrowed(_)));
        assert!(matches!(Normalizer::None.apply("e\u{301}"), Cow::Borrowed(_)));
        assert_eq!(Normalizer::Nfc.apply("e\u{301}t\u{212b}"), "étÅ");
    }

    #[test]
    fn places_are_those_of_the_text_that_was_given() {
        let mut places = [0, 1, 2, 3, 5, 6];
        // "xé中!": é was two characters in three bytes.
        to_places_in("xe\u{301}中!", &mut places);
        assert_eq!(places, [0, 1, 1, 4, 6, 7]);
    }

    proptest! {
        #[test]
        fn what_precedes_a_place_is_what_preceded_it_in_normalized_text(text in text()) {
            let normal = nfc(&text);
            let mut places: Vec<usize> = (0..normal.len()).collect();
            to_places_in(&text, &mut places);
            for (place, at) in places.into_iter().enumerate() {
                // Where the place is within a character that did not change, so is the new one.
                let (floor, within) = (text.floor_char_boundary(at), at - text.floor_char_boundary(at));
                let before = nfc(&text[..floor]);
                prop_assert!(normal.starts_with(&*before) && before.len() + within <= place);
                // No later start of a segment would do.
                let later = text[floor..].char_indices().skip(1).find(|&(_, c)| begins_segment(c));
                prop_assert!(later.is_none_or(|(next, _)| nfc(&text[..floor + next]).len() > place));
            }
        }

        #[test]
        fn parts_of_a_split_are_normalized_as_the_whole(before in text(), after in text()) {
            let (Some(left), Some(right)) = (before.chars().next_back(), after.chars().next()) else { return Ok(()) };
            if Normalizer::Nfc.separates(left, right) {
                let whole = before.clone() + &after;
                prop_assert_eq!(format!("{}{}", nfc(&before), nfc(&after)), nfc(&whole));
                prop_assert!(nfc(&before).ends_with(left));
            }
        }
    }
}
