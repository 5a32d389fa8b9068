//! [`ReferenceTeacher`]: a model for inference only.

use ngen3_model::Config;

use super::loss::log_softmax;
use super::model::Network;
use crate::{Batch, Error, Pass, PassDropout, Teacher, TopK, check_temperature, passes};

/// Teacher in the reference engine.
#[derive(Debug)]
pub struct ReferenceTeacher {
    network: Network,
}

impl ReferenceTeacher {
    /// Creates a teacher from its parameters, `[total]` in the order of [`ngen3_model::ParamList`].
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid or `params` has the wrong length.
    pub fn new(config: Config, params: Vec<f32>) -> Result<Self, Error> {
        Ok(Self { network: Network::new(config, params)? })
    }

    /// Returns the shape.
    pub(super) fn config(&self) -> &Config {
        &self.network.config
    }

    /// Returns the logits of a pass, `[tokens, vocab_size]`. The pass must fit the shape.
    pub(super) fn logits(&self, pass: &Pass) -> Vec<f32> {
        self.network.logits(&self.network.forward(pass, PassDropout::NONE, &mut []).hidden)
    }
}

impl Teacher for ReferenceTeacher {
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error> {
        batch.check(self.config())?;
        let vocab_size = self.config().vocab_size;
        if k == 0 || k > vocab_size {
            return Err(Error::Input(format!("top k is {k}; it must be between 1 and {vocab_size}, the vocabulary")));
        }
        check_temperature(temperature)?;
        let mut top_k = TopK { k, ..TopK::default() };
        for pass in passes(batch) {
            for logits in self.logits(&pass).chunks_exact(vocab_size) {
                let mut ids: Vec<u32> = (0..vocab_size as u32).collect();
                // The sort is stable, so that among equal logits the lowest id comes first.
                ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
                ids.truncate(k);
                let ln_p = log_softmax(logits, temperature);
                top_k.log_probs.extend(ids.iter().map(|&id| ln_p[id as usize] as f32));
                top_k.ids.extend(ids);
            }
        }
        Ok(top_k)
    }
}
