//! Attention of one new token of each sequence over a key-value cache, in f32.
//!
//! A task takes [`STRETCH`] keys of one key head, for all query heads that share it, and leaves its largest score, the sum of its
//! exponentials and the sum of values weighted by them; these are then added up in the order of the keys, each scaled to the
//! largest score of all (as in FlashAttention's split over keys, Dao et al. 2023). So every thread has work whatever the number of
//! heads, and the bits do not depend on the number of threads.

use super::shape::{CachedSequence, Shape};
use crate::base::memory::padded;
use crate::base::team;
use crate::gemm::{Canvas, Mat};
use ngen3_simd::{exp, exp_and_sum, max, simd, sum_zip};

/// Keys per task.
const STRETCH: usize = 128;

/// Length in f32 of the scratch memory of a step.
pub fn scratch(shape: Shape, sequences: &[CachedSequence]) -> usize {
    let stretches: usize = sequences.iter().map(|sequence| sequence.keys().div_ceil(STRETCH)).sum();
    stretches * shape.n_kv_head * shape.group() * head_len(shape)
}

/// Length of one query head's results of a stretch: sums of values, then the largest score and the sum of exponentials.
fn head_len(shape: Shape) -> usize {
    padded(shape.head_width + 2)
}

/// Fills `out`, `[tokens, n_head·head_width]`, from `qkv` and a cache that holds the new tokens' keys and values. Arguments as in
/// [`super::cached`].
pub fn attend(
    shape: Shape,
    sequences: &[&CachedSequence],
    qkv: &[f32],
    cache: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let (c, width, group) = (shape.kv_width(), shape.head_width, shape.group());
    let slot = shape.longest * 2 * c;
    // Stretches of sequence after sequence; of each, all key heads.
    let mut tasks = Vec::new();
    for (i, sequence) in sequences.iter().enumerate() {
        tasks.extend((0..sequence.keys()).step_by(STRETCH).map(|first| (i, first)));
    }
    let stretch_len = group * head_len(shape);
    let scratch = &mut scratch[..tasks.len() * shape.n_kv_head * stretch_len];
    let results = Canvas::new(scratch, stretch_len);
    team::for_each(tasks.len() * shape.n_kv_head, |task| {
        let ((i, first), kv_head) = (tasks[task / shape.n_kv_head], task % shape.n_kv_head);
        let sequence = sequences[i];
        let cache = &cache[sequence.slot * slot..(sequence.slot + 1) * slot];
        let keys = first..(first + STRETCH).min(sequence.keys());
        let [k, v] = [0, c].map(|part| {
            let cache = &cache[part + kv_head * width..];
            Mat::strided(cache, sequence.keys(), width, 2 * c).rows(keys.clone())
        });
        let q = &qkv[sequence.start * shape.qkv_width() + kv_head * group * width..][..group * width];
        // SAFETY: each task has its own row.
        stretch(q, k, v, unsafe { results.row(task, 0..stretch_len) });
    });
    // Sums of a stretch are a hundredth of its work.
    let mut at = 0;
    for sequence in sequences {
        let stretches = sequence.keys().div_ceil(STRETCH);
        for head in 0..shape.n_head {
            let out = &mut out[sequence.start * shape.width() + head * width..][..width];
            let results = (at..at + stretches).map(|stretch| {
                let first = (stretch * shape.n_kv_head + head / group) * stretch_len;
                &scratch[first + head % group * head_len(shape)..][..width + 2]
            });
            join(width, results, out);
        }
        at += stretches;
    }
}

/// Computes the query heads `q`, `[heads, width]`, over a stretch of keys and values that they share, `[keys, width]`, read once.
fn stretch(q: &[f32], k: Mat<'_>, v: Mat<'_>, results: &mut [f32]) {
    let (keys, width) = (k.n_rows(), k.cols());
    let scale = 1.0 / (width as f32).sqrt();
    let results = results.chunks_exact_mut(padded(width + 2));
    simd(
        #[inline(always)]
        || {
            for (q, result) in q.chunks_exact(width).zip(results) {
                let mut scores = [0.0f32; STRETCH];
                for (i, score) in scores.iter_mut().enumerate().take(keys) {
                    *score = sum_zip(
                        q,
                        k.row(i),
                        #[inline(always)]
                        |a, b| a * b,
                    );
                }
                let largest = max(&scores[..keys]);
                let total = exp_and_sum(&mut scores[..keys], scale, largest);
                let (out, stats) = result.split_at_mut(width);
                out.fill(0.0);
                for (i, p) in scores.iter().enumerate().take(keys) {
                    for (out, &v) in out.iter_mut().zip(v.row(i)) {
                        *out += p * v;
                    }
                }
                (stats[0], stats[1]) = (largest * scale, total);
            }
        },
    );
}

/// Joins one head's results of all stretches.
fn join<'a>(width: usize, results: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let largest = results.clone().fold(f32::NEG_INFINITY, |most, result| most.max(result[width]));
    let mut total = 0.0;
    out.fill(0.0);
    for result in results {
        let factor = if result[width] == largest { 1.0 } else { exp(result[width] - largest) };
        total += factor * result[width + 1];
        out.iter_mut().zip(result).for_each(|(out, sum)| *out += factor * sum);
    }
    out.iter_mut().for_each(|out| *out /= total);
}
