//! Updates of the parameters: [`muon`] for the matrices of the blocks' linear layers if it is asked for, [`adamw`] for all others.

pub mod adamw;
mod arrays;
mod muon;

pub use arrays::Arrays;

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
