//! Attention of new tokens over a cache of earlier keys and values: forward only, in f32.

use std::ops::Range;

use ngen3_simd::{exp_and_sum, max, simd, sum_zip};

use super::forward::head_forward;
use super::shape::{Shape, for_each_head, head_scratch};
use crate::base::profile::{Part, timed};
use crate::gemm::{Canvas, Mat};

/// Keys that one thread reads sooner than two: waking another costs more than a few short dot products.
const SMALL: usize = 1 << 17;

/// One sequence's new tokens in a pass, and where its keys and values stand.
#[derive(Clone, Copy, Debug)]
pub struct CachedSequence {
    /// Its first token in the pass.
    pub start: usize,
    /// Number of new tokens.
    pub len: usize,
    /// Tokens that the cache held before.
    pub before: usize,
    /// Its place in the cache: a block's keys and values of each sequence, one after the other.
    pub slot: usize,
}

impl CachedSequence {
    fn tokens(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Tokens that the cache holds with the new ones.
    fn keys(&self) -> usize {
        self.before + self.len
    }
}

/// Numbers that [`cached`] needs on `threads` threads, however long the sequences are.
pub fn cached_scratch(shape: Shape, threads: usize) -> usize {
    threads * head_scratch(shape.longest, shape.head_width)
}

/// Adds the new tokens' keys and values to the cache and fills `out`. `qkv`: [tokens, 3·width]; `cache`: [slots, block, 2·width],
/// in which each token has its keys of all heads followed by its values; `out`: [tokens, width]; `lse`: [tokens·heads], working
/// memory. `scratch` is [`cached_scratch`] long.
pub fn cached(
    shape: Shape,
    sequences: &[CachedSequence],
    qkv: &[f32],
    cache: &mut [f32],
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let _timed = timed(Part::Attention);
    let (c, n_head, head_width) = (shape.width(), shape.n_head, shape.head_width);
    let slot = shape.longest * 2 * c;
    for sequence in sequences {
        let to = cache[sequence.slot * slot + sequence.before * 2 * c..].chunks_exact_mut(2 * c);
        for (to, token) in to.zip(qkv[sequence.start * 3 * c..].chunks_exact(3 * c)).take(sequence.len) {
            to.copy_from_slice(&token[c..]);
        }
    }
    let cache = &*cache;
    let (out, lse) = (Canvas::new(out, c), Canvas::new(lse, lse.len()));
    let work: usize = sequences.iter().map(|sequence| sequence.len * sequence.keys() * c).sum();
    let longest = sequences.iter().map(CachedSequence::keys).max().unwrap_or(0);
    let piece = head_scratch(longest, head_width);
    let threads = if work <= SMALL { 1 } else { rayon::current_num_threads() };
    let scratch = &mut scratch[..threads * piece];
    for_each_head(sequences.len() * n_head, scratch, piece, |task, scratch| {
        let (sequence, head) = (&sequences[task / n_head], task % n_head);
        let CachedSequence { start, len, before, .. } = *sequence;
        let columns = head * head_width..(head + 1) * head_width;
        let cache = &cache[sequence.slot * slot..(sequence.slot + 1) * slot];
        let q = shape.part(qkv, sequence.tokens(), head, 0);
        let [k, v] =
            [0, c].map(|first| Mat::strided(&cache[first + columns.start..], sequence.keys(), head_width, 2 * c));
        let first = n_head * start + head * len;
        // SAFETY: each (sequence, head) is one task's alone, and windows of different heads share no column.
        let (mut out, lse) = unsafe { (out.window(sequence.tokens(), columns), lse.row(0, first..first + len)) };
        if len == 1 {
            one_query(q.row(0), k, v, out.row_mut(0), &mut scratch[..before + 1]);
        } else {
            let [k, v] = [k, v].map(|all| [all.rows(0..before), all.rows(before..before + len)]);
            head_forward::<1>(q, k, v, None, out, lse, scratch);
        }
    });
}

/// One query, `[head_width]`, over keys and values where they lie, `[keys, head_width]`: reading them is all the work there
/// is. `scores`: `[keys]`.
pub fn one_query(q: &[f32], k: Mat<'_>, v: Mat<'_>, out: &mut [f32], scores: &mut [f32]) {
    let scale = 1.0 / (q.len() as f32).sqrt();
    simd(
        #[inline(always)]
        || {
            for (i, score) in scores.iter_mut().enumerate() {
                *score = sum_zip(
                    q,
                    k.row(i),
                    #[inline(always)]
                    |a, b| a * b,
                );
            }
            let largest = max(scores);
            let total = exp_and_sum(scores, scale, largest);
            out.fill(0.0);
            for (i, &p) in scores.iter().enumerate() {
                for (out, &v) in out.iter_mut().zip(v.row(i)) {
                    *out += p * v;
                }
            }
            out.iter_mut().for_each(|out| *out /= total);
        },
    );
}
