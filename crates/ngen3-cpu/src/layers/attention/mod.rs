//! Causal self-attention: out = softmax(q·kᵀ/√head_width)·v for each head   (Vaswani et al. 2017), with as many key and value
//! heads as query heads, or fewer, each shared by a group of query heads   (grouped-query attention, Ainslie et al. 2023).
//!
//! `qkv`: [tokens, (n_head + 2·n_kv_head)·head_width], all queries, then keys, then values, as `c_attn` computes them; `out`:
//! [tokens, n_head·head_width], the heads concatenated; saved for the backward pass: `qkv`, `out` and `lse`, [n_head, tokens] per
//! sequence: the log of each softmax's denominator. Query head h reads key and value head h / (n_head / n_kv_head).
//!
//! No heads × tokens × tokens buffer exists. A task takes one key head of one sequence and the query heads that share it (or one
//! of them, so that all threads have work), a few queries at a time, with the keys up to these queries only. The backward pass
//! (`backward.rs`) recomputes the probabilities from `lse`, as FlashAttention does (Dao et al. 2022). A task first copies its
//! operands from the widely spaced rows of `qkv` to scratch memory that stays in its cache, as cells of `P` elements
//! (`gemm/tiles/`): pairs of bf16, or single f32. Scores, probabilities and sums are f32. Decoding attends to a key-value cache:
//! prompts in the same way (`cached.rs`), single tokens page by page (`step.rs`).

mod backward;
mod cached;
mod forward;
mod operands;
mod shape;
mod step;
#[cfg(test)]
mod tests;
mod turns;

pub use backward::backward;
pub use cached::{cached, cached_scratch};
pub use forward::forward;
pub use operands::rounds;
pub use shape::{Cache, CachedSequence, Shape, Span};
