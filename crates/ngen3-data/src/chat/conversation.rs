//! Conversations and their turns.

use serde_json::{Map, Value};

/// Speaker of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions to the assistant.
    System,
    /// Instructions of the application's developer, as OpenAI's newer models call them.
    Developer,
    /// The user.
    User,
    /// The assistant, whose part the model plays.
    Assistant,
    /// A tool that the assistant calls.
    Tool,
    /// A function that the assistant calls, in OpenAI's older format.
    Function,
    /// A tool, in Llama 3's format.
    Ipython,
}

/// Names of the roles: first as chat templates read them, then those of other formats (ShareGPT, Vicuna, Gemma, LLaMA-Factory).
const ROLES: [(&str, Role); 19] = [
    ("system", Role::System),
    ("developer", Role::Developer),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
    ("function", Role::Function),
    ("ipython", Role::Ipython),
    ("human", Role::User),
    ("prompter", Role::User),
    ("gpt", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("bot", Role::Assistant),
    ("model", Role::Assistant),
    ("bing", Role::Assistant),
    ("bard", Role::Assistant),
    ("function_call", Role::Assistant),
    ("observation", Role::Tool),
    ("tool_response", Role::Tool),
    ("function_response", Role::Tool),
];

impl Role {
    /// Returns the role of a name, in any case; `None` for an unknown one.
    pub fn parse(name: &str) -> Option<Self> {
        ROLES.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, role)| role)
    }

    /// Returns the name in chat templates.
    pub fn name(self) -> &'static str {
        ROLES.into_iter().find(|(_, role)| *role == self).map_or("", |(name, _)| name)
    }
}

/// A turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Speaker.
    pub role: Role,
    /// Text; `None` for a turn that only calls tools.
    pub content: Option<String>,
    /// Everything else that a chat template may read: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`, ….
    pub fields: Map<String, Value>,
    /// True if the turn is learned, false if not; `None` if the data do not say.
    pub train: Option<bool>,
}

impl Message {
    /// Makes a turn with nothing but text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: Some(content.into()), fields: Map::new(), train: None }
    }

    /// Makes a turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// Makes a turn of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}

/// A training example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// Turns, rendered by a chat template.
    Turns {
        /// At least one turn.
        messages: Vec<Message>,
        /// Other values that the template may read: `tools`, `documents`, ….
        context: Map<String, Value>,
    },
    /// Plain text without turns, to which no template is applied.
    Text {
        /// The part before the answer, which is not learned; empty if all of the text is learned.
        prompt: String,
        /// The part that is learned; not empty.
        text: String,
    },
}

impl Conversation {
    /// Makes a conversation of turns alone.
    pub fn turns(messages: Vec<Message>) -> Self {
        Self::Turns { messages, context: Map::new() }
    }

    /// Makes a text, all of which is learned.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { prompt: String::new(), text: text.into() }
    }
}
