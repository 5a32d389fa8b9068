//! Tests of attention against its definition, finite differences and its own other paths.

use ngen3_engine::{Dropout, DropoutSite, Feed, PAGE, PageTable};

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
    /// `heads`: number of query heads and of key heads.
    fn new(heads: [usize; 2], head_width: usize, rows: &[(usize, Option<usize>)]) -> Self {
        let (mut spans, mut tokens): (Vec<Span>, usize) = (Vec::new(), 0);
        for &(len, after) in rows {
            let prefix = after.map_or(0..0, |row| spans[row].start..spans[row].start + spans[row].len);
            spans.push(Span { start: tokens, len, prefix });
            tokens += len;
        }
        let longest = spans.iter().map(|span| span.prefix.len() + span.len).max().expect("a row");
        let [n_head, n_kv_head] = heads;
        Self { shape: Shape { n_head, n_kv_head, head_width, longest }, spans, tokens }
    }

    fn qkv(&self) -> Vec<f32> {
        random(self.tokens * self.shape.qkv_width(), 1)
    }

    fn run(&self, precision: Precision, qkv: &[f32], dropout: Option<Dropout>) -> (Vec<f32>, Vec<f32>) {
        self.run_in_pieces(2, precision, qkv, dropout)
    }

    /// Runs the forward pass with scratch memory for this many threads. Returns `out` and `lse`.
    fn run_in_pieces(
        &self,
        pieces: usize,
        precision: Precision,
        qkv: &[f32],
        dropout: Option<Dropout>,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut out = vec![f32::NAN; self.tokens * self.shape.width()];
        let mut lse = vec![f32::NAN; self.shape.n_head * self.tokens];
        let mut scratch = vec![f32::NAN; self.shape.scratch(pieces)];
        forward(precision, self.shape, &self.spans, qkv, dropout, &mut out, &mut lse, &mut scratch);
        (out, lse)
    }

    /// Runs both passes with scratch memory for this many threads. Returns `out`, `lse` and `dqkv`.
    fn run_both(
        &self,
        pieces: usize,
        precision: Precision,
        qkv: &[f32],
        dropout: Option<Dropout>,
        dout: &[f32],
    ) -> [Vec<f32>; 3] {
        let (out, lse) = self.run_in_pieces(pieces, precision, qkv, dropout);
        let mut dqkv = vec![f32::NAN; qkv.len()];
        let mut scratch = vec![f32::NAN; self.shape.scratch(pieces)];
        backward(precision, self.shape, &self.spans, qkv, &out, &lse, dropout, dout, &mut dqkv, &mut scratch);
        [out, lse, dqkv]
    }

    /// One head's query, key or value of one token.
    fn at<'a>(&self, qkv: &'a [f32], token: usize, head: usize, part: usize) -> &'a [f32] {
        self.shape.part(qkv, token..token + 1, head, part).row(0)
    }

    /// The same heads without groups: each query head has its own copy of its key and value head.
    fn repeated(&self, qkv: &[f32]) -> (Self, Vec<f32>) {
        let shape = Shape { n_kv_head: self.shape.n_head, ..self.shape };
        let mut repeated = Vec::new();
        for token in 0..self.tokens {
            for (part, head) in [0, 1, 2].into_iter().flat_map(|part| (0..shape.n_head).map(move |head| (part, head))) {
                let head = if part == 0 { head } else { head / self.shape.group() };
                repeated.extend_from_slice(self.at(qkv, token, head, part));
            }
        }
        (Self { shape, spans: self.spans.clone(), tokens: self.tokens }, repeated)
    }
}

fn dropouts() -> [Option<Dropout>; 2] {
    [None, Dropout::new(0.3, 5, DropoutSite::Attention(1))]
}

/// Sequences that continue no other.
fn rows_alone() -> Vec<Case> {
    let mut cases = vec![
        Case::new([3, 3], 4, &[(5, None), (5, None)]),
        Case::new([1, 1], 3, &[(1, None)]),
        Case::new([2, 2], 5, &[(71, None), (3, None), (40, None)]),
        Case::new([1, 1], 33, &[(129, None)]),
        Case::new([2, 1], 17, &[(33, None)]),
        Case::new([2, 1], 80, &[(65, None)]),
    ];
    cases.extend(grouped());
    cases
}

