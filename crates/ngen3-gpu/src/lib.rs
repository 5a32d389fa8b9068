//! GPU engine, on `wgpu` (Vulkan, Metal, DX12) with kernels in WGSL: no toolkit to install, any vendor.
//!
//! Bottom-up: `device/` (adapters, buffers, pipelines, recording), `kernels/` (each a WGSL file beside the function that records
//! it), `engine/` (the whole model). `engine/model.rs` has the order of computation, `engine/arena.rs` the memory.

mod device;
mod engine;
mod kernels;

pub use device::{Adapter, adapters, may_have_gpu};
pub use engine::Gpu;
