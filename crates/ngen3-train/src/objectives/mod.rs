//! Objectives: `token_objective.rs` predicts the next token, `chat_objective.rs` the assistant's turns; `distill.rs` learns from
//! a teacher, whose predictions `teacher_cache.rs` can store on disk; `teacher_texts.rs` stores texts that it writes, and
//! `identity.rs` compares what is stored with a run. `held_out.rs` has their validation loss in nats per token and bits per byte.

pub(crate) mod chat_objective;
pub mod distill;
mod held_out;
mod identity;
pub(crate) mod teacher_cache;
pub(crate) mod teacher_texts;
pub(crate) mod token_objective;
