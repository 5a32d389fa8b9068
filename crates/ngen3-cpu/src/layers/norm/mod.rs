//! Normalisation over the last axis, one kind a file; `rows.rs` has what they share.

pub mod layernorm;
#[cfg_attr(not(test), expect(dead_code, reason = "no engine runs the Llama family yet"))]
pub mod rmsnorm;
mod rows;
