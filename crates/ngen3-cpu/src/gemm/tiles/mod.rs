//! Our own matrix products: operands in bf16 with AVX512-BF16, AMX or Arm's `bfdot`, in f32 with AVX-512, AVX2 or NEON; sums in f32.
//!
//! A product takes three steps. [`mod@pack`] rounds both operands and lays them out in the order in which the kernel reads them
//! (contiguous rows of A are only rounded: `packed_a.rs`). [`kernel`] multiplies [`MR`](kernel::MR) rows of A by one panel of B
//! into a tile of C held in registers. `product.rs` cuts the product into cache-sized blocks and distributes them over the
//! threads.
//!
//! Packed data consists of 32-bit *cells* of `P` consecutive elements along k. With P = 2 a cell is a pair of bf16, the first in
//! the low half, as `_mm512_dpbf16_ps` multiplies and accumulates them; with P = 1 it is one f32. The code is otherwise shared.
//!
//! [`mod@amx`] multiplies bf16 where the processor has tile registers; only the layout of A differs: [`panels_a`].
//!
//! [`softmax`] and, for f32 gradients, [`strassen`] are the kernels of the fused loss. [`strided`] has small products without
//! packing, for attention. [`low_rank`] adds an adapter's branch to a product, [`thin`] has the products
//! of its gradients. [`int8`] has products of quantised operands.
//!
//! The order of summation does not depend on the number of threads, so neither do the bits of the result.

pub mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod bfdot;
pub mod int8;
pub mod kernel;
pub mod low_rank;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod pack;
pub mod packed;
mod packed_a;
pub mod panels_a;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod parts;
pub mod prefetch;
mod product;
pub mod right;
pub mod shape;
pub mod softmax;
pub mod strassen;
pub mod strided;
pub mod thin;
mod turn;
mod workspace;

pub use pack::{cells, pack, packed_len};
pub use product::{matmul, matmul_lower, matmul_onto};
pub use workspace::with_workspace;
