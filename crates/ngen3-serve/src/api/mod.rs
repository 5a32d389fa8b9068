//! The OpenAI API: `completions.rs` and `chat.rs` parse a request and shape its answer; `settings.rs` has the parameters that both
//! share, `generation.rs` runs the jobs, `choice.rs` turns the tokens of one into text, `tokens.rs` writes log probabilities,
//! `respond.rs` streams or collects.

pub(crate) mod chat;
mod choice;
pub(crate) mod completions;
pub(crate) mod error;
mod generation;
pub(crate) mod models;
pub(crate) mod params;
pub(crate) mod respond;
pub(crate) mod settings;
pub(crate) mod tokenize;
mod tokens;
