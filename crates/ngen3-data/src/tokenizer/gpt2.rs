//! GPT-2's vocabulary, embedded in the program. `gpt2/README.md` gives its source.

use super::bpe::Bpe;

/// Two little-endian u16 ids per merge.
const MERGES: &[u8] = include_bytes!("gpt2/merges.bin");

/// Makes the vocabulary: 256 bytes, 50,000 merges, `<|endoftext|>`.
pub(super) fn gpt2() -> Bpe {
    let (pairs, []) = MERGES.as_chunks::<4>() else { unreachable!("four bytes a merge") };
    let merge = |(rank, &[a, b, c, d]): (usize, &[u8; 4])| {
        (u16::from_le_bytes([a, b]).into(), u16::from_le_bytes([c, d]).into(), 256 + rank as u32)
    };
    Bpe::from_merges(pairs.iter().enumerate().map(merge), super::limits::ENDOFTEXT)
}

#[cfg(test)]
mod tests {
    use ngen3_model::hash::sha256;

    #[test]
    fn the_merges_are_those_openai_published() {
        let bpe = super::gpt2();
        let tokens = bpe.spellings();
        let mut vocab_bpe = String::from("#version: 0.2\n");
        for (left, right) in bpe.merges().in_order() {
            vocab_bpe += &format!("{} {}\n", tokens[left as usize], tokens[right as usize]);
        }
        assert_eq!(sha256(vocab_bpe), "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5");
        assert_eq!(bpe.vocab_size(), 50257);
    }
}
