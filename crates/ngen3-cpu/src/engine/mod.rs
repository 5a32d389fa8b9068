//! The whole model. Bottom-up: `precision.rs`, `batch_plan.rs` (splits a batch into passes), `kept.rs`, `arena.rs` and `grads.rs` (memory of the
//! activations and the gradients), `frozen.rs` and `weights.rs` (parameters as products read them), `block.rs` (forward and backward pass of a transformer
//! block), `model.rs` (of the model), `distill.rs`, `stored.rs` (weights as a file stores them), `decoder.rs`, `runner.rs` (threads and working memory). The public types
//! are in `trainer.rs` ([`CpuEngine`]), `teacher.rs` ([`CpuTeacher`]) and `device.rs` ([`Cpu`], which opens both and estimates
//! their memory).

mod arena;
mod batch_plan;
mod block;
mod decoder;
mod device;
mod distill;
mod frozen;
mod grads;
mod kept;
mod model;
mod parts;
pub(crate) mod precision;
mod runner;
mod stored;
mod teacher;
#[cfg(test)]
mod tests;
mod trainer;
mod weights;

pub use device::Cpu;
pub use teacher::CpuTeacher;
pub use trainer::CpuEngine;
