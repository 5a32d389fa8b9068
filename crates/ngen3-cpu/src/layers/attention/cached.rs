//! Attention of new tokens over a key-value cache: forward only, in f32.

use std::ops::Range;

use ngen3_simd::{exp_and_sum, max, simd, sum_zip};

use super::forward::PackedKeys;
use super::shape::{Heads, Shape, Task, for_each_task, head_scratch};
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
    threads * task_scratch(shape, shape.longest)
}

/// Length in f32 of the scratch memory of one task with `keys` keys.
fn task_scratch(shape: Shape, keys: usize) -> usize {
    head_scratch(keys, shape.head_width).max(shape.group() * (keys + 1))
}

/// Appends the new tokens' keys and values to the cache and fills `out`.
///
/// `qkv`: as in [`super::forward`]; `cache`: [slots, block_size, 2·n_kv_head·head_width], per token the keys of all heads, then
/// the values; `out`: [tokens, n_head·head_width]; `lse`: [tokens·n_head], working memory. `scratch` is [`cached_scratch`] long.
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
    let (c, row, head_width) = (shape.kv_width(), shape.qkv_width(), shape.head_width);
    let slot = shape.longest * 2 * c;
    for sequence in sequences {
        let to = cache[sequence.slot * slot + sequence.before * 2 * c..].chunks_exact_mut(2 * c);
        for (to, token) in to.zip(qkv[sequence.start * row..].chunks_exact(row)).take(sequence.len) {
            to.copy_from_slice(&token[shape.width()..]);
        }
    }
    let cache = &*cache;
    let (out, lse) = (Canvas::new(out, shape.width()), Canvas::new(lse, lse.len()));
    let work: usize = sequences.iter().map(|sequence| sequence.len * sequence.keys() * shape.width()).sum();
    let longest = sequences.iter().map(CachedSequence::keys).max().unwrap_or(0);
    let piece = task_scratch(shape, longest);
    let threads = if work <= SMALL { 1 } else { rayon::current_num_threads() };
    let scratch = &mut scratch[..threads * piece];
    // Single queries are bound by the reading of the keys and values.
    let heads = if sequences.iter().all(|new| new.len == 1) { Heads::Shared } else { Heads::ByThreads };
    for_each_task(shape, sequences.len(), heads, scratch, piece, |task, scratch| {
        let Task { sequence, kv_head, heads } = task;
        let sequence = &sequences[sequence];
        let CachedSequence { start, len, before, .. } = *sequence;
        let cache = &cache[sequence.slot * slot..(sequence.slot + 1) * slot];
        let [k, v] = [0, c].map(|first| {
            let first = first + kv_head * head_width;
            Mat::strided(&cache[first..], sequence.keys(), head_width, 2 * c)
        });
        if len == 1 {
            let columns = heads.start * head_width..heads.end * head_width;
            // SAFETY: each (sequence, head) belongs to one task, and windows of different heads share no column.
            let out = unsafe { out.row(start, columns.clone()) };
            return one_query(&qkv[start * row..][columns], k, v, out, scratch);
        }
        let [k, v] = [k, v].map(|all| [all.rows(0..before), all.rows(before..before + len)]);
        let mut keys = PackedKeys::<1>::new(k, v, scratch);
        for head in heads {
            let first = shape.n_head * start + head * len;
            // SAFETY: as above.
            let (out, lse) =
                unsafe { (out.window(sequence.tokens(), shape.columns(head, 0)), lse.row(0, first..first + len)) };
            keys.attend(shape.part(qkv, sequence.tokens(), head, 0), None, out, lse);
        }
    });
}

/// Computes attention of one token's query heads, `q` and `out`: `[heads, head_width]`, over the keys and values that they
/// share, `[keys, head_width]`, read in place and once: memory bandwidth is the limit. `scratch` holds `[heads, keys + 1]`.
pub fn one_query(q: &[f32], k: Mat<'_>, v: Mat<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let (keys, width) = (k.n_rows(), k.cols());
    let (heads, stride) = (q.len() / width, keys + 1);
    let scale = 1.0 / (width as f32).sqrt();
    let scores = &mut scratch[..heads * stride];
    simd(
        #[inline(always)]
        || {
            for i in 0..keys {
                let k = k.row(i);
                for head in 0..heads {
                    scores[head * stride + i] = sum_zip(
                        &q[head * width..][..width],
                        k,
                        #[inline(always)]
                        |a, b| a * b,
                    );
                }
            }
            // Each head's sum stands behind its probabilities.
            for scores in scores.chunks_exact_mut(stride) {
                let (scores, total) = scores.split_at_mut(keys);
                total[0] = exp_and_sum(scores, scale, max(scores));
            }
            out.fill(0.0);
            for i in 0..keys {
                let v = v.row(i);
                for head in 0..heads {
                    let p = scores[head * stride + i];
                    for (out, &v) in out[head * width..][..width].iter_mut().zip(v) {
                        *out += p * v;
                    }
                }
            }
            for (out, scores) in out.chunks_exact_mut(width).zip(scores.chunks_exact(stride)) {
                out.iter_mut().for_each(|out| *out /= scores[keys]);
            }
        },
    );
}
