//! The engine on the CPU: products, layers, and [`CpuEngine`], which walks through them.
//!
//! From the ground up: `base/` (memory, clocks), `gemm/` (matrix products), `layers/` (each layer with its forward beside its
//! backward), `engine/` (the model as a whole; read `engine/model.rs` for the order of things and `engine/arena.rs` for where
//! activations live).

mod base;
mod bench;
mod engine;
mod gemm;
mod layers;

pub use engine::{Cpu, CpuEngine, CpuTeacher};
