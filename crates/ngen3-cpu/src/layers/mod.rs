//! Layers, one per file: formula, source and shapes first, then the forward and the backward pass.

pub mod adamw;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod linear;
pub mod lora;
pub mod loss;
pub mod matvec;
mod norm;
pub mod top_k;

pub use norm::layernorm;
#[expect(unused_imports, reason = "no engine runs the Llama family yet")]
pub use norm::rmsnorm;
