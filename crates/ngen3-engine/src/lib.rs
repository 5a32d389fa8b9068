//! The contract between engines, which compute, and the code for training, evaluation and generation: traits and plain data. It
//! knows token ids but no text or files, and no particular hardware.
//!
//! Read `model.rs` first, then `device.rs`. `batch.rs`, `precision.rs`, `optimizer.rs`, `distill.rs` and `dropout.rs` define
//! the data that the traits take; `pages.rs` keeps the books of a decoder's cache,
//! `pass.rs` splits a batch into passes. `reference/` is a slow, readable engine that others are tested against.

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
mod pages;
mod pass;
mod precision;
pub mod reference;

pub use batch::{Batch, IGNORE, PASS_TOKENS, Sequence, check_tokens};
pub use device::{Device, Workload};
pub use distill::{DistillConfig, DistillLoss, Divergence, TopK, check_temperature};
pub use dropout::{Dropout, DropoutSite, pass_seed, splitmix};
pub use error::Error;
pub use model::{ComputeInfo, Decoder, Distiller, Feed, Model, PAGE, Teacher, TeacherSource, Trainer};
pub use optimizer::{AdamW, Backward, Muon, Ready, Slot};
pub use pages::PageTable;
pub use pass::{Before, Pass, PassDropout, Span, passes};
pub use precision::{Dtype, Options, Quant};
