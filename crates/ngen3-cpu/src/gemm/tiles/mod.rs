//! Our own products, for processors with AVX512-BF16: operands in bf16 or in f32, sums in f32.
//!
//! Three steps, each in a file of its own: [`mod@pack`] rounds both operands and lays them out in the order in which the
//! kernel reads them (rows of A it reads as they lie: `packed_a.rs`); [`kernel`] multiplies [`MR`](kernel::MR) rows of A with one panel of B into a
//! tile of C that lives in registers; `product.rs` cuts the product into blocks that stay in cache and hands them to the threads.
//!
//! Everything packed is in 32-bit *cells*, each `P` neighbours along k: with P = 2 a pair of bf16, the first in the low half,
//! which `_mm512_dpbf16_ps` multiplies and adds in one instruction; with P = 1 one f32. All else is the same for both.
//!
//! [`softmax`] and, for f32, [`strassen`] hold the kernels of the fused loss, which do more with a tile than store it; [`strided`]
//! small products for attention, without packing; [`int8`] products of rounded operands.
//!
//! Each element of C is summed in the same order whatever the number of threads: the same bits.

pub mod int8;
pub mod kernel;
pub mod pack;
pub mod packed;
mod packed_a;
mod product;
pub mod softmax;
pub mod strassen;
pub mod strided;
mod workspace;

pub use pack::{cells, pack, packed_len};
pub use product::{matmul, matmul_onto};
pub use workspace::with_workspace;
