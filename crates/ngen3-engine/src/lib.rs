//! The contract: what loops need from whatever computes. Traits and plain data; knows token ids, never text or files, and no
//! processor.
//!
//! Read `model.rs` first, then `device.rs`. `batch.rs`, `precision.rs`, `optimizer.rs` and `distill.rs` are the data that the
//! traits speak of.

// The fixtures' reader, which the CPU's tests share, names this crate.
#[cfg(test)]
extern crate self as ngen3_engine;

mod batch;
mod device;
mod distill;
mod dropout;
mod error;
mod model;
mod optimizer;
mod precision;
pub mod reference;

pub use batch::{Batch, IGNORE, PASS_TOKENS, Sequence, check_tokens};
pub use device::{Device, Workload};
pub use distill::{DistillConfig, DistillLoss, Divergence, TopK, check_temperature};
pub use dropout::{Dropout, DropoutSite, pass_seed, splitmix};
pub use error::Error;
pub use model::{ComputeInfo, Decoder, Distiller, Feed, Model, Teacher, TeacherSource, Trainer};
pub use optimizer::{AdamW, Backward, Slot};
pub use precision::{Dtype, Options, Quant};
