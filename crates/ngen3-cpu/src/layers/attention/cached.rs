//! Attention of new tokens over a key-value cache: forward only.

use super::forward::PackedKeys;
use super::operands::{Form, in_form};
use super::shape::{Cache, CachedSequence, Shape, Task, for_each_task, head_scratch};
use super::step;
use crate::base::profile::{Part, timed};
use crate::gemm::{Canvas, Precision};

/// Length in f32 of the scratch memory of [`cached`] on `threads` threads.
pub fn cached_scratch(shape: Shape, sequences: &[CachedSequence], threads: usize) -> usize {
    let longest = sequences.iter().map(CachedSequence::keys).max().unwrap_or(0);
    (threads * head_scratch(longest, shape.head_width)).max(step::scratch(shape, sequences))
}

/// Appends the new tokens' keys and values to the cache and fills `out`. Prompts are multiplied in this precision, or in f32 where
/// attention has no kernels for bf16; single tokens in f32.
///
/// `qkv`: as in [`super::forward`]; `out`: [tokens, n_head·head_width]; `lse`: [tokens·n_head], working memory. `scratch` is
/// [`cached_scratch`] long.
#[expect(clippy::too_many_arguments, reason = "the operands of attention, each of which the caller has at hand")]
pub fn cached(
    precision: Precision,
    shape: Shape,
    sequences: &[CachedSequence],
    qkv: &[f32],
    cache: &mut Cache<'_>,
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let _timed = timed(Part::Attention);
    for sequence in sequences {
        let tokens = qkv[sequence.start * shape.qkv_width()..].chunks_exact(shape.qkv_width());
        for (position, token) in (sequence.before..sequence.keys()).zip(tokens) {
            cache.row_mut(shape, sequence.slot, position).copy_from_slice(&token[shape.width()..]);
        }
    }
    let (steps, prompts): (Vec<_>, Vec<_>) = sequences.iter().partition(|sequence| sequence.len == 1);
    if !steps.is_empty() {
        step::attend(shape, &steps, qkv, cache, out, scratch);
    }
    if !prompts.is_empty() {
        let attend = in_form!(precision, F => attend_prompts::<F>);
        attend(shape, &prompts, qkv, cache, out, lse, scratch);
    }
}

/// Attends to the keys up to each token of sequences of several.
fn attend_prompts<F: Form>(
    shape: Shape,
    sequences: &[&CachedSequence],
    qkv: &[f32],
    cache: &Cache<'_>,
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let (c, head_width) = (shape.kv_width(), shape.head_width);
    let (out, lse) = (Canvas::new(out, shape.width()), Canvas::new(lse, lse.len()));
    let longest = sequences.iter().map(|sequence| sequence.keys()).max().unwrap_or(0);
    let piece = head_scratch(longest, head_width);
    let scratch = &mut scratch[..rayon::current_num_threads() * piece];
    for_each_task(shape, sequences.len(), scratch, piece, |task, scratch| {
        let Task { sequence, kv_head, heads } = task;
        let sequence = sequences[sequence];
        let CachedSequence { start, len, before, slot } = *sequence;
        let [before_k, before_v] = [0, c].map(|first| {
            let first = first + kv_head * head_width;
            (0..before).map(move |position| &cache.row(shape, slot, position)[first..first + head_width])
        });
        let [k, v] = [1, 2].map(|part| shape.part(qkv, sequence.tokens(), kv_head, part));
        let mut keys = PackedKeys::<F>::new((before_k, k), (before_v, v), scratch);
        for head in heads {
            let first = shape.n_head * start + head * len;
            // SAFETY: each (sequence, head) belongs to one task, and windows of different heads share no column.
            let (out, lse) =
                unsafe { (out.window(sequence.tokens(), shape.columns(head, 0)), lse.row(0, first..first + len)) };
            keys.attend(shape.part(qkv, sequence.tokens(), head, 0), None, out, lse);
        }
    });
}
