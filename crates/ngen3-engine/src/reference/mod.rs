//! The reference engine: the whole mathematics in plain loops, the truth that every fast engine is held to.
//!
//! No SIMD, no threads, no arena: each function allocates what it returns. Numbers that the contract speaks of are f32, and so are
//! activations; every sum is in f64. It is as slow as that sounds, and meant for small models in tests.
//!
//! Read `layers.rs`, `attention.rs` and `loss.rs` for the formulas, each layer's forward beside its backward; `model.rs` for
//! their order, which training and decoding share; then `trainer.rs`, `teacher.rs`, `decoder.rs` and `device.rs`, which are
//! the contract's traits. `conformance.rs` holds another device to this one.

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
mod pass;
mod teacher;
mod trainer;

pub use device::ReferenceDevice;
pub use teacher::ReferenceTeacher;
pub use trainer::Reference;
