//! Tensor files: `.safetensors`, and PyTorch's zip files with their pickles.
//!
//! Start with `tensor.rs`. Reading never executes anything in a file: see `pickle/read.rs`.

mod format;
pub(crate) mod pickle;
pub mod safetensors;
mod tensor;
pub(crate) mod torch;

pub use format::Format;
pub(crate) use format::open;
pub(crate) use tensor::{Dtype, Order, Storages, Tensor, stream, write_f32};
