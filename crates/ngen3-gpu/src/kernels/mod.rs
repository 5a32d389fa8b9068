//! The kernels: each is a WGSL file beside the function that checks lengths and records it. All sums have a fixed order, so that the
//! same input gives the same bits on one adapter.
//!
//! `product.rs` has the matrix products; `norm.rs`, `column_sums.rs`, `rotary.rs`, `activation.rs`, `embedding.rs`, `dropout.rs`
//! the other layers; `attention.rs`, `loss.rs` and `distill.rs` what would need too much memory as products; `optimizer.rs` the updates.

pub mod activation;
pub mod attention;
pub mod cache;
pub mod column_sums;
pub mod distill;
pub mod dropout;
pub mod embedding;
pub mod loss;
pub mod norm;
pub mod optimizer;
pub mod product;
pub mod rotary;
#[cfg(test)]
pub mod testing;

/// Workgroups of a kernel that strides over its elements: enough to fill a large GPU.
const MAX_GROUPS: usize = 4096;

/// Returns the workgroups of 256 threads that stride over `len` elements.
fn groups(len: usize) -> [usize; 3] {
    [len.div_ceil(256).min(MAX_GROUPS), 1, 1]
}
