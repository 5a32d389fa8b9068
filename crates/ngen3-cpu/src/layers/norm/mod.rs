//! Normalisation over the last axis, one kind a file; `rows.rs` has what they share.

pub mod layernorm;
pub mod rmsnorm;
mod rows;
