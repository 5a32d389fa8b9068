//! The reference engine: all the mathematics in plain loops. Every fast engine is tested against it.
//!
//! No SIMD, no threads, no arena: each function allocates what it returns. Parameters, gradients and activations are f32, sums
//! f64. It is slow and meant for small models in tests.
//!
//! Start with the formulas in `layers.rs`, `attention.rs` and `loss.rs`, each forward pass next to its backward pass.
//! `model.rs` runs the layers in order, for training and decoding alike. `trainer.rs`, `teacher.rs`, `decoder.rs` and
//! `device.rs` implement the contract's traits. `conformance.rs` checks another device against this one.

mod adamw;
mod attention;
pub mod conformance;
mod decoder;
mod device;
#[cfg(test)]
#[path = "../../../ngen3-cpu/tests/fixtures/mod.rs"]
mod fixtures;
mod layers;
mod loss;
mod model;
mod muon;
mod teacher;
mod trainer;

pub use device::ReferenceDevice;
pub use teacher::ReferenceTeacher;
pub use trainer::Reference;
