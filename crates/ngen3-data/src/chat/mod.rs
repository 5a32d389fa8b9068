//! Conversations: read as they are, rendered by a chat template, and tokenised with what tells the assistant's tokens.
//!
//! Read in the order of the data: `parse.rs` (a line or a value becomes a [`Conversation`]), `read.rs` (a file becomes many),
//! `template.rs` (one becomes text, as `transformers` renders it), `encode.rs` (the text becomes token ids, each with its
//! [`marks`]), `gather.rs` (all of them),
//! `chats.rs` and `build.rs` (in memory, or as `data.bin` with `mask.bin` beside it), `sampler.rs` (rows for
//! training, each within one conversation).

mod build;
mod chats;
mod conversation;
mod encode;
#[cfg(test)]
mod fixtures;
mod gather;
pub mod marks;
mod parse;
mod read;
mod sampler;
mod template;

pub use build::{ChatSpec, ChatSummary, build_chats};
pub use chats::Chats;
pub use conversation::{Conversation, Message, Role};
pub use encode::ChatEncoder;
pub use gather::ChatInput;
pub use sampler::{ChatSampler, ChatSampling, IGNORE_INDEX, SplitStats, TrainOn};
pub use template::ChatTemplate;
