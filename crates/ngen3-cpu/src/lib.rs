//! CPU engine: matrix products, layers, and [`CpuEngine`], which runs a model with them.
//!
//! Bottom-up: `base/` (memory, timers), `gemm/` (matrix products), `layers/` (each layer's forward and backward pass in one
//! file), `engine/` (the whole model). `engine/model.rs` has the order of computation, `engine/arena.rs` the layout of
//! activations.

mod base;
mod bench;
mod engine;
mod gemm;
mod layers;
mod optimizer;

pub use engine::{Cpu, CpuEngine, CpuTeacher};
