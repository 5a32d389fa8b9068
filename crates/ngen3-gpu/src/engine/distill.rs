//! A distillation step: the logits of student and teacher, chunk by chunk of the vocabulary; nothing crosses to the host.

use ngen3_engine::{DistillConfig, Divergence, Error};

use super::arena::Arena;
use super::block::Run;
use super::model::HeadChunk;
use super::network::{Gradients, Network};
use crate::device::{Buffer, Context, Recorder};
use crate::kernels::distill::{self, Guide, Rows};
use crate::kernels::loss::{self, Chunk};
use crate::kernels::product::Matrix;

/// Working memory of the divergence.
pub struct Memory {
    tokens: usize,
    k: usize,
    /// `[N, 3]` of the student and of the teacher, at the temperature.
    stats: [Buffer; 2],
    /// `[N, 2]`
    sums: Buffer,
    /// `[N]`
    losses: Buffer,
    /// `[1]`: sum of a batch's divergence.
    pub total: Buffer,
    /// `[N, k]`: the teacher's most likely tokens, their log probabilities, and working memory.
    ids: Buffer,
    log_probs: Buffer,
    scratch: Buffer,
}

impl Memory {
    /// Returns memory for passes of `tokens` tokens, `k` of the teacher's tokens for each.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn reserve<'a>(
        memory: &'a mut Option<Self>,
        context: &Context,
        tokens: usize,
        k: usize,
    ) -> Result<&'a mut Self, Error> {
        if memory.as_ref().is_none_or(|memory| memory.tokens < tokens || memory.k < k) {
            *memory = None;
            let buffer = |width: usize| context.buffer("memory of distillation", tokens * width);
            *memory = Some(Self {
                tokens,
                k,
                stats: [buffer(3)?, buffer(3)?],
                sums: buffer(2)?,
                losses: buffer(1)?,
                total: context.buffer("memory of distillation", 1)?,
                ids: buffer(k.max(1))?,
                log_probs: buffer(k.max(1))?,
                scratch: buffer(k.max(1))?,
            });
        }
        Ok(memory.as_mut().expect("just set"))
    }

    /// Moves the teacher's most likely tokens of a pass to the device.
    pub fn write(&self, context: &Context, ids: &[u32], log_probs: &[f32]) {
        context.write(self.ids.all(), ids);
        context.write(self.log_probs.all(), log_probs);
    }
}

/// The teacher of a pass.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// A model, whose last norm's output for the pass is in the arena.
    Model(&'a Network, &'a Arena),
    /// Its `k` most likely tokens, in the [`Memory`].
    TopK(usize),
}

