//! [`ReferenceTeacher`]: a model that only teaches.

use ngen3_model::Config;

use super::loss::log_softmax;
use super::model::Network;
use super::pass::{Pass, PassDropout, passes};
use crate::{Batch, Error, Teacher, TopK, check_temperature};

/// A teacher in the reference engine.
#[derive(Debug)]
pub struct ReferenceTeacher {
    network: Network,
}

impl ReferenceTeacher {
    /// A teacher with these parameters, `[total]` in the order of [`ngen3_model::ParamList`].
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid or `params` has another length.
    pub fn new(config: Config, params: Vec<f32>) -> Result<Self, Error> {
        Ok(Self { network: Network::new(config, params)? })
    }

    /// Its shape.
    pub(super) fn config(&self) -> &Config {
        &self.network.config
    }

    /// Its logits for a pass of a batch that its shape can take, `[tokens, vocab_size]`.
    pub(super) fn logits(&self, pass: &Pass) -> Vec<f32> {
        self.network.logits(&self.network.forward(pass, PassDropout::NONE, &mut []).hidden)
    }
}

impl Teacher for ReferenceTeacher {
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error> {
        batch.check(self.config())?;
        let vocab_size = self.config().vocab_size;
        if k == 0 || k > vocab_size {
            return Err(Error::Input(format!("the {k} likeliest tokens of {vocab_size}")));
        }
        check_temperature(temperature)?;
        let mut top_k = TopK { k, ..TopK::default() };
        for pass in passes(batch) {
            for logits in self.logits(&pass).chunks_exact(vocab_size) {
                let mut ids: Vec<u32> = (0..vocab_size as u32).collect();
                // Of equals the lowest id comes first, since the sort is stable.
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
