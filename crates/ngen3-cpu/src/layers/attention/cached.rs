//! Attention of new tokens over a key-value cache: forward only, in f32.

use std::ops::Range;

use ngen3_simd::{exp_and_sum, max, simd, sum_zip};

use super::forward::head_forward;
use super::shape::{Shape, for_each_head, head_scratch};
use crate::base::profile::{Part, timed};
use crate::gemm::{Canvas, Mat};

/// Amount of work, in query × key × width, up to which one thread is faster: waking another costs more than a few short dot
/// products.
const SMALL: usize = 1 << 17;

/// New tokens of one sequence in a pass, and the location of its keys and values.
#[derive(Clone, Copy, Debug)]
pub struct CachedSequence {
    /// Index of its first token in the pass.
    pub start: usize,
    /// Number of new tokens.
    pub len: usize,
    /// Number of tokens already in the cache.
    pub before: usize,
    /// Slot in the cache; slots of one block's keys and values follow one another.
    pub slot: usize,
}

impl CachedSequence {
    fn tokens(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Number of tokens in the cache, new ones included.
    fn keys(&self) -> usize {
        self.before + self.len
    }
}

/// Length in f32 of the scratch memory of [`cached`] on `threads` threads, for sequences up to the context length.
pub fn cached_scratch(shape: Shape, threads: usize) -> usize {
    threads * head_scratch(shape.longest, shape.head_width)
}

/// Appends the new tokens' keys and values to the cache and fills `out`.
///
/// `qkv`: [tokens, 3·width]; `cache`: [slots, block_size, 2·width], per token the keys of all heads, then the values; `out`:
/// [tokens, width]; `lse`: [tokens·heads], working memory. `scratch` is [`cached_scratch`] long.
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
        // SAFETY: each (sequence, head) belongs to one task, and windows of different heads share no column.
        let (mut out, lse) = unsafe { (out.window(sequence.tokens(), columns), lse.row(0, first..first + len)) };
        if len == 1 {
            one_query(q.row(0), k, v, out.row_mut(0), &mut scratch[..before + 1]);
        } else {
            let [k, v] = [k, v].map(|all| [all.rows(0..before), all.rows(before..before + len)]);
            head_forward::<1>(q, k, v, None, out, lse, scratch);
        }
    });
}

/// Computes attention of one query, `[head_width]`, over keys and values, `[keys, head_width]`, read in place: memory bandwidth
/// is the limit. `scores`: `[keys]`, working memory.
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
