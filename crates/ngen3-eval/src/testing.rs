//! A model for tests with losses that follow from a simple definition.

use ngen3_engine::{Batch, Error, IGNORE, Model};
use ngen3_model::Config;

/// Returns losses that depend on every visible token, and counts input tokens.
pub(crate) struct CountingModel {
    config: Config,
    /// Input tokens so far.
    pub tokens: usize,
    /// True to return NaN losses.
    pub broken: bool,
}

impl CountingModel {
    pub fn new(block: usize) -> Self {
        Self { config: Config::new(1, 1, 8, block, 50_257), tokens: 0, broken: false }
    }

    /// Loss of `next` after the tokens `seen`.
    pub fn loss(seen: &[u32], next: u32) -> f32 {
        let mix = |state: u32, &token: &u32| (state.rotate_left(5) ^ token).wrapping_mul(2_654_435_769);
        (mix(seen.iter().fold(17, mix), &next) >> 16) as f32 / 65_536.0
    }
}

impl Model for CountingModel {
    fn config(&self) -> &Config {
        &self.config
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        batch.check(&self.config)?;
        self.tokens += batch.inputs.len();
        let (mut losses, mut start, mut shared) = (Vec::new(), 0, 0..0);
        for sequence in &batch.sequences {
            let range = start..start + sequence.len;
            if !sequence.continues {
                shared = range.clone();
            }
            for at in range.clone() {
                let before = if sequence.continues { &batch.inputs[shared.clone()] } else { &[] };
                let seen = [before, &batch.inputs[start..=at]].concat();
                losses.push(match batch.targets[at] {
                    IGNORE => 0.0,
                    _ if self.broken => f32::NAN,
                    target => Self::loss(&seen, target),
                });
            }
            start = range.end;
        }
        Ok(losses)
    }
}
