//! What computes: forward, loss, backward, update, and decoding. Knows token ids, never text or files.
//!
//! [`Engine`] is what the training loop and the sampler see; `cpu/` implements it. `sampling.rs` chooses a token from its
//! logits, `generate.rs` chains them.

pub mod bench;
mod cpu;
mod engine;
mod gemm;
mod generate;
pub mod profile;
mod sampling;

pub use cpu::{CpuEngine, CpuTeacher, Dtype, Options, Quant, splitmix};
pub use engine::{
    AdamW, Backward, Batch, Decoder, Distill, DistillLoss, Divergence, Engine, Error, IGNORE, Row, Slot, Teacher,
    TeacherModel,
};
pub use generate::{Generator, Request};
pub use sampling::{Sampler, Sampling};
