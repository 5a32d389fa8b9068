//! Text to token ids and back.
//!
//! [`Tokenizer`] is GPT-2's, embedded ([`Tokenizer::gpt2`]); any Hugging Face tokenizer.json
//! ([`Tokenizer::from_json`]); or one's own ([`train`]). Byte-level BPE with GPT-2's pre-tokeniser, which is what the first
//! and the last are and many files hold, runs on our own code; other files run on the `tokenizers` crate.
//!
//! Read `bpe/` first; then `codec.rs` (text to ids and back), `json.rs` (tokenizer.json), `stream.rs` (ids to text as they
//! come), `train.rs`.

mod backend;
mod bpe;
mod codec;
mod error;
mod gpt2;
mod json;
mod limits;
mod stream;
mod train;

pub use codec::Tokenizer;
pub use error::Error;
pub(crate) use json::MAX_BYTES;
pub use limits::{ENDOFTEXT, MAX_VOCAB_SIZE};
pub use stream::TextStream;
pub use train::{Trained, train};
