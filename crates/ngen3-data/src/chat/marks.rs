//! The marks of each token in `mask.bin`, one byte a token: the sum of what holds.

/// The token is the assistant's; or it belongs to a text that is nobody's turn, and so to be learned whole.
pub const TARGET: u8 = 1;
/// The first token of a conversation.
pub const CONVERSATION_START: u8 = 2;
/// The first token of a turn. A conversation's first token has it only if every turn's first could be told.
pub const TURN_START: u8 = 4;
