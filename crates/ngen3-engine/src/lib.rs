//! The contract: what loops need from whatever computes. Knows token ids, never text or files, and no processor.

mod engine;
mod precision;

pub use engine::{
    AdamW, Backward, Batch, Decoder, Distill, DistillLoss, Divergence, Engine, Error, IGNORE, Row, Slot, Teacher,
    TeacherModel, check_tokens, splitmix,
};
pub use precision::{Dtype, Options, Quant};
