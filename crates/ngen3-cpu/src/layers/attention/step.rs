//! Attention of one new token of each sequence over a key-value cache, in f32.
//!
//! A task takes the keys of one page, which follow one another in the cache, of all heads. Each query head leaves its largest score,
//! the sum of its exponentials and the sum of values weighted by them; these are then added up in the order of the keys, each
//! scaled to the largest score of all (as in FlashAttention's split over keys, Dao et al. 2023). So every thread has work whatever
//! the number of heads, memory is read in order, and the bits do not depend on the number of threads.

use ngen3_engine::PAGE;
use rayon::prelude::*;

use super::shape::{Cache, CachedSequence, Shape};
use crate::base::memory::padded;
use crate::gemm::Canvas;
use ngen3_simd::{exp, exp_and_sum, max, simd, sum_zip};

/// Keys per task: those of a page.
const STRETCH: usize = PAGE;

/// Length in f32 of the scratch memory of a step.
pub fn scratch(shape: Shape, sequences: &[CachedSequence]) -> usize {
    let stretches: usize = sequences.iter().map(|sequence| sequence.keys().div_ceil(STRETCH)).sum();
    stretches * shape.n_head * head_len(shape)
}

/// Length in f32 of one query head's results of a stretch: sums of values, the largest score, the sum of exponentials; then the
/// scores.
fn head_len(shape: Shape) -> usize {
    scores_at(shape) + STRETCH
}

/// Place of the scores in one query head's results.
fn scores_at(shape: Shape) -> usize {
    padded(shape.head_width + 2)
}

/// Fills `out`, `[tokens, n_head·head_width]`, from `qkv` and a cache that holds the new tokens' keys and values. Arguments as in
/// [`super::cached`].
pub fn attend(
    shape: Shape,
    sequences: &[&CachedSequence],
    qkv: &[f32],
    cache: &Cache<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let width = shape.head_width;
    let (mut tasks, mut firsts) = (Vec::new(), Vec::new());
    for (i, sequence) in sequences.iter().enumerate() {
        firsts.push(tasks.len());
        tasks.extend((0..sequence.keys()).step_by(STRETCH).map(|first| (i, first)));
    }
    let stretch_len = shape.n_head * head_len(shape);
    let scratch = &mut scratch[..tasks.len() * stretch_len];
    let results = Canvas::new(scratch, stretch_len);
    (0..tasks.len()).into_par_iter().with_max_len(1).for_each(|task| {
        let (i, first) = tasks[task];
        let sequence = sequences[i];
        let keys = first..(first + STRETCH).min(sequence.keys());
        let q = &qkv[sequence.start * shape.qkv_width()..][..shape.width()];
        // SAFETY: each task has its own row.
        let results = unsafe { results.row(task, 0..stretch_len) };
        stretch(shape, q, cache.rows(shape, sequence.slot, keys), results);
    });
    // The sums of a stretch are a hundredth of its work.
    let out = Canvas::new(out, shape.width());
    (0..sequences.len()).into_par_iter().with_min_len(4).for_each(|i| {
        let stretches = firsts[i]..firsts[i] + sequences[i].keys().div_ceil(STRETCH);
        // SAFETY: each sequence has its own token.
        let out = unsafe { out.row(sequences[i].start, 0..shape.width()) };
        for (head, out) in out.chunks_exact_mut(width).enumerate() {
            let result = |stretch| &scratch[stretch * stretch_len + head * head_len(shape)..][..width + 2];
            join(width, stretches.clone().map(result), out);
        }
    });
}

/// Computes all query heads, `q`, over a stretch of the cache, `[keys, 2·n_kv_head·head_width]`. Keys are the outer loop, so that
/// memory is read in order.
fn stretch(shape: Shape, q: &[f32], rows: &[f32], results: &mut [f32]) {
    let (c, width, group, len) = (shape.kv_width(), shape.head_width, shape.group(), head_len(shape));
    let (scale, keys) = (1.0 / (width as f32).sqrt(), rows.len() / (2 * c));
    simd(
        #[inline(always)]
        || {
            for (i, row) in rows.chunks_exact(2 * c).enumerate() {
                let heads = q.chunks_exact(group * width).zip(results.chunks_exact_mut(group * len));
                for ((q, results), k) in heads.zip(row[..c].chunks_exact(width)) {
                    for (q, result) in q.chunks_exact(width).zip(results.chunks_exact_mut(len)) {
                        result[scores_at(shape) + i] = sum_zip(
                            q,
                            k,
                            #[inline(always)]
                            |a, b| a * b,
                        );
                    }
                }
            }
            for result in results.chunks_exact_mut(len) {
                let (result, scores) = result.split_at_mut(scores_at(shape));
                let scores = &mut scores[..keys];
                let largest = max(scores);
                result[..width].fill(0.0);
                (result[width], result[width + 1]) = (largest * scale, exp_and_sum(scores, scale, largest));
            }
            for (i, row) in rows.chunks_exact(2 * c).enumerate() {
                let heads = results.chunks_exact_mut(group * len).zip(row[c..].chunks_exact(width));
                for (results, v) in heads {
                    for result in results.chunks_exact_mut(len) {
                        let p = result[scores_at(shape) + i];
                        result[..width].iter_mut().zip(v).for_each(|(out, v)| *out += p * v);
                    }
                }
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
