//! Files of tensors, whatever the tensors are: `.safetensors`, and PyTorch's zip files with their pickles.
//!
//! Read `tensor.rs` first. Reading never runs anything that a file says: see `pickle/read.rs`.

mod format;
pub(crate) mod pickle;
pub mod safetensors;
mod tensor;
pub(crate) mod torch;

pub use format::Format;
pub(crate) use format::open;
pub(crate) use tensor::{Dtype, Order, Storages, Tensor, stream, write_f32};
