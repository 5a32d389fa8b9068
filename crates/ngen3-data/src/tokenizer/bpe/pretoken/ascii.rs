//! The common case of every pattern: a word of ASCII letters, optionally after a space, without a branch per byte.

/// Returns the length of the word at the start of `window`, if it is ASCII letters, optionally after one space, followed within
/// the window by another ASCII character (one beyond ASCII may be a letter). Otherwise 0.
#[inline]
pub(in crate::tokenizer) fn ascii_word(window: u128) -> u32 {
    const EACH: u128 = u128::from_le_bytes([1; 16]);
    const HIGH: u128 = EACH * 0x80;
    // Per byte: lower case, then bit 7 tells "at least 'a'" and "beyond 'z'". No carry: the addends' bit 7 is clear.
    let lower = (window | (EACH * 0x20)) & !HIGH;
    let letter = (lower + (EACH * (0x80 - b'a' as u128))) & !(lower + (EACH * (0x7f - b'z' as u128))) & !window & HIGH;
    let space = u32::from(window as u8 == b' ');
    let letters = (!letter & HIGH) >> (8 * space);
    let length = letters.trailing_zeros() / 8;
    let end = space + length;
    if length == 0 || end > 15 || (window >> (8 * end)) as u8 >= 0x80 { 0 } else { end }
}
