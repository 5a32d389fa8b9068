//! Passes: a batch is split into groups of sequences that go through the layers together.

use std::ops::Range;

use crate::{Batch, Dropout, DropoutSite, Feed, PASS_TOKENS, PageTable};

/// One sequence of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Range of its tokens in the pass.
    pub tokens: Range<usize>,
    /// Earlier tokens that it attends to.
    pub before: Before,
}

/// Earlier tokens that a sequence attends to besides its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// None.
    Nothing,
    /// A prefix in the same pass, by its range of tokens.
    Tokens(Range<usize>),
    /// Tokens of earlier passes, whose keys and values are in this slot of the cache; those of this pass are appended.
    Cache(usize),
}

/// Sequences of one pass, concatenated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// `[tokens]`
    pub inputs: Vec<u32>,
    /// `[tokens]`: position of each token in its sequence, including what that continues.
    pub positions: Vec<u32>,
    /// `[tokens]`; empty when decoding.
    pub targets: Vec<u32>,
    /// The sequences.
    pub spans: Vec<Span>,
}

impl Pass {
    /// Returns the tokens of feeds, which continue the sequences of a decoder.
    pub fn of_feeds(feeds: &[Feed<'_>], table: &PageTable) -> Self {
        let mut pass = Self::default();
        for &Feed { sequence, tokens, .. } in feeds {
            pass.push(tokens, table.len(sequence), Before::Cache(sequence));
        }
        pass
    }

    /// Appends a sequence whose first token has this position.
    pub fn push(&mut self, inputs: &[u32], position: usize, before: Before) {
        let start = self.inputs.len();
        self.inputs.extend_from_slice(inputs);
        self.positions.extend((position..position + inputs.len()).map(|position| position as u32));
        self.spans.push(Span { tokens: start..self.inputs.len(), before });
    }
}

/// Splits a batch that passed [`Batch::check`] into passes of at most [`PASS_TOKENS`] tokens. Sequences stay whole and with
/// those that continue them.
pub fn passes(batch: &Batch) -> Vec<Pass> {
    let (mut passes, mut pass, mut start) = (Vec::new(), Pass::default(), 0);
    for family in batch.sequences.chunk_by(|_, next| next.continues) {
        let tokens: usize = family.iter().map(|sequence| sequence.len).sum();
        if !pass.inputs.is_empty() && pass.inputs.len() + tokens > PASS_TOKENS {
            passes.push(std::mem::take(&mut pass));
        }
        let prefix = pass.inputs.len()..pass.inputs.len() + family[0].len;
        for sequence in family {
            let tokens = start..start + sequence.len;
            let (position, before) =
                if sequence.continues { (prefix.len(), Before::Tokens(prefix.clone())) } else { (0, Before::Nothing) };
            pass.push(&batch.inputs[tokens.clone()], position, before);
            pass.targets.extend_from_slice(&batch.targets[tokens.clone()]);
            start = tokens.end;
        }
    }
    passes.push(pass);
    passes
}

/// Dropout of one pass.
#[derive(Clone, Copy, Debug)]
pub struct PassDropout {
    /// Dropout probability.
    pub p: f32,
    /// See [`pass_seed`](crate::pass_seed).
    pub seed: u64,
}

impl PassDropout {
    /// No dropout.
    pub const NONE: Self = Self { p: 0.0, seed: 0 };

    /// Returns the dropout at one site of the network.
    pub fn at(self, site: DropoutSite) -> Option<Dropout> {
        Dropout::new(self.p, self.seed, site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_at_2048_tokens_and_sequences_stay_with_those_that_continue_them() {
        let mut batch = Batch::default();
        for len in [1500, 500, 40, 9, 5000, 3] {
            let ids = vec![1; len];
            if len == 9 { batch.push_after(&ids, &ids) } else { batch.push(&ids, &ids) }
        }
        let passes = passes(&batch);
        assert_eq!(passes.iter().map(|pass| pass.targets.len()).collect::<Vec<_>>(), [2000, 49, 5000, 3]);
        assert_eq!(passes[1].spans[1], Span { tokens: 40..49, before: Before::Tokens(0..40) });
        assert_eq!(passes[1].positions[38..], [38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48]);
        assert_eq!(passes[3].positions, [0, 1, 2]);
    }
}
