//! The whole model. Bottom-up: `layout.rs` (places of the parameters), `network.rs` (a model on the device), `arena.rs` (memory of the
//! activations), `linear.rs`, `block.rs` and `model.rs` (forward and backward pass), `distill.rs`, `decoder.rs`,
//! `teacher.rs`, `trainer.rs` and `device.rs` (the contract's traits), `rate.rs` (how fast products are).

mod arena;
mod block;
mod decoder;
mod device;
mod distill;
mod layout;
mod linear;
mod model;
mod network;
mod rate;
mod teacher;
mod trainer;

pub use device::Gpu;
