//! Conversations and their turns.

/// Speaker of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions to the assistant.
    System,
    /// The user.
    User,
    /// The assistant, whose part the model plays.
    Assistant,
    /// A tool that the assistant calls.
    Tool,
}

impl Role {
    /// Returns the name in chat templates.
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
    /// Speaker.
    pub role: Role,
    /// Text.
    pub content: String,
}

impl Message {
    /// Makes a turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// Makes a turn of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

/// A training example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// Turns, at least one; none is empty.
    Turns(Vec<Message>),
    /// Plain text without turns, not empty: all of it is learned, and no template is applied.
    Text(String),
}
