//! [`OptimizerState`]: gradients, moments, and the share of the parameters that is updated.

use std::borrow::Cow;
use std::ops::Range;

use ngen3_engine::{AdamW, Error, Muon};
use ngen3_model::Param;

use super::adamw::square_sum;
use super::arrays::Arrays;
use super::update;
use crate::base::memory::Buffer;
use crate::base::profile::{Part, timed};
use crate::gemm::Precision;

/// Gradients of all trainable parameters, and moments of the share that is updated. Both are empty until first needed.
#[derive(Debug, Default)]
pub struct OptimizerState {
    /// `[total]`: the sum over the batches of the step so far.
    grads: Buffer,
    /// `[total]`: those of a batch after the step's first, zeros between batches; empty until there is one.
    later: Buffer,
    /// True if the step had a batch.
    begun: bool,
    /// `[share]`, as is the second moment.
    exp_avg: Buffer,
    exp_avg_sq: Buffer,
    /// Range of the parameters that is updated, if not all.
    share: Option<Range<usize>>,
}

/// Gradients of a batch, which are zero before it: the step's own, for its first batch, or others that are to be added to `step` once
/// they are final.
///
/// So the gradients of a step are the sum of the batches' in their order, to the bit: what ranks with a batch each add up.
pub struct BatchGrads<'a> {
    /// `[total]`
    pub own: &'a mut [f32],
    /// `[total]`
    pub step: Option<&'a mut [f32]>,
}

/// A moment.
#[derive(Clone, Copy)]
pub enum Moment {
    First,
    Second,
}

impl OptimizerState {
    /// Returns the gradients of the step's next batch.
    ///
    /// # Errors
    /// [`Error::Memory`] if they do not fit in memory.
    pub fn batch_grads(&mut self, total: usize) -> Result<BatchGrads<'_>, Error> {
        reserve(&mut self.grads, total)?;
        if !std::mem::replace(&mut self.begun, true) {
            return Ok(BatchGrads { own: &mut self.grads, step: None });
        }
        reserve(&mut self.later, total)?;
        Ok(BatchGrads { own: &mut self.later, step: Some(&mut self.grads) })
    }

    /// Forgets the gradients of a batch that failed.
    pub fn drop_batch(&mut self) {
        self.later.fill(0.0);
    }

    /// Returns the gradients of the step, to change; zeros if it had no batch.
    ///
    /// # Errors
    /// As [`OptimizerState::batch_grads`].
    pub fn grads_mut(&mut self, total: usize) -> Result<&mut [f32], Error> {
        reserve(&mut self.grads, total)?;
        self.begun = true;
        Ok(&mut self.grads)
    }

    /// Returns the gradients of the step; empty before the first.
    pub fn grads(&self) -> &[f32] {
        &self.grads
    }

    /// Allocates the gradients and the share's moments as zeros, unless they exist.
    ///
    /// # Errors
    /// As [`OptimizerState::batch_grads`].
    pub fn reserve_all(&mut self, total: usize) -> Result<(), Error> {
        let len = self.share(total).len();
        reserve(&mut self.grads, total)?;
        reserve(&mut self.exp_avg, len)?;
        reserve(&mut self.exp_avg_sq, len)
    }

    /// Updates only this share from now on.
    ///
    /// # Errors
    /// [`Error::Input`] if it is not within `total`, or moments exist.
    pub fn set_share(&mut self, share: Range<usize>, total: usize) -> Result<(), Error> {
        if share.start > share.end || share.end > total {
            return Err(Error::Input(format!("the share {share:?} is not within {total} parameters")));
        }
        if !self.exp_avg.is_empty() {
            return Err(Error::Input("the share of the parameters cannot change after the first update".into()));
        }
        self.share = Some(share);
        Ok(())
    }

    fn share(&self, total: usize) -> Range<usize> {
        self.share.clone().unwrap_or(0..total)
    }

    /// Returns Σ g² of the share's gradients.
    pub fn grad_square_sum(&self) -> f64 {
        let _timed = timed(Part::Update);
        if self.grads.is_empty() { 0.0 } else { square_sum(&self.grads[self.share(self.grads.len())]) }
    }

    /// Updates the share of `params`, `[total]`, and zeroes all gradients; see [`update`].
    pub fn update(
        &mut self,
        adamw: &AdamW,
        muon: Option<&Muon>,
        precision: Precision,
        grad_norm: f32,
        list: &[Param],
        params: &mut [f32],
    ) {
        let share = self.share(params.len());
        let list = &list[list.partition_point(|param| param.range().end <= share.start)
            ..list.partition_point(|param| param.offset < share.end)];
        let Self { grads, exp_avg, exp_avg_sq, begun, .. } = self;
        *begun = false;
        let (before, after) = grads.split_at_mut(share.start);
        let (of_share, after) = after.split_at_mut(share.len());
        before.fill(0.0);
        after.fill(0.0);
        let arrays = Arrays { params: &mut params[share.clone()], grads: of_share, exp_avg, exp_avg_sq };
        update(adamw, muon, precision, grad_norm, list, share.start, arrays);
    }

    /// Returns a moment, `[share]`.
    pub fn moment(&self, moment: Moment, total: usize) -> Cow<'_, [f32]> {
        let values = match moment {
            Moment::First => &self.exp_avg,
            Moment::Second => &self.exp_avg_sq,
        };
        if values.is_empty() { Cow::Owned(vec![0.0; self.share(total).len()]) } else { Cow::Borrowed(values) }
    }

    /// Replaces a moment, `[share]`, of `total` parameters.
    ///
    /// # Errors
    /// As [`OptimizerState::reserve_all`].
    ///
    /// # Panics
    /// If `values` does not have as many elements.
    pub fn write_moment(&mut self, moment: Moment, values: &[f32], total: usize) -> Result<(), Error> {
        assert_eq!(values.len(), self.share(total).len(), "number of parameters in the share");
        self.reserve_all(total)?;
        let target = match moment {
            Moment::First => &mut self.exp_avg,
            Moment::Second => &mut self.exp_avg_sq,
        };
        target.copy_from_slice(values);
        Ok(())
    }
}

fn reserve(buffer: &mut Buffer, len: usize) -> Result<(), Error> {
    if buffer.is_empty() {
        *buffer = Buffer::zeros(len, "the gradient or optimizer state")?;
    }
    Ok(())
}