/// Sequences of which some continue others.
fn continued() -> [Case; 4] {
    let rows = [(3, None), (9, None), (70, Some(1)), (5, Some(1)), (6, None), (1, Some(4))];
    [([2, 2], 4), ([6, 2], 4), ([3, 1], 4), ([2, 1], 40)].map(|(heads, width)| Case::new(heads, width, &rows))
}

fn grouped() -> Vec<Case> {
    vec![
        Case::new([6, 2], 5, &[(71, None), (3, None), (40, None)]),
        Case::new([6, 3], 4, &[(5, None), (5, None)]),
        Case::new([6, 1], 3, &[(1, None), (20, None)]),
        Case::new([4, 2], 33, &[(67, None)]),
    ]
}

#[test]
fn forward_matches_the_definition() {
    for case in rows_alone().into_iter().chain(continued()) {
        let Shape { n_head, n_kv_head, head_width, .. } = case.shape;
        let qkv = case.qkv();
        let (out, _) = case.run(F32, &qkv, None);
        for (span, head) in case.spans.iter().flat_map(|span| (0..n_head).map(move |head| (span, head))) {
            let kv_head = head / (n_head / n_kv_head);
            for query in span.start..span.start + span.len {
                let seen: Vec<usize> = span.prefix.clone().chain(span.start..query + 1).collect();
                let score = |j| dot(case.at(&qkv, query, head, 0), case.at(&qkv, j, kv_head, 1));
                let p: Vec<f64> = seen.iter().map(|&j| (score(j) / (head_width as f64).sqrt()).exp()).collect();
                for d in 0..head_width {
                    let value = |j| f64::from(case.at(&qkv, j, kv_head, 2)[d]);
                    let sum = p.iter().zip(&seen).map(|(p, &j)| p * value(j)).sum::<f64>();
                    let expected = sum / p.iter().sum::<f64>();
                    let found = f64::from(out[(query * n_head + head) * head_width + d]);
                    assert!((found - expected).abs() < 1e-5, "{:?}: expected {expected}, got {found}", case.shape);
                }
            }
        }
    }
}

#[test]
fn backward_matches_finite_differences_with_and_without_dropout() {
    for case in rows_alone() {
        for dropout in dropouts() {
            let qkv = case.qkv();
            let dout = random(case.tokens * case.shape.width(), 2);
            let [_, _, dqkv] = case.run_both(2, F32, &qkv, dropout, &dout);
            check_gradient(&qkv, &dqkv, |qkv| dot(&case.run(F32, qkv, dropout).0, &dout));
        }
    }
}

