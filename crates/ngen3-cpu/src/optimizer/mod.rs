//! Updates of the parameters: [`muon`] for the matrices of the blocks' linear layers if it is asked for, [`adamw`] for all others.

pub mod adamw;
mod muon;

use ngen3_engine::{AdamW, Muon};
use ngen3_model::Param;

use crate::base::profile::{Part, timed};
use crate::gemm::Precision;

/// Options of an update of all parameters.
#[derive(Clone, Copy)]
pub struct Update<'a> {
    pub adamw: &'a AdamW,
    pub muon: Option<&'a Muon>,
    /// Precision of Muon's products.
    pub precision: Precision,
    /// Factor of the gradients.
    pub clip: f32,
}

/// Flat arrays of consecutive parameters, as long as each other.
pub struct Arrays<'a> {
    pub params: &'a mut [f32],
    pub grads: &'a mut [f32],
    pub exp_avg: &'a mut [f32],
    pub exp_avg_sq: &'a mut [f32],
}

impl<'a> Arrays<'a> {
    /// Splits each array after `n` elements.
    fn split_at(self, n: usize) -> (Self, Self) {
        let (params, more_params) = self.params.split_at_mut(n);
        let (grads, more_grads) = self.grads.split_at_mut(n);
        let (exp_avg, more_exp_avg) = self.exp_avg.split_at_mut(n);
        let (exp_avg_sq, more_exp_avg_sq) = self.exp_avg_sq.split_at_mut(n);
        let rest = Self { params: more_params, grads: more_grads, exp_avg: more_exp_avg, exp_avg_sq: more_exp_avg_sq };
        (Self { params, grads, exp_avg, exp_avg_sq }, rest)
    }
}

/// Updates consecutive parameters in place, on all threads, and zeroes their gradients.
pub fn update(update: Update<'_>, list: &[Param], arrays: Arrays<'_>) {
    let _timed = timed(Part::Update);
    update_some(update, list, arrays);
}

/// Each half of the list is a task, and so on: many small matrices keep the threads busy as well as few large ones.
fn update_some(update: Update<'_>, list: &[Param], arrays: Arrays<'_>) {
    match list {
        [] => {}
        [param] => update_one(update, param, arrays),
        _ => {
            let (list, more) = list.split_at(list.len() / 2);
            let (arrays, rest) = arrays.split_at(more[0].offset - list[0].offset);
            rayon::join(|| update_some(update, list, arrays), || update_some(update, more, rest));
        }
    }
}

fn update_one(update: Update<'_>, param: &Param, arrays: Arrays<'_>) {
    let Update { adamw, muon, precision, clip } = update;
    let (Some(muon), matrices @ 1..) = (muon, param.num_layer_matrices()) else {
        return adamw::update(adamw, param.decays(), clip, arrays);
    };
    muon::update(muon, precision, clip, [param.shape[0] / matrices, param.shape[1]], arrays);
}
