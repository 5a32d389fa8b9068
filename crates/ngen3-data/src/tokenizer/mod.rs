//! Converts text to token ids and back.
//!
//! A [`Tokenizer`] is GPT-2's, built in ([`Tokenizer::gpt2`]); one from any Hugging Face tokenizer.json
//! ([`Tokenizer::from_json`]); or one made of your own text ([`train`], [`train_chars`]). Byte-level BPE like that of GPT-2,
//! SmolLM2, Llama 3 and Qwen and vocabularies of characters run on our own code: the first, the last, and many files. Other
//! files run on the `tokenizers` crate.
//!
//! Read `bpe/` and `chars.rs` first; then `codec.rs` (text to ids and back), `json/` (tokenizer.json), `missing.rs` (characters
//! without a token), `stream.rs` (streaming decoding), `text.rs` (up to a stop text), `byte_counter.rs` (bytes of text), `train.rs` and `plain.rs` (vocabularies of a text).

mod backend;
mod bpe;
mod byte_counter;
mod chars;
mod codec;
mod error;
mod gpt2;
mod json;
mod limits;
mod missing;
mod plain;
mod stream;
mod text;
mod train;

pub use byte_counter::{ByteCounter, TextSize};
pub use codec::Tokenizer;
pub use error::Error;
pub(crate) use json::MAX_BYTES;
pub(crate) use limits::MAX_WORD;
pub use limits::{ENDOFTEXT, MAX_VOCAB_SIZE};
pub use missing::MissingChars;
pub use plain::train_chars;
pub use stream::TextStream;
pub use text::Text;
pub use train::{Trained, train};
