//! Updates of the parameters: [`muon`] for the matrices of the blocks' linear layers if it is asked for, [`adamw`] for all others.

mod adamw;
mod arrays;
mod muon;

pub use arrays::Arrays;

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

/// Clips the gradients, updates all parameters in place, on all threads, and zeroes the gradients. Returns the gradients' norm
/// before clipping; if it is not finite, the parameters stay. `precision` is that of Muon's products.
pub fn update(adamw: &AdamW, muon: Option<&Muon>, precision: Precision, list: &[Param], arrays: Arrays<'_>) -> f32 {
    let _timed = timed(Part::Update);
    let norm = adamw::grad_norm(arrays.grads);
    if !norm.is_finite() {
        arrays.grads.fill(0.0);
        return norm;
    }
    // As in torch.nn.utils.clip_grad_norm_.
    let clip = if adamw.grad_clip > 0.0 { (adamw.grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    update_some(Update { adamw, muon, precision, clip }, list, arrays);
    norm
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
