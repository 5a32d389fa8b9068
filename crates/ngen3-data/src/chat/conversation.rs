//! Conversations as they are read.

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Whoever sets the rules.
    System,
    /// Whoever asks.
    User,
    /// Whom the model is to learn from.
    Assistant,
    /// The calls of the assistant.
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
    /// The words that are said.
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
