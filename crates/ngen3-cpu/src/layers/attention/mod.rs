//! Causal self-attention: out = softmax(q·kᵀ/√head_width)·v for each head   (Vaswani et al. 2017).
//!
//! `qkv`: [tokens, 3·width], all queries, then keys, then values, as `c_attn` computes them; `out`: [tokens, width], the heads
//! concatenated; saved for the backward pass: `qkv`, `out` and `lse`, [heads, tokens] per sequence: the log of each softmax's
//! denominator.
//!
//! No heads × tokens × tokens buffer exists. A task takes one head of one sequence, a few queries at a time, with the keys up to
//! these queries only. The backward pass (`backward.rs`) recomputes the probabilities from `lse`, as FlashAttention does (Dao et
//! al. 2022). A task first copies its operands from the widely spaced rows of `qkv` to scratch memory that stays in its cache, as
//! cells of `P` elements (`gemm/tiles/`): pairs of bf16, or single f32. Scores, probabilities and sums are f32.

mod backward;
mod cached;
mod forward;
mod operands;
mod shape;

pub use backward::backward;
pub use cached::{CachedSequence, cached, cached_scratch};
pub use forward::forward;
pub use shape::{Shape, Span};

#[cfg(test)]
mod tests {
    use ngen3_engine::{Dropout, DropoutSite};

    use super::cached::one_query;
    use super::*;
    use crate::base::testing::{check_gradient, dot, random};
    use crate::gemm::Precision;
    use crate::gemm::Precision::{Bf16, F32};

    /// Sequences of these lengths; a sequence continues the one whose index its pair names, if any.
    struct Case {
        shape: Shape,
        spans: Vec<Span>,
        tokens: usize,
    }

    impl Case {
        fn new(n_head: usize, head_width: usize, rows: &[(usize, Option<usize>)]) -> Self {
            let (mut spans, mut tokens): (Vec<Span>, usize) = (Vec::new(), 0);
            for &(len, after) in rows {
                let prefix = after.map_or(0..0, |row| spans[row].start..spans[row].start + spans[row].len);
                spans.push(Span { start: tokens, len, prefix });
                tokens += len;
            }
            let longest = spans.iter().map(|span| span.prefix.len() + span.len).max().expect("a row");
            Self { shape: Shape { n_head, head_width, longest }, spans, tokens }
        }

        fn qkv(&self) -> Vec<f32> {
            random(self.tokens * 3 * self.shape.width(), 1)
        }

        fn run(&self, precision: Precision, qkv: &[f32], dropout: Option<Dropout>) -> (Vec<f32>, Vec<f32>) {
            let mut out = vec![f32::NAN; self.tokens * self.shape.width()];
            let mut lse = vec![f32::NAN; self.shape.n_head * self.tokens];
            let mut scratch = vec![f32::NAN; self.shape.scratch(2)];
            forward(precision, self.shape, &self.spans, qkv, dropout, &mut out, &mut lse, &mut scratch);
            (out, lse)
        }
    }

    fn rows_alone() -> [Case; 4] {
        [
            Case::new(3, 4, &[(5, None), (5, None)]),
            Case::new(1, 3, &[(1, None)]),
            Case::new(2, 5, &[(71, None), (3, None), (40, None)]),
            Case::new(1, 33, &[(129, None)]),
        ]
    }

    #[test]
    fn forward_matches_the_definition() {
        let continued = Case::new(2, 4, &[(3, None), (9, None), (70, Some(1)), (5, Some(1)), (6, None), (1, Some(4))]);
        for case in rows_alone().into_iter().chain([continued]) {
            let Shape { n_head, head_width, .. } = case.shape;
            let width = case.shape.width();
            let qkv = case.qkv();
            let (out, _) = case.run(F32, &qkv, None);
            let at = |token: usize, part: usize, head: usize, d: usize| {
                f64::from(qkv[token * 3 * width + part * width + head * head_width + d])
            };
            for (span, head) in case.spans.iter().flat_map(|span| (0..n_head).map(move |head| (span, head))) {
                for query in span.start..span.start + span.len {
                    let seen: Vec<usize> = span.prefix.clone().chain(span.start..query + 1).collect();
                    let score = |j| (0..head_width).map(|d| at(query, 0, head, d) * at(j, 1, head, d)).sum::<f64>();
                    let p: Vec<f64> = seen.iter().map(|&j| (score(j) / (head_width as f64).sqrt()).exp()).collect();
                    for d in 0..head_width {
                        let sum = p.iter().zip(&seen).map(|(p, &j)| p * at(j, 2, head, d)).sum::<f64>();
                        let expected = sum / p.iter().sum::<f64>();
                        let found = f64::from(out[query * width + head * head_width + d]);
                        assert!((found - expected).abs() < 1e-5, "{:?}: expected {expected}, got {found}", case.shape);
                    }
                }
            }
        }
    }

    #[test]
    fn backward_matches_finite_differences_with_and_without_dropout() {
        for case in rows_alone() {
            for dropout in [None, Dropout::new(0.3, 5, DropoutSite::Attention(1))] {
                let qkv = case.qkv();
                let (out, lse) = case.run(F32, &qkv, dropout);
                let dout = random(out.len(), 2);
                let mut dqkv = vec![f32::NAN; qkv.len()];
                let mut scratch = vec![f32::NAN; case.shape.scratch(2)];
                backward(F32, case.shape, &case.spans, &qkv, &out, &lse, dropout, &dout, &mut dqkv, &mut scratch);
                check_gradient(&qkv, &dqkv, |qkv| dot(&case.run(F32, qkv, dropout).0, &dout));
            }
        }
    }

    #[test]
    fn in_bf16_both_passes_stay_near_f32() {
        for case in rows_alone() {
            for dropout in [None, Dropout::new(0.3, 5, DropoutSite::Attention(1))] {
                let qkv = case.qkv();
                let dout = random(qkv.len() / 3, 2);
                let [f32, bf16] = [F32, Bf16].map(|precision| {
                    let (out, lse) = case.run(precision, &qkv, dropout);
                    let mut dqkv = vec![f32::NAN; qkv.len()];
                    let mut scratch = vec![f32::NAN; case.shape.scratch(2)];
                    let Case { shape, spans, .. } = &case;
                    backward(precision, *shape, spans, &qkv, &out, &lse, dropout, &dout, &mut dqkv, &mut scratch);
                    [out, lse, dqkv]
                });
                for (i, (found, expected)) in bf16.iter().zip(&f32).enumerate() {
                    let scale = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    for (found, expected) in found.iter().zip(expected) {
                        let gap = (found - expected).abs();
                        assert!(gap < 0.02 * scale, "tensor {i} of {:?}: expected {expected}, got {found}", case.shape);
                    }
                }
            }
        }
    }

    #[test]
    fn one_query_sees_what_the_last_of_many_sees() {
        let case = Case::new(2, 5, &[(90, None)]);
        let qkv = case.qkv();
        let (out, _) = case.run(F32, &qkv, None);
        for head in 0..2 {
            let [q, k, v] = [0, 1, 2].map(|part| case.shape.part(&qkv, 0..90, head, part));
            let (mut found, mut scores) = ([f32::NAN; 5], [f32::NAN; 90]);
            one_query(q.row(89), k, v, &mut found, &mut scores);
            for (found, expected) in found.iter().zip(&out[89 * 10 + head * 5..]) {
                assert!((found - expected).abs() < 1e-6, "expected {expected}, got {found}");
            }
        }
    }
}
