//! Objectives: `token_objective.rs` predicts the next token, `chat_objective.rs` the assistant's turns; `distill.rs` learns from
//! a teacher, whose predictions `teacher_cache.rs` can store on disk.

pub(crate) mod chat_objective;
pub mod distill;
pub(crate) mod teacher_cache;
pub(crate) mod token_objective;
