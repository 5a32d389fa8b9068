//! Distillation loss of each token: α·T²·D(teacher, student) + (1 − α)·cross-entropy   (Hinton et al. 2015).
//!
//! With p = softmax(u/T) of the teacher's logits u and q = softmax(z/T) of the student's logits z, D is a
//! [`Divergence`](ngen3_engine::Divergence). Neither model's logits of all tokens are ever formed. Blocks of tokens go through
//! one at a time, as in `fused.rs`:
//!
//! ```text
//! for a panel of words, 32 tokens:  z = wte·hiddenᵀ − shift, u likewise; sums += …        (z and u/T or exp(u/T) kept in f32)
//! after all segments:       losses and gradient factors of each token
//! for a chunk of words:            g = ∂loss/∂z, in the layouts that the two products read;  dhiddenᵀ += wteᵀ·g
//! at the end:               dwte += g·hidden
//! ```
//!
//! Each token's logits are shifted by its target's, as in `fused.rs`. A teacher given as its k most likely tokens has no u: g
//! is then the scaled gradient of the softmax, with corrections at those tokens (`top_k.rs`).

mod gradient;
mod head;
mod logits;
mod scratch;
mod soft;
mod top_k;

use super::gradients::Gradients;
use super::soft_targets::{Distill, Teacher};
use super::tiling::{Sizes, gather, pack_wte, shifts, spread};
use crate::base::memory::Buffer;
use crate::gemm::Mat;
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::{pack, packed_len};
use crate::layers::embedding::{self, Table};
use gradient::gradient;
pub use head::Head;
use logits::{logits, settle};
use ngen3_engine::Error;
use scratch::DistillTiling;
use soft::{SoftLoss, SoftTarget};
use top_k::{Corrections, TopK};

/// Outputs for the two losses of each token, each `[tokens]`.
pub struct Losses<'a> {
    /// Cross-entropy, in nats.
    pub cross_entropy: &'a mut [f32],
    /// T²·D.
    pub divergence: &'a mut [f32],
}

/// Fills the two losses of each token and, if requested, the gradients of their weighted sum.
///
/// # Errors
/// [`Error::Memory`] if the buffers of a block do not fit in memory.
#[expect(clippy::too_many_arguments, reason = "the operands of the loss, each of which the caller has at hand")]
pub fn run<const P: usize>(
    sizes: Sizes,
    hidden: &[f32],
    wte: &[f32],
    targets: &[u32],
    distill: &Distill<'_>,
    losses: Losses<'_>,
    mut gradients: Option<Gradients<'_>>,
    memory: &mut Buffer,
) -> Result<(), Error> {
    let Sizes { width, vocab_size, .. } = sizes;
    let teacher = match distill.teacher {
        Teacher::Head { hidden, wte, quant } if distill.alpha > 0.0 => {
            Some((Head { width: wte.len() / vocab_size, vocab_size, quant }, hidden, wte))
        }
        _ => None,
    };
    let soft_target = SoftTarget::of(distill);
    // Without a teacher there is no temperature.
    let temperature = if soft_target == SoftTarget::Alone { 1.0 } else { distill.temperature };
    let tiling = DistillTiling::new(sizes, targets.len(), teacher.map(|(head, ..)| head));
    let (block, wanted) = (tiling.block, tiling.total::<P>());
    if memory.len() < wanted {
        *memory = Buffer::default();
        *memory = Buffer::zeros(wanted, "the distillation buffer of a block of tokens")?;
    }
    let mut s = tiling.cut::<P>(memory);
    pack_wte::<P>(sizes, wte, s.wte);
    if let Some((head, _, wte)) = teacher {
        head.lay_out_wte::<P>(wte, s.teacher_wte);
    }
    let weight = gradients.as_ref().map_or(1.0, |gradients| gradients.weight);
    let Losses { cross_entropy, divergence } = losses;
    let blocks = targets.chunks(block).zip(cross_entropy.chunks_mut(block).zip(divergence.chunks_mut(block)));
    for (i, (targets, (cross_entropy, divergence))) in blocks.enumerate() {
        let (first, rows) = (i * block, targets.len());
        let hidden = &hidden[first * width..][..rows * width];
        pack::<P, NR>(Mat::new(hidden, rows, width), &mut s.hidden[..packed_len::<P, NR>(rows, width)]);
        shifts::<P>(hidden, Table::Plain(wte), targets, s.shift);
        if let Some((head, hidden, wte)) = teacher {
            let hidden = &hidden[first * head.width..][..rows * head.width];
            head.lay_out_hidden::<P>(hidden, s.teacher_hidden);
            shifts::<P>(hidden, Table::Plain(wte), targets, s.teacher_shift);
        }
        let soft = SoftLoss { tiling, tiles: rows.div_ceil(NR), temperature, soft_target };
        logits::<P>(soft, &mut s);
        settle::<P>(soft, distill.alpha, weight, &mut s, cross_entropy, divergence);
        let corrections: Option<Corrections> = TopK::of(distill, first..first + rows)
            .map(|top_k| top_k.settle::<P>(temperature, hidden, wte, s.shift, block, s.factors, divergence));
        let Some(Gradients { dhidden, dwte, .. }) = &mut gradients else { continue };

        gradient::<P>(soft, dwte.is_some(), &mut s);
        let at_target = (1.0 - distill.alpha) * weight;
        let dhidden = &mut dhidden[first * width..][..rows * width];
        gather::<P>(block, Table::Plain(wte), targets, s.dhidden, None, at_target, dhidden);
        if let Some(corrections) = &corrections {
            corrections.add_to_hidden::<P>(wte, dhidden);
        }
        let Some(dwte) = dwte else { continue };
        let padded = rows.next_multiple_of(NR);
        let packed = &mut s.by_token[..packed_len::<P, NR>(width, padded)];
        let padded_hidden = &mut s.padded_hidden[..padded * width];
        padded_hidden[..rows * width].copy_from_slice(hidden);
        padded_hidden[rows * width..].fill(0.0);
        pack::<P, NR>(Mat::new(padded_hidden, padded, width).t(), packed);
        spread::<P>(width, block / NR, padded, s.g, packed, dwte);
        embedding::scatter(targets, hidden, -at_target, dwte);
        if let Some(corrections) = &corrections {
            corrections.add_to_embeddings(hidden, dwte);
        }
    }
    Ok(())
}

/// Length in f32 of the buffers for a pass of [`Sizes::tokens`].
pub fn numbers<const P: usize>(sizes: Sizes, head: Option<Head>) -> usize {
    DistillTiling::new(sizes, sizes.tokens, head).total::<P>()
}

#[cfg(test)]
mod tests;
