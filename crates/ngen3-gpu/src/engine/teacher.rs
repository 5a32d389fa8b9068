//! [`GpuTeacher`]: a model for inference only, whose logits stay on the device.

use std::sync::Arc;

use ngen3_engine::{Batch, Error, Pass, PassDropout, Teacher, TopK, check_temperature, passes};
use ngen3_model::Config;

use super::arena::{Arena, ForwardMode, Inputs};
use super::block::Run;
use super::network::Network;
use crate::device::{Context, Recorder};
use crate::kernels::product::Matrix;

/// Elements of the logits that go to the host at a time.
const LOGITS: usize = 1 << 22;

/// Teacher on a GPU.
pub struct GpuTeacher {
    pub(super) network: Network,
    inputs: Inputs,
    pub(super) arena: Option<Arena>,
}

impl GpuTeacher {
    /// Moves a model's parameters, `[total]`, to a device.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn new(context: &Arc<Context>, config: Config, params: &[f32], most: usize) -> Result<Self, Error> {
        let network = Network::new(context, config, params, most)?;
        Ok(Self { network, inputs: Inputs::default(), arena: None })
    }

    /// Runs a pass up to the last norm, whose output is in the arena. `most`: tokens of the largest pass to come.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(super) fn run(&mut self, pass: &Pass, most: usize) -> Result<(), Error> {
        let Self { network, inputs, arena } = self;
        let arena = Arena::reserve(arena, network, ForwardMode::Inference, most)?;
        inputs.write(network, pass, None, false)?;
        network.forward(&mut Recorder::new(&network.context), Run { inputs, arena, drops: PassDropout::NONE }, &[]);
        Ok(())
    }
}

impl Teacher for GpuTeacher {
    /// The logits go to the host, which selects: for a cache that is filled once.
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error> {
        batch.check(&self.network.config)?;
        let (vocab, width) = (self.network.config.vocab_size, self.network.config.n_embd);
        if k == 0 || k > vocab {
            return Err(Error::Input(format!("top k is {k}: expected 1 to {vocab}, the vocabulary")));
        }
        check_temperature(temperature)?;
        let passes = passes(batch);
        let most = passes.iter().map(|pass| pass.inputs.len()).max().unwrap_or(0);
        let rows = (LOGITS / vocab).max(1);
        let out = self.network.context.buffer("logits", rows * vocab)?;
        let mut top_k = TopK { k, ..TopK::default() };
        for pass in &passes {
            self.run(pass, most)?;
            let Self { network, arena, .. } = self;
            let hidden = &arena.as_ref().expect("the pass ran").hidden;
            // Rows of the output that a kernel can be given begin at any token, as copies.
            let part = network.context.buffer("hidden states", rows * width)?;
            for first in (0..pass.inputs.len()).step_by(rows) {
                let count = rows.min(pass.inputs.len() - first);
                let mut recorder = Recorder::new(&network.context);
                recorder.copy(hidden.view(first * width..(first + count) * width), part.first(count * width));
                for chunk in network.head_chunks(vocab) {
                    let to = Matrix { view: out.first(count * vocab), first: chunk.first, stride: vocab };
                    network.logits(&mut recorder, chunk, part.first(count * width), to);
                }
                drop(recorder);
                let logits = network.context.read(out.first(count * vocab))?;
                logits.chunks_exact(vocab).for_each(|logits| select(&mut top_k, logits, temperature));
            }
        }
        Ok(top_k)
    }
}

/// Appends the most likely tokens of a row, the lowest id first among equals.
fn select(TopK { k, ids, log_probs }: &mut TopK, logits: &[f32], temperature: f32) {
    let order = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let mut best: Vec<u32> = (0..logits.len() as u32).collect();
    if *k < best.len() {
        best.select_nth_unstable_by(*k - 1, order);
        best.truncate(*k);
    }
    best.sort_unstable_by(order);
    let tempered = |logit: f32| f64::from(logit) / f64::from(temperature);
    let largest = tempered(logits[best[0] as usize]);
    let total: f64 = logits.iter().map(|&logit| (tempered(logit) - largest).exp()).sum();
    log_probs.extend(best.iter().map(|&id| (tempered(logits[id as usize]) - largest - total.ln()) as f32));
    ids.extend(best);
}
