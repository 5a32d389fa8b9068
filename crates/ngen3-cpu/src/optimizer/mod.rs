//! Updates of the parameters: [`muon`] for the matrices of the blocks' linear layers if it is asked for, [`adamw`] for all others.

mod adamw;
mod arrays;
mod muon;
mod state;

pub use state::{BatchGrads, Moment, OptimizerState};

use arrays::Arrays;
use ngen3_engine::{AdamW, Muon};
use ngen3_model::Param;

use crate::base::profile::{Part, timed};
use crate::gemm::Precision;

/// Options of an update of all parameters.
#[derive(Clone, Copy)]
struct Update<'a> {
    adamw: &'a AdamW,
    muon: Option<&'a Muon>,
    /// Precision of Muon's products.
    precision: Precision,
    /// Factor of the gradients.
    clip: f32,
}

/// Clips the gradients of a share of the flat arrays, given the norm of all gradients, and updates its parameters in place, on all
/// threads. `arrays` start at the flat array's element `start`, within the first of the parameters in `list`, and end within the
/// last. Zeroes the gradients. If the norm is not finite, the parameters stay. `precision` is that of Muon's products.
fn update(
    adamw: &AdamW,
    muon: Option<&Muon>,
    precision: Precision,
    grad_norm: f32,
    list: &[Param],
    start: usize,
    arrays: Arrays<'_>,
) {
    let _timed = timed(Part::Update);
    if !grad_norm.is_finite() {
        arrays.grads.fill(0.0);
        return;
    }
    // As in torch.nn.utils.clip_grad_norm_.
    let clip = if adamw.grad_clip > 0.0 { (adamw.grad_clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
    update_some(Update { adamw, muon, precision, clip }, list, start, arrays);
}

/// Each half of the list is a task, and so on: many small matrices keep the threads busy as well as few large ones.
fn update_some(update: Update<'_>, list: &[Param], start: usize, arrays: Arrays<'_>) {
    match list {
        [] => {}
        [param] => update_one(update, param, arrays),
        _ => {
            let (list, more) = list.split_at(list.len() / 2);
            let (arrays, rest) = arrays.split_at(more[0].offset - start);
            rayon::join(
                || update_some(update, list, start, arrays),
                || update_some(update, more, more[0].offset, rest),
            );
        }
    }
}

/// Updates one parameter, or the part of it that is in the share.
fn update_one(update: Update<'_>, param: &Param, arrays: Arrays<'_>) {
    let Update { adamw, muon, precision, clip } = update;
    let (Some(muon), matrices @ 1..) = (muon, param.num_layer_matrices()) else {
        return adamw::update(adamw, param.decays(), clip, arrays);
    };
    muon::update(muon, precision, clip, [param.shape[0] / matrices, param.shape[1]], arrays);
}