#[test]
fn in_bf16_both_passes_stay_near_f32() {
    for case in rows_alone() {
        for dropout in dropouts() {
            let qkv = case.qkv();
            let dout = random(case.tokens * case.shape.width(), 2);
            let [f32, bf16] = [F32, Bf16].map(|precision| case.run_both(2, precision, &qkv, dropout, &dout));
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
fn in_bf16_sequences_that_continue_others_stay_near_f32() {
    for case in continued() {
        let qkv = case.qkv();
        let [(found, _), (expected, _)] = [Bf16, F32].map(|precision| case.run(precision, &qkv, None));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 0.02, "{:?}: expected {expected}, got {found}", case.shape);
        }
    }
}

/// Keys' and values' gradients are then sums over the copies.
#[test]
fn groups_equal_repeated_keys_and_values() {
    for case in grouped() {
        for (dropout, precision) in dropouts().into_iter().flat_map(|dropout| [(dropout, F32), (dropout, Bf16)]) {
            let qkv = case.qkv();
            let dout = random(case.tokens * case.shape.width(), 2);
            let [out, lse, dqkv] = case.run_both(2, precision, &qkv, dropout, &dout);
            let (alone, repeated) = case.repeated(&qkv);
            let [expected_out, expected_lse, drepeated] = alone.run_both(2, precision, &repeated, dropout, &dout);
            assert!(out == expected_out && lse == expected_lse, "{:?}", case.shape);
            let Shape { n_head, n_kv_head, head_width, .. } = case.shape;
            for token in 0..case.tokens {
                for head in 0..n_head {
                    assert_eq!(case.at(&dqkv, token, head, 0), alone.at(&drepeated, token, head, 0));
                }
                for (part, head) in [1, 2].into_iter().flat_map(|part| (0..n_kv_head).map(move |head| (part, head))) {
                    let group = n_head / n_kv_head;
                    let mut sum = vec![0.0; head_width];
                    for copy in head * group..(head + 1) * group {
                        let copy = alone.at(&drepeated, token, copy, part);
                        sum.iter_mut().zip(copy).for_each(|(sum, x)| *sum += x);
                    }
                    assert_eq!(case.at(&dqkv, token, head, part), sum);
                }
            }
        }
    }
}

/// One piece of scratch memory makes tasks of whole groups, many make tasks of single heads.
#[test]
fn the_number_of_threads_does_not_change_the_bits() {
    for case in rows_alone() {
        let qkv = case.qkv();
        let dout = random(case.tokens * case.shape.width(), 2);
        for precision in [F32, Bf16] {
            let [one, two, many] = [1, 2, 9].map(|pieces| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(pieces).build().expect("threads");
                pool.install(|| case.run_both(pieces, precision, &qkv, None, &dout))
            });
            assert!(one == two && one == many, "{:?}", case.shape);
        }
    }
}

/// Feeds two sequences to a cache, in steps of several tokens and of one.
#[test]
fn cached_steps_equal_one_pass() {
    for precision in [F32, Bf16] {
        for (heads, head_width) in [([2, 2], 5), ([6, 2], 5), ([6, 1], 3), ([9, 3], 64), ([40, 1], 1)] {
            check_cached_steps(precision, heads, head_width);
        }
    }
}

fn check_cached_steps(precision: Precision, heads: [usize; 2], head_width: usize) {
    let tolerance = if precision == F32 { 1e-6 } else { 0.02 };
    let case = Case::new(heads, head_width, &[(300, None), (31, None)]);
    let (qkv, shape) = (case.qkv(), case.shape);
    let (expected, _) = case.run(F32, &qkv, None);
    let (row, width) = (shape.qkv_width(), shape.width());
    let pages = 2 * shape.longest.div_ceil(PAGE);
    let mut table = PageTable::new(2, pages).expect("two sequences");
    let mut rows = vec![f32::NAN; pages * PAGE * 2 * shape.kv_width()];
    let mut done = [0, 0];
    for step in [[50, 1], [1, 21], [1, 1], [1, 1], [36, 1], [38, 1], [1, 1], [130, 1], [1, 1], [40, 1], [1, 1]] {
        let (mut sequences, mut fed) = (Vec::new(), Vec::new());
        for (i, len) in step.into_iter().enumerate() {
            // The sequences' slots are in the opposite order.
            sequences.push(CachedSequence { start: fed.len() / row, len, before: done[i], slot: 1 - i });
            table.grow(&[Feed::new(1 - i, &vec![0; len])]);
            let first = case.spans[i].start + done[i];
            fed.extend_from_slice(&qkv[first * row..(first + len) * row]);
        }
        let tokens = fed.len() / row;
        let (mut out, mut lse) = (vec![f32::NAN; tokens * width], vec![f32::NAN; tokens * shape.n_head]);
        let mut scratch = vec![f32::NAN; cached_scratch(shape, &sequences, rayon::current_num_threads())];
        let mut cache = Cache { rows: &mut rows, table: &table };
        cached(precision, shape, &sequences, &fed, &mut cache, &mut out, &mut lse, &mut scratch);
        for (i, CachedSequence { start, len, .. }) in sequences.into_iter().enumerate() {
            let first = case.spans[i].start + done[i];
            let expected = &expected[first * width..(first + len) * width];
            for (found, expected) in out[start * width..].iter().zip(expected) {
                assert!((found - expected).abs() < tolerance, "{shape:?}: expected {expected}, got {found}");
            }
            done[i] += len;
        }
    }
    assert_eq!(done, [300, 31]);
}
