//! Which tokens go through the layers together, and which of them see each other.
//!
//! A [`Plan`] cuts a batch into passes of so many tokens, so that memory does not grow with the batch and what a
//! layer leaves behind is still in cache when the next one reads it. Rows are never cut, and a row stays with those that
//! continue it.

use std::ops::Range;

use ngen3_engine::{Batch, IGNORE, Row};

/// Tokens that go through the layers together, or one row where rows are longer.
pub const PASS_TOKENS: usize = 2048;

/// As many where nothing but hidden states is asked for.
pub const TEACHER_TOKENS: usize = 512;

/// Tokens in the largest pass, of up to `most` tokens or one row, of `rows` rows of `len` tokens.
pub fn largest_pass(rows: usize, len: usize, most: usize) -> usize {
    (most / len).clamp(1, rows) * len
}

/// One row within its pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its first token in the pass.
    pub start: usize,
    /// Tokens.
    pub len: usize,
    /// The tokens of the pass that it continues.
    pub prefix: Range<usize>,
}

/// Rows that go through the layers together.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Its first token's place in the batch.
    pub first: usize,
    /// `[tokens]`
    pub inputs: &'a [u32],
    /// `[tokens]`: the place of each token in its row, after what the row continues.
    pub positions: &'a [u32],
    /// `[tokens]`, [`IGNORE`] among them.
    pub targets: &'a [u32],
    /// `[counted]`: the targets that count.
    pub counted: &'a [u32],
    /// The rows.
    pub spans: &'a [Span],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cut {
    tokens: Range<usize>,
    counted: Range<usize>,
    spans: Range<usize>,
}

/// How a batch is cut up. Made anew for each batch in the memory of the last one.
#[derive(Debug, Default)]
pub struct Plan {
    cuts: Vec<Cut>,
    spans: Vec<Span>,
    positions: Vec<u32>,
    counted: Vec<u32>,
}

impl Plan {
    /// Plans a batch that [`Batch::check`] has passed, in passes of up to `most` tokens or one row.
    pub fn make(&mut self, batch: &Batch, most: usize) {
        let Self { cuts, spans, positions, counted } = self;
        cuts.clear();
        spans.clear();
        positions.clear();
        counted.clear();
        let mut cut = Cut::default();
        let mut rows = &batch.rows[..];
        while let Some(family) = family(rows) {
            rows = &rows[family.len()..];
            let tokens = family.iter().map(|row| row.len).sum::<usize>();
            if !cut.tokens.is_empty() && cut.tokens.len() + tokens > most {
                cuts.push(cut.clone());
                let (tokens, counted, spans) = (cut.tokens.end, cut.counted.end, cut.spans.end);
                cut = Cut { tokens: tokens..tokens, counted: counted..counted, spans: spans..spans };
            }
            let root = cut.tokens.len()..cut.tokens.len() + family[0].len;
            let mut start = cut.tokens.len();
            for row in family {
                let prefix = if row.continues { root.clone() } else { 0..0 };
                positions.extend((0..row.len).map(|i| (prefix.len() + i) as u32));
                spans.push(Span { start, len: row.len, prefix });
                start += row.len;
            }
            let targets = &batch.targets[cut.tokens.end..cut.tokens.end + tokens];
            counted.extend(targets.iter().filter(|&&target| target != IGNORE));
            cut.tokens.end += tokens;
            cut.spans.end += family.len();
            cut.counted.end = counted.len();
        }
        cuts.push(cut);
    }

    /// Tokens in the largest pass.
    pub fn most_tokens(&self) -> usize {
        self.cuts.iter().map(|cut| cut.tokens.len()).max().unwrap_or(0)
    }

    /// Targets that count.
    pub fn counted(&self) -> usize {
        self.counted.len()
    }

    /// The passes of the batch that this plan was made for.
    pub fn passes<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = Pass<'a>> {
        self.cuts.iter().map(|cut| Pass {
            first: cut.tokens.start,
            inputs: &batch.inputs[cut.tokens.clone()],
            positions: &self.positions[cut.tokens.clone()],
            targets: &batch.targets[cut.tokens.clone()],
            counted: &self.counted[cut.counted.clone()],
            spans: &self.spans[cut.spans.clone()],
        })
    }
}

/// The first row with those that continue it.
fn family(rows: &[Row]) -> Option<&[Row]> {
    let (_, others) = rows.split_first()?;
    Some(&rows[..1 + others.iter().take_while(|row| row.continues).count()])
}

impl Pass<'_> {
    /// Moves the hidden states whose target counts to the front of `hidden`, `[tokens, width]`, in order.
    pub fn gather_counted(&self, hidden: &mut [f32]) {
        if self.counted.len() == self.targets.len() {
            return;
        }
        let width = hidden.len() / self.targets.len();
        let counted = self.targets.iter().enumerate().filter(|&(_, &target)| target != IGNORE);
        for (to, (from, _)) in counted.enumerate() {
            hidden.copy_within(from * width..(from + 1) * width, to * width);
        }
    }

    /// Moves the gradients of the hidden states that counted back to their places, and gives the others none.
    pub fn scatter_counted(&self, dhidden: &mut [f32]) {
        if self.counted.len() == self.targets.len() {
            return;
        }
        let width = dhidden.len() / self.targets.len();
        let mut left = self.counted.len();
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
    use super::*;

    #[test]
    fn rows_stay_whole_and_with_those_that_continue_them() {
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
        let mut plan = Plan::default();
        for _ in 0..2 {
            plan.make(&batch, PASS_TOKENS);
            let passes: Vec<_> = plan.passes(&batch).collect();
            let tokens: Vec<_> = passes.iter().map(|pass| pass.inputs.len()).collect();
            assert_eq!(tokens, [2000, 49, 5000, 3]);
            assert_eq!(plan.most_tokens(), 5000);
            assert_eq!(plan.counted(), 7052 - 6);
            assert_eq!(passes[1].spans[1], Span { start: 40, len: 9, prefix: 0..40 });
            assert_eq!(passes[1].positions[39..], [39, 40, 41, 42, 43, 44, 45, 46, 47, 48]);
            assert_eq!(passes[2].spans, [Span { start: 0, len: 5000, prefix: 0..0 }]);
            assert_eq!(passes[3].positions, [0, 1, 2]);
        }
    }

    #[test]
    fn what_counts_moves_to_the_front_and_back() {
        let mut batch = Batch::default();
        batch.push(&[0; 5], &[IGNORE, 7, IGNORE, 8, 9]);
        let mut plan = Plan::default();
        plan.make(&batch, PASS_TOKENS);
        let pass = plan.passes(&batch).next().expect("a pass");
        assert_eq!(pass.counted, [7, 8, 9]);
        let mut hidden: Vec<f32> = (0..10).map(|x| x as f32).collect();
        pass.gather_counted(&mut hidden);
        assert_eq!(hidden[..6], [2.0, 3.0, 6.0, 7.0, 8.0, 9.0]);
        pass.scatter_counted(&mut hidden);
        assert_eq!(hidden, [0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 6.0, 7.0, 8.0, 9.0]);
    }
}
