//! The layers, one file each: the formula, its source, the shapes, then forward beside backward.

pub mod adamw;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod layernorm;
pub mod linear;
pub mod lora;
pub mod loss;
pub mod matvec;
pub mod top_k;
