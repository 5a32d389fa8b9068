//! Marks of the tokens in `mask.bin`, one byte per token: a sum of these flags.

/// The token is learned: it is the assistant's, or of a text without turns.
pub const TARGET: u8 = 1;
/// The first token of a conversation.
pub const CONVERSATION_START: u8 = 2;
/// The first token of a turn. A conversation's first token has it only if every turn's first token could be identified.
pub const TURN_START: u8 = 4;
/// The token is never learned, whatever else is: of a turn that says so, or of the prompt before a completion.
pub const NEVER: u8 = 8;
