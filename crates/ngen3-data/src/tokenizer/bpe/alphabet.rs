//! GPT-2's byte alphabet: a printable character for every byte, so that tokens can be written in JSON.
//!
//! Bytes that print in Latin-1 stand for themselves; the other 68 are `Ā`, `ā`, … (256 onwards) in the order of the
//! bytes: a space is `Ġ`, a newline `Ċ`. A byte-level vocabulary numbers its 256 single-byte tokens in the order of these
//! characters.

const fn prints(byte: u8) -> bool {
    matches!(byte, 33..=126 | 161..=172 | 174..=255)
}

/// The byte of each of the first 256 ids.
pub(in crate::tokenizer) const BYTE_OF_ID: [u8; 256] = {
    let mut order = [0; 256];
    let (mut printing, mut other) = (0, 188);
    let mut byte = 0;
    while byte < 256 {
        if prints(byte as u8) {
            order[printing] = byte as u8;
            printing += 1;
        } else {
            order[other] = byte as u8;
            other += 1;
        }
        byte += 1;
    }
    assert!(printing == 188 && other == 256);
    order
};

const CHAR_OF_BYTE: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut id = 0;
    while id < 256 {
        let byte = BYTE_OF_ID[id];
        // The 188 printing bytes come first, so id 188 is the first of the others.
        let code = if prints(byte) { byte as u32 } else { 256 + id as u32 - 188 };
        chars[byte as usize] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("codes below 512 are characters"),
        };
        id += 1;
    }
    chars
};

/// Spells a token's bytes as tokenizer.json does.
pub(in crate::tokenizer) fn bytes_to_unicode(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHAR_OF_BYTE[byte as usize]).collect()
}

/// Returns the bytes of a token spelled as in tokenizer.json; `None` if it has a character outside the alphabet.
pub(in crate::tokenizer) fn unicode_to_bytes(token: &str) -> Option<Vec<u8>> {
    token
        .chars()
        .map(|c| match c as u32 {
            code @ 0..256 => prints(code as u8).then_some(code as u8),
            code @ 256..324 => Some(BYTE_OF_ID[188 + code as usize - 256]),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let all: Vec<u8> = (0..=255).collect();
        let spelled = bytes_to_unicode(&all);
        assert_eq!(spelled.chars().collect::<std::collections::HashSet<_>>().len(), 256);
        assert_eq!(unicode_to_bytes(&spelled), Some(all));
        assert_eq!(bytes_to_unicode(b" a\n\xad\xff"), "ĠaĊŃÿ");
        assert_eq!(unicode_to_bytes("a b"), None);
        assert_eq!(unicode_to_bytes("\u{144}"), None);
    }
}
