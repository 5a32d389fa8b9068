//! Rounds: ranks that train by themselves for some steps, and then agree on one model, for networks that are too slow to add up the
//! gradients of every step.
//!
//! This is DiLoCo (Douillard et al. 2023, arXiv:2311.08105). Within a round each rank is a process by itself: it updates all
//! parameters, with moments of its own, on its micro-batches. At the end the mean of the ranks' differences is an outer gradient, to
//! which Nesterov's momentum is applied, as in `torch.optim.SGD`. Muon within rounds is MuLoCo (Thérien et al. 2025,
//! arXiv:2505.23725).

use std::ops::Range;

use ngen3_cluster::wire::Wire;
use ngen3_cluster::{World, sums};
use ngen3_engine::{Slot, Trainer};

use crate::{Error, TrainSettings};

/// The state between rounds.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    /// Parameters that all ranks agreed on last, `[total]`.
    agreed: Vec<f32>,
    /// Outer momentum of this rank's share of the parameters, `[share]`.
    momentum: Vec<f32>,
    /// Step at which they agreed.
    step: u64,
}

impl Rounds {
    /// Begins at a step at which all ranks have these parameters, with the outer momentum of a resumed run, `[share]`.
    pub fn new(params: Vec<f32>, momentum: Vec<f32>, step: u64) -> Self {
        Self { agreed: params, momentum, step }
    }

    /// Returns `true` if all ranks have the same parameters after this step.
    pub fn agreed_at(&self, step: u64) -> bool {
        self.step == step
    }

    /// Outer momentum of this rank's share, `[share]`.
    pub fn momentum(&self) -> &[f32] {
        &self.momentum
    }

    /// Ends a round after `step`: moves all ranks to the same parameters.
    ///
    /// # Errors
    /// As [`Trainer::values_mut`].
    pub fn agree(
        &mut self,
        world: &dyn World,
        shares: &[Range<usize>],
        trainer: &mut dyn Trainer,
        settings: &TrainSettings,
        wire: &mut Wire,
        step: u64,
    ) -> Result<(), Error> {
        let params = trainer.values_mut(Slot::Params)?;
        let part = 1.0 / world.size() as f32;
        for (value, agreed) in params.iter_mut().zip(&self.agreed) {
            *value = part * (agreed - *value);
        }
        sums::reduce_scatter(world, 0, params, shares, wire);
        let (lr, mu) = (settings.outer_lr, settings.outer_momentum);
        for (value, momentum) in params[shares[world.rank()].clone()].iter_mut().zip(&mut self.momentum) {
            *momentum = mu * *momentum + *value;
            *value = lr * (*value + mu * *momentum);
        }
        sums::all_gather(world, params, shares, wire);
        for (value, agreed) in params.iter_mut().zip(&mut self.agreed) {
            *agreed -= *value;
            *value = *agreed;
        }
        self.step = step;
        Ok(())
    }
}
