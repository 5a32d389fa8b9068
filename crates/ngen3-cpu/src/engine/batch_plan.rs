//! Splits a batch into passes, and tells which tokens attend to each other.
//!
//! A [`BatchPlan`] limits the tokens of a pass, so that memory does not grow with the batch and a layer's output is still in
//! cache when the next layer reads it. Sequences are never split, and stay in one pass with those that continue them.

use std::ops::Range;

use ngen3_engine::{Batch, IGNORE, Sequence};

use crate::layers::attention::Span;

/// As [`ngen3_engine::PASS_TOKENS`], for passes that compute only hidden states.
pub const TEACHER_TOKENS: usize = 512;

/// Returns the tokens of the largest pass for `sequences` sequences of `len` tokens: up to `most`, or one sequence.
pub fn largest_pass(sequences: usize, len: usize, most: usize) -> usize {
    (most / len).clamp(1, sequences) * len
}

/// Sequences that run through the layers together.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Index of its first token in the batch.
    pub first: usize,
    /// `[tokens]`
    pub inputs: &'a [u32],
    /// `[tokens]`: position of each token in its sequence, counted from the start of the sequence that it continues, if any.
    pub positions: &'a [u32],
    /// `[tokens]`, some of them [`IGNORE`].
    pub targets: &'a [u32],
    /// `[target tokens]`: targets that are not ignored.
    pub kept_targets: &'a [u32],
    /// Locations of the sequences.
    pub spans: &'a [Span],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cut {
    tokens: Range<usize>,
    kept_targets: Range<usize>,
    spans: Range<usize>,
}

/// Passes of a batch. Reuses its memory for the next batch.
#[derive(Debug, Default)]
pub struct BatchPlan {
    cuts: Vec<Cut>,
    spans: Vec<Span>,
    positions: Vec<u32>,
    kept_targets: Vec<u32>,
}

impl BatchPlan {
    /// Splits a batch that passed [`Batch::check`] into passes of up to `most` tokens, or of one sequence with its continuations.
    pub fn make(&mut self, batch: &Batch, most: usize) {
        let Self { cuts, spans, positions, kept_targets } = self;
        cuts.clear();
        spans.clear();
        positions.clear();
        kept_targets.clear();
        let mut cut = Cut::default();
        let mut rest = &batch.sequences[..];
        while let Some(family) = family(rest) {
            rest = &rest[family.len()..];
            let tokens = family.iter().map(|sequence| sequence.len).sum::<usize>();
            if !cut.tokens.is_empty() && cut.tokens.len() + tokens > most {
                cuts.push(cut.clone());
                let (tokens, targets, spans) = (cut.tokens.end, cut.kept_targets.end, cut.spans.end);
                cut = Cut { tokens: tokens..tokens, kept_targets: targets..targets, spans: spans..spans };
            }
            let root = cut.tokens.len()..cut.tokens.len() + family[0].len;
            let mut start = cut.tokens.len();
            for sequence in family {
                let prefix = if sequence.continues { root.clone() } else { 0..0 };
                positions.extend((0..sequence.len).map(|i| (prefix.len() + i) as u32));
                spans.push(Span { start, len: sequence.len, prefix });
                start += sequence.len;
            }
            let targets = &batch.targets[cut.tokens.end..cut.tokens.end + tokens];
            kept_targets.extend(targets.iter().filter(|&&target| target != IGNORE));
            cut.tokens.end += tokens;
            cut.spans.end += family.len();
            cut.kept_targets.end = kept_targets.len();
        }
        cuts.push(cut);
    }

    /// Returns the tokens of the largest pass.
    pub fn most_tokens(&self) -> usize {
        self.cuts.iter().map(|cut| cut.tokens.len()).max().unwrap_or(0)
    }

    /// Returns the index of the last pass.
    pub fn last(&self) -> u64 {
        self.cuts.len() as u64 - 1
    }

    /// Returns the number of targets that are not ignored.
    pub fn num_target_tokens(&self) -> usize {
        self.kept_targets.len()
    }