impl Network {
    /// Records the distillation loss of a pass after [`Network::forward`], and with `backward`, a weight and the gradients, the
    /// backward pass.
    pub fn distill(
        &self,
        recorder: &mut Recorder<'_>,
        run: Run<'_>,
        source: Source<'_>,
        distill: &DistillConfig,
        memory: &Memory,
        backward: Option<(f32, Gradients<'_>)>,
    ) {
        let Run { inputs, arena, .. } = run;
        let (n, width, targets) = (inputs.tokens, self.config.n_embd, inputs.targets());
        let hidden = arena.hidden.first(n * width);
        let stats = arena.stats.first(3 * n);
        let [tempered, teacher_stats] = memory.stats.each_ref().map(|buffer| buffer.first(3 * n));
        let rows = Rows { targets, stats: [stats, tempered], sums: memory.sums.first(2 * n) };
        let chunks = match source {
            Source::Model(teacher, other) => {
                let most = arena.chunk(n).min(other.chunk(n));
                common(&self.head_chunks(most), &teacher.head_chunks(most))
            }
            Source::TopK(_) => self.head_chunks(arena.chunk(n)).into_iter().map(|chunk| (chunk, chunk)).collect(),
        };
        // Logits of a chunk, and what the teacher says of it.
        let load = |recorder: &mut Recorder<'_>, (own, other): (HeadChunk, HeadChunk)| {
            let logits = arena.logits.first(n * own.width);
            self.logits(recorder, own, hidden, Matrix::new(logits, own.width));
            let guide = match source {
                Source::Model(teacher, other_arena) => {
                    let logits = other_arena.logits.first(n * other.width);
                    let hidden = other_arena.hidden.first(n * teacher.config.n_embd);
                    teacher.logits(recorder, other, hidden, Matrix::new(logits, other.width));
                    Guide::Logits { logits, stats: teacher_stats }
                }
                Source::TopK(k) => {
                    let [log_probs, scratch] = [&memory.log_probs, &memory.scratch].map(|buffer| buffer.first(n * k));
                    Guide::TopK { k, ids: memory.ids.first(n * k), log_probs, scratch }
                }
            };
            (Chunk { logits, width: own.width, first: own.first }, guide)
        };
        for &chunk in &chunks {
            let (own, guide) = load(recorder, chunk);
            loss::statistics(recorder, own, 1.0, targets, stats);
            loss::statistics(recorder, own, distill.temperature, targets, tempered);
            if let Guide::Logits { logits, .. } = guide {
                loss::statistics(recorder, Chunk { logits, ..own }, distill.temperature, targets, teacher_stats);
            }
        }
        loss::losses(recorder, targets, stats, arena.losses.first(n));
        loss::add_sum(recorder, arena.losses.first(n), targets, arena.loss_sum.all());

        let scratch = backward.and(arena.backward.as_ref());
        let differentiate = |recorder: &mut Recorder<'_>, own: HeadChunk, chunk: Chunk<'_>, guide: Guide<'_>| {
            let (Some((weight, grads)), Some(scratch)) = (backward, scratch) else { return };
            distill::gradient(recorder, distill, weight, chunk, guide, rows);
            self.head_backward(recorder, own, chunk.logits, hidden, scratch.dln.first(n * width), grads);
        };
        // At α = 0 the divergence does not count, and is not computed.
        let diverges = distill.alpha > 0.0;
        // The gradient of the forward KL of whole distributions needs no sums over all chunks.
        let at_once = matches!(source, Source::Model(..)) && distill.divergence == Divergence::ForwardKl;
        if diverges || at_once {
            let mut last = None;
            for &chunk in &chunks {
                let (own, guide) = load(recorder, chunk);
                last = Some(guide);
                if diverges {
                    distill::sums(recorder, distill, own, guide, rows);
                }
                if at_once {
                    differentiate(recorder, chunk.0, own, guide);
                }
            }
            if let (true, Some(guide)) = (diverges, last) {
                let losses = memory.losses.first(n);
                distill::losses(recorder, distill, guide, rows, losses);
                loss::add_sum(recorder, losses, targets, memory.total.all());
            }
        }
        if !at_once {
            for &chunk in &chunks {
                let (own, guide) = load(recorder, chunk);
                differentiate(recorder, chunk.0, own, guide);
            }
        }
        if let Some((_, grads)) = backward {
            self.backward(recorder, run, grads);
        }
    }
}

/// Returns chunks of both that cover the same tokens.
fn common(a: &[HeadChunk], b: &[HeadChunk]) -> Vec<(HeadChunk, HeadChunk)> {
    let mut pairs = Vec::new();
    let (mut a, mut b) = (a.iter().copied(), b.iter().copied());
    let (mut left, mut right) = (a.next(), b.next());
    while let (Some(one), Some(other)) = (left, right) {
        let width = one.width.min(other.width);
        pairs.push((HeadChunk { width, ..one }, HeadChunk { width, ..other }));
        let rest = |chunk: HeadChunk| {
            let (row, first) = (chunk.row + width, chunk.first + width);
            (chunk.width > width).then_some(HeadChunk { row, first, width: chunk.width - width, ..chunk })
        };
        (left, right) = (rest(one).or_else(|| a.next()), rest(other).or_else(|| b.next()));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_both_end_where_either_ends() {
        let chunk = |piece, row, first, width| HeadChunk { piece, row, first, width };
        let a = [chunk(0, 0, 0, 5), chunk(1, 0, 5, 4)];
        let b = [chunk(0, 0, 0, 3), chunk(0, 3, 3, 3), chunk(0, 6, 6, 3)];
        let found: Vec<_> = common(&a, &b);
        assert_eq!(
            found,
            [
                (chunk(0, 0, 0, 3), chunk(0, 0, 0, 3)),
                (chunk(0, 3, 3, 2), chunk(0, 3, 3, 2)),
                (chunk(1, 0, 5, 1), chunk(0, 5, 5, 1)),
                (chunk(1, 1, 6, 3), chunk(0, 6, 6, 3)),
            ]
        );
    }
}
