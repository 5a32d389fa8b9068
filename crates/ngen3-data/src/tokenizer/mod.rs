//! Converts text to token ids and back.
//!
//! A [`Tokenizer`] is GPT-2's, built in ([`Tokenizer::gpt2`]); one from any Hugging Face tokenizer.json
//! ([`Tokenizer::from_json`]); or one trained on your own text ([`train`]). Byte-level BPE with GPT-2's pre-tokeniser runs on our
//! own code: the first, the last, and many files. Other files run on the `tokenizers` crate.
//!
//! Read `bpe/` first; then `codec.rs` (text to ids and back), `json.rs` (tokenizer.json), `stream.rs` (streaming decoding),
//! `train.rs`.

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