    /// Iterates over the passes of the batch that this plan was made for.
    pub fn passes<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = Pass<'a>> {
        self.cuts.iter().map(|cut| Pass {
            first: cut.tokens.start,
            inputs: &batch.inputs[cut.tokens.clone()],
            positions: &self.positions[cut.tokens.clone()],
            targets: &batch.targets[cut.tokens.clone()],
            kept_targets: &self.kept_targets[cut.kept_targets.clone()],
            spans: &self.spans[cut.spans.clone()],
        })
    }
}

/// Returns the first sequence and those that continue it.
fn family(sequences: &[Sequence]) -> Option<&[Sequence]> {
    let (_, others) = sequences.split_first()?;
    Some(&sequences[..1 + others.iter().take_while(|sequence| sequence.continues).count()])
}

impl Pass<'_> {
    /// Moves the hidden states whose target is not ignored to the front of `hidden`, `[tokens, width]`, in order.
    pub fn gather_targets(&self, hidden: &mut [f32]) {
        if self.kept_targets.len() == self.targets.len() {
            return;
        }
        let width = hidden.len() / self.targets.len();
        let kept = self.targets.iter().enumerate().filter(|&(_, &target)| target != IGNORE);
        for (to, (from, _)) in kept.enumerate() {
            hidden.copy_within(from * width..(from + 1) * width, to * width);
        }
    }

    /// Moves the gradients of these hidden states back to their rows, and zeroes the others.
    pub fn scatter_targets(&self, dhidden: &mut [f32]) {
        if self.kept_targets.len() == self.targets.len() {
            return;
        }
        let width = dhidden.len() / self.targets.len();
        let mut left = self.kept_targets.len();
        for (to, &target) in self.targets.iter().enumerate().rev() {
            if target == IGNORE {
                dhidden[to * width..(to + 1) * width].fill(0.0);
            } else {
                left -= 1;
                dhidden.copy_within(left * width..(left + 1) * width, to * width);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ngen3_engine::PASS_TOKENS;

    use super::*;

    #[test]
    fn sequences_stay_whole_and_with_those_that_continue_them() {
        let mut batch = Batch::default();
        let row = |len: usize| (vec![1; len], vec![2; len]);
        for len in [1500, 500, 40, 9, 5000, 3] {
            let (inputs, mut targets) = row(len);
            targets[0] = IGNORE;
            if len == 9 {
                batch.push_after(&inputs, &targets);
            } else {
                batch.push(&inputs, &targets);
            }
        }
        let mut plan = BatchPlan::default();
        for _ in 0..2 {
            plan.make(&batch, PASS_TOKENS);
            let passes: Vec<_> = plan.passes(&batch).collect();
            let tokens: Vec<_> = passes.iter().map(|pass| pass.inputs.len()).collect();
            assert_eq!(tokens, [2000, 49, 5000, 3]);
            assert_eq!(plan.most_tokens(), 5000);
            assert_eq!(plan.num_target_tokens(), 7052 - 6);
            assert_eq!(passes[1].spans[1], Span { start: 40, len: 9, prefix: 0..40 });
            assert_eq!(passes[1].positions[39..], [39, 40, 41, 42, 43, 44, 45, 46, 47, 48]);
            assert_eq!(passes[2].spans, [Span { start: 0, len: 5000, prefix: 0..0 }]);
            assert_eq!(passes[3].positions, [0, 1, 2]);
        }
    }

    #[test]
    fn kept_targets_move_to_the_front_and_back() {
        let mut batch = Batch::default();
        batch.push(&[0; 5], &[IGNORE, 7, IGNORE, 8, 9]);
        let mut plan = BatchPlan::default();
        plan.make(&batch, PASS_TOKENS);
        let pass = plan.passes(&batch).next().expect("a pass");
        assert_eq!(pass.kept_targets, [7, 8, 9]);
        let mut hidden: Vec<f32> = (0..10).map(|x| x as f32).collect();
        pass.gather_targets(&mut hidden);
        assert_eq!(hidden[..6], [2.0, 3.0, 6.0, 7.0, 8.0, 9.0]);
        pass.scatter_targets(&mut hidden);
        assert_eq!(hidden, [0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 6.0, 7.0, 8.0, 9.0]);
    }
}
