//! Conversations: read, rendered by a chat template, and tokenised with a mask of the assistant's tokens.
//!
//! Read in the order of the data: `conversation.rs`, `input/` (a file or a record as a [`Conversation`]), `render/` (its text, as
//! `transformers` renders it), `encode.rs` (its token ids with their [`marks`]), `gather.rs` (all conversations of an input),
//! `chats.rs` and `build.rs` (in memory, or as `data.bin` with `mask.bin` beside it), `sampler.rs` (training sequences, each
//! within one conversation).

mod build;
mod chats;
mod conversation;
mod encode;
#[cfg(test)]
mod fixtures;
mod gather;
mod input;
pub mod marks;
mod render;
mod sampler;

pub use build::{ChatSpec, ChatSummary, build_chats};
pub use chats::Chats;
pub use conversation::{Conversation, Message, Role};
pub use encode::ChatEncoder;
pub use gather::{ChatInput, ChatReading};
pub use input::{ChatMapping, ChatParser, ParsedChat};
pub use render::ChatTemplate;
pub use sampler::{ChatSampler, ChatSampling, IGNORE_INDEX, SplitStats, TooLong, TrainOn};
