//! Merges of a SentencePiece vocabulary, which the scores of its tokens give.

use std::collections::HashMap;

/// Longest token that merges are looked for, in bytes: several times the longest piece of SentencePiece. It bounds the time that
/// a hostile vocabulary takes.
pub(super) const MAX_BYTES: usize = 256;

/// Returns the pairs of tokens that make up another, the best first: the highest score, then the longest left part. `tokens` are
/// the ones that merges make or join: text, id and score. The error says that they take more than `max` bytes.
pub(super) fn merges<'a>(tokens: &[(&'a str, u32, f64)], max: usize) -> Result<Vec<(&'a str, &'a str)>, String> {
    let ids: HashMap<&str, u32> = tokens.iter().map(|&(text, id, _)| (text, id)).collect();
    let mut found = Vec::new();
    let mut bytes = 0;
    for &(text, _, score) in tokens.iter().filter(|(text, ..)| text.len() <= MAX_BYTES) {
        let first = found.len();
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                let lengths = (left.chars().count(), right.chars().count());
                found.push((score + 0.0, lengths, (left_id, right_id), (left, right)));
                bytes += text.len();
            }
        }
        if bytes > max {
            return Err(format!("the merges of the vocabulary take more than {max} bytes"));
        }
        found[first..].sort_by_key(|&(_, _, ids, _)| ids);
    }
    // Stable: what is equal stays in the order of the vocabulary.
    found.sort_by(|one, other| other.0.total_cmp(&one.0).then(other.1.cmp(&one.1)));
    Ok(found.into_iter().map(|(.., pair)| pair).collect())
}
