//! Conversations: read as they are, rendered by a chat template, and tokenised with what tells the assistant's tokens.
//!
//! Read in the order of the data: `parse.rs` (a line or a value becomes a [`Conversation`]), `read.rs` (a file becomes many),
//! `template.rs` (one becomes text, as `transformers` renders it), `encode.rs` (the text becomes token ids, each with its
//! [`marks`]), `chats.rs` (all of them, in memory or as `data.bin` with `mask.bin` beside it), `sampler.rs` (rows for
//! training, each within one conversation).

mod build;
mod chats;
mod encode;
#[cfg(test)]
mod fixtures;
mod parse;
mod read;
mod sampler;
mod template;

pub use build::{ChatInput, ChatSpec, ChatSummary, build_chats};
pub use chats::Chats;
pub use encode::ChatEncoder;
pub use sampler::{ChatSampler, ChatSampling, Cuts, TrainOn, UNCOUNTED};
pub use template::ChatTemplate;

/// What `mask.bin` says of each token, one byte a token: the sum of what holds.
pub mod marks {
    /// The token is the assistant's; or it belongs to a text that is nobody's turn, and so to be learned whole.
    pub const LEARNED: u8 = 1;
    /// The first token of a conversation.
    pub const CONVERSATION: u8 = 2;
    /// The first token of a turn. A conversation's first token has it only if every turn's first could be told.
    pub const TURN: u8 = 4;
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Whoever sets the rules.
    System,
    /// Whoever asks.
    User,
    /// Whom the model is to learn from.
    Assistant,
    /// What the assistant has called.
    Tool,
}

impl Role {
    /// As templates know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// A turn of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

/// One thing to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// Turns, at least one; none is empty.
    Turns(Vec<Message>),
    /// A text in which nobody's turns can be told apart: it is learned whole, and goes through no template. Not empty.
    Text(String),
}
