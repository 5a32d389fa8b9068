//! A student's divergence from its teacher (Hinton et al. 2015), chunk by chunk of the vocabulary.
//!
//! After the statistics of `loss.rs` for both: [`sums`] for each chunk, then [`losses`]; for the gradient, each chunk of the logits
//! again, then [`gradient`].

use ngen3_engine::{DistillConfig, Divergence};

use super::MAX_GROUPS;
use super::loss::Chunk;
use crate::device::{Kernel, Recorder, View, read, write};

/// The teacher's output for a chunk.
#[derive(Clone, Copy)]
pub enum Guide<'a> {
    /// Its logits, `[rows, width]`, and their statistics at the temperature, `[rows, 3]`.
    Logits {
        /// Logits.
        logits: View<'a>,
        /// Statistics.
        stats: View<'a>,
    },
    /// Its most likely tokens.
    TopK {
        /// Tokens per row.
        k: usize,
        /// `[rows, k]`
        ids: View<'a>,
        /// `[rows, k]`
        log_probs: View<'a>,
        /// `[rows, k]`: working memory.
        scratch: View<'a>,
    },
}

/// Operands of all stages.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// `[rows]`
    pub targets: View<'a>,
    /// Statistics of the student's logits, `[rows, 3]`: as they are, and at the temperature.
    pub stats: [View<'a>; 2],
    /// `[rows, 2]`: sums over the chunks.
    pub sums: View<'a>,
}

/// Records a chunk's part of the sums.
///
/// # Panics
/// If a length is wrong.
pub fn sums(recorder: &mut Recorder<'_>, distill: &DistillConfig, chunk: Chunk<'_>, guide: Guide<'_>, rows: Rows<'_>) {
    dispatch(recorder, 0, distill, [0.0; 2], Some(chunk), guide, rows, None);
}

/// Records the losses T²·D, `[rows]`, from the sums; 0 where a target is ignored.
///
/// # Panics
/// If a length is wrong.
pub fn losses(
    recorder: &mut Recorder<'_>,
    distill: &DistillConfig,
    guide: Guide<'_>,
    rows: Rows<'_>,
    losses: View<'_>,
) {
    losses.expect(rows.targets.len);
    dispatch(recorder, 1, distill, [0.0; 2], None, guide, rows, Some(losses));
}

/// Records the gradient of `weight` times the weighted sum of both losses, in place of the student's logits; 0 where a target is
/// ignored.
///
/// # Panics
/// If a length is wrong.
pub fn gradient(
    recorder: &mut Recorder<'_>,
    distill: &DistillConfig,
    weight: f32,
    chunk: Chunk<'_>,
    guide: Guide<'_>,
    rows: Rows<'_>,
) {
    let weights = [(1.0 - distill.alpha) * weight, distill.alpha * weight];
    let scratch = if let Guide::TopK { scratch, .. } = guide { Some(scratch) } else { None };
    dispatch(recorder, 2, distill, weights, Some(chunk), guide, rows, scratch);
}

#[expect(clippy::too_many_arguments, reason = "a stage, the logits of both and what becomes of them")]
fn dispatch(
    recorder: &mut Recorder<'_>,
    stage: u32,
    distill: &DistillConfig,
    weights: [f32; 2],
    chunk: Option<Chunk<'_>>,
    guide: Guide<'_>,
    rows: Rows<'_>,
    out: Option<View<'_>>,
) {
    let Rows { targets, stats: [plain, tempered], sums } = rows;
    let count = targets.len;
    [plain, tempered].iter().for_each(|stats| stats.expect(3 * count));
    sums.expect(2 * count);
    // Sums have the place of logits in the stage that reads none.
    let chunk = chunk.unwrap_or(Chunk { logits: sums, width: 2, first: 0 });
    chunk.logits.expect(count * chunk.width);
    let (kind, k, teacher, ids, teacher_stats) = match guide {
        Guide::Logits { logits, stats } => {
            if stage != 1 {
                logits.expect(chunk.logits.len);
            }
            stats.expect(3 * count);
            let kind = match distill.divergence {
                Divergence::ForwardKl => 0,
                Divergence::ReverseKl => 1,
                Divergence::JensenShannon => 2,
            };
            (kind, 0, logits, targets, stats)
        }
        Guide::TopK { k, ids, log_probs, .. } => {
            [ids, log_probs].iter().for_each(|view| view.expect(count * k));
            (3, k, log_probs, ids, plain)
        }
    };
    let constants = [("STAGE", stage), ("KIND", kind), ("FIRST", u32::from(chunk.first == 0))];
    let kernel = Kernel { name: "distill", source: include_str!("distill.wgsl"), constants: &constants };
    let sizes = [count, chunk.width, chunk.first, k].map(|size| size as u32);
    let values = [distill.temperature, weights[0], weights[1]].map(f32::to_bits);
    let bindings = [
        write(chunk.logits),
        read(teacher),
        read(ids),
        read(targets),
        read(plain),
        read(tempered),
        read(teacher_stats),
        write(sums),
        write(out.unwrap_or(sums)),
    ];
    recorder.dispatch(kernel, &bindings, &[&sizes[..], &values].concat(), [count.min(MAX_GROUPS), 1, 1]);
}
