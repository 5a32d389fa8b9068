//! Distillation on the CPU: the teacher's hidden states or most likely tokens, and the student's step.

use ngen3_engine::{DistillLoss, Error, IGNORE, PassDropout, Quant, pass_seed};
use rayon::prelude::*;

use super::arena::{Checkpointing, ForwardMode};
use super::batch_plan::Pass;
use super::grads::Grads;
use super::model::{Passes, sum};
use super::weights::Weights;
use crate::base::memory::Buffer;
use crate::gemm::{Accumulate, Mat, MatMut, matmul};
use crate::layers::loss::{self, Distill, Gradients, Losses, Teacher};
use crate::layers::top_k;
use ngen3_simd::top_k::Scratch;

/// Tokens per block of logits in the top-k selection.
const TOP_K_TOKENS: usize = 256;

/// Forward mode that computes hidden states only.
const FORWARD: ForwardMode = ForwardMode { keep: Checkpointing::Nothing, loss: false };

impl Weights {
    /// Calls `each` with the output of `ln_f` of each pass, `[tokens, width]`, in order.
    pub fn hidden(&self, passes: Passes<'_>, mut each: impl FnMut(&[f32])) -> Result<(), Error> {
        self.passes(passes, FORWARD, |_, pass, arena| {
            self.forward(pass, PassDropout::NONE, arena);
            each(arena.split().1.ln);
            Ok(())
        })
    }

    /// Fills `ids` and `log_probs`, each `[tokens, k]`, with the k most likely next tokens at each position, most likely first,
    /// and their log-probabilities at the temperature.
    pub fn top_k(
        &self,
        passes: Passes<'_>,
        temperature: f32,
        ids: &mut [u32],
        log_probs: &mut [f32],
    ) -> Result<(), Error> {
        let (c, vocab_size) = (self.config.n_embd, self.config.vocab_size);
        let k = ids.len() / passes.batch.inputs.len();
        let mut logits = Buffer::zeros(TOP_K_TOKENS * vocab_size, "the logits buffer of the teacher")?;
        let wte = Mat::new(self.lm_head(), vocab_size, c);
        let packed = self.packed.as_ref().and_then(|packed| packed.head.as_ref());
        self.passes(passes, FORWARD, |_, pass, arena| {
            self.forward(pass, PassDropout::NONE, arena);
            let places = pass.first * k..(pass.first + pass.inputs.len()) * k;
            let (ids, log_probs) = (&mut ids[places.clone()], &mut log_probs[places]);
            let blocks = ids.chunks_mut(TOP_K_TOKENS * k).zip(log_probs.chunks_mut(TOP_K_TOKENS * k));
            for (hidden, (ids, log_probs)) in arena.split().1.ln.chunks(TOP_K_TOKENS * c).zip(blocks) {
                let rows = hidden.len() / c;
                let logits = &mut logits[..rows * vocab_size];
                let (hidden, to) = (Mat::new(hidden, rows, c), MatMut::new(logits, rows, vocab_size));
                match packed {
                    Some(wte) => wte.product_onto(to, hidden, |tile, _, _| tile.fill(0.0)),
                    None => matmul(self.precision, to, Accumulate::Set, hidden, wte.t()),
                }
                logits
                    .par_chunks_exact_mut(vocab_size)
                    .zip(ids.par_chunks_exact_mut(k).zip(log_probs.par_chunks_exact_mut(k)))
                    .for_each_init(Scratch::default, |scratch, (logits, (ids, log_probs))| {
                        top_k::choose_tempered(logits, temperature, ids, log_probs, scratch);
                    });
            }
            Ok(())
        })
    }

    /// Returns both parts of the distillation loss. With `backward`, a weight, dropout and gradients, adds the gradient of
    /// their weighted sum to these gradients.
    pub fn distill(
        &self,
        passes: Passes<'_>,
        distill: &Distill<'_>,
        mut backward: Option<(f32, PassDropout, Grads<'_>)>,
        memory: &mut Buffer,
    ) -> Result<DistillLoss, Error> {
        let targets = passes.plan.num_target_tokens() as f64;
        let (mut cross_entropy, mut divergence, last) = (0.0, 0.0, passes.plan.last());
        let mut divergences = Vec::new();
        let keep = if backward.is_some() { self.keep } else { Checkpointing::Nothing };
        self.passes(passes, ForwardMode { keep, ..FORWARD }, |i, pass, arena| {
            let drops = backward.as_ref().map_or(PassDropout::NONE, |(_, drops, _)| *drops);
            let drops = PassDropout { seed: pass_seed(drops.seed, i), ..drops };
            self.forward(pass, drops, arena);
            let (_, b, _) = arena.split();
            let (n, c) = (pass.kept_targets.len(), self.config.n_embd);
            divergences.resize(n, 0.0);
            if n > 0 {
                pass.gather_targets(b.ln);
                let gradients = backward.as_mut().map(|(weight, _, grads)| Gradients {
                    weight: *weight / targets as f32,
                    dhidden: &mut b.dbranch[..n * c],
                    dwte: self.dlm_head(grads.values),
                });
                let losses = Losses { cross_entropy: &mut b.losses[..n], divergence: &mut divergences };
                let rows = TeacherRows::of(distill, self.config.vocab_size, pass);
                let distill = Distill { teacher: rows.teacher(), ..*distill };
                let (sizes, hidden) = (loss::Sizes::of(&self.config, n), &b.ln[..n * c]);
                loss::distill(
                    self.precision,
                    sizes,
                    hidden,
                    self.lm_head(),
                    pass.kept_targets,
                    &distill,
                    losses,
                    gradients,
                    memory,
                )?;
            }
            cross_entropy += sum(&b.losses[..n]);
            divergence += sum(&divergences);
            if let Some((_, _, grads)) = &mut backward {
                pass.scatter_targets(b.dbranch);
                self.backward(pass, drops, arena, grads, i == last);
            }
            Ok(())
        })?;
        if let Some((_, _, grads)) = backward {
            grads.finish();
        }
        let [cross_entropy, divergence] = [cross_entropy, divergence].map(|total| (total / targets) as f32);
        Ok(DistillLoss { cross_entropy, divergence })
    }
}

/// Teacher output for the tokens of one pass whose target is not ignored.
enum TeacherRows<'a> {
    Head { hidden: Vec<f32>, wte: &'a [f32], quant: Quant },
    TopK { k: usize, ids: Vec<u32>, log_probs: Vec<f32> },
}

impl<'a> TeacherRows<'a> {
    fn of(distill: &Distill<'a>, vocab_size: usize, pass: Pass<'_>) -> Self {
        /// Returns the rows of `all`, those of the whole batch, that the pass keeps.
        fn kept<T: Copy>(all: &[T], width: usize, pass: Pass<'_>) -> Vec<T> {
            let rows = all[pass.first * width..].chunks_exact(width).zip(pass.targets);
            rows.filter(|&(_, &target)| target != IGNORE).flat_map(|(row, _)| row).copied().collect()
        }
        match distill.teacher {
            Teacher::Head { hidden, wte, quant } => {
                Self::Head { hidden: kept(hidden, wte.len() / vocab_size, pass), wte, quant }
            }
            Teacher::TopK { k, ids, log_probs } => {
                Self::TopK { k, ids: kept(ids, k, pass), log_probs: kept(log_probs, k, pass) }
            }
        }
    }

    fn teacher(&self) -> Teacher<'_> {
        match self {
            Self::Head { hidden, wte, quant } => Teacher::Head { hidden, wte, quant: *quant },
            Self::TopK { k, ids, log_probs } => Teacher::TopK { k: *k, ids, log_probs },
        }
    }
}
