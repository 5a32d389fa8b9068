//! The model as a whole. From the ground up: `precision.rs`, `batch_plan.rs` (which tokens go through the layers together),
//! `arena.rs` (where activations live), `weights.rs` (parameters as products read them), `block.rs` (a transformer block,
//! forward and backward), `model.rs` (the model, forward and backward), `distill.rs`, `decoder.rs`, `runner.rs` (threads and
//! working memory); then what the contract sees:
//! `trainer.rs` ([`CpuEngine`]), `teacher.rs`, and `device.rs` ([`Cpu`], which opens both and says what they need in memory).

mod arena;
mod batch_plan;
mod block;
mod decoder;
mod device;
mod distill;
mod model;
pub(crate) mod precision;
mod runner;
mod teacher;
#[cfg(test)]
mod tests;
mod trainer;
mod weights;

pub use device::Cpu;
pub use teacher::CpuTeacher;
pub use trainer::CpuEngine;
