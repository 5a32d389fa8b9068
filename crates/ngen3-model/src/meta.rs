//! A model as its files hold it: shape, parameters, and all that is known beside them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Config, GPT2_VOCAB_SIZE};

/// A model as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The model's shape.
    pub config: Config,
    /// `[total]`, in the order of [`ParamList`](crate::ParamList).
    pub params: Vec<f32>,
    /// Training record, tokenizer and evaluations.
    pub meta: CheckpointMeta,
}

/// The contents of a checkpoint beside the parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckpointMeta {
    /// Optimizer steps done.
    pub iter_num: u64,
    /// The lowest validation loss so far, in nats per token; `None` before the first evaluation.
    pub best_val_loss: Option<f64>,
    /// The tokenizer that made its token ids.
    pub tokenizer: TokenizerRef,
    /// The format of conversations, for a model that was trained on them.
    pub chat: Option<ChatFormat>,
    /// Settings of its training by name.
    pub training: Map<String, Value>,
    /// Results of evaluations by the task's name: `{version, n-shot, n-samples, dataset, metrics}`.
    pub evaluations: Map<String, Value>,
}

/// The tokenizer that a model's ids belong to; it travels with the model. Stored as one string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TokenizerRef {
    /// GPT-2's, which is built in: `"gpt2"`.
    #[default]
    Gpt2,
    /// The whole text of a Hugging Face `tokenizer.json`.
    Json(String),
    /// The file does not say, and its vocabulary is not GPT-2's: `""`.
    Unknown,
}

/// The format in which conversations become text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatFormat {
    /// A Jinja template, which `transformers` keeps as `chat_template`.
    pub template: String,
    /// Value of `bos_token` in the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<String>,
    /// Value of `eos_token` in the template. A turn of the assistant ends with it, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
}

/// nanoGPT trains from scratch with GPT-2's vocabulary rounded up to a multiple of 64.
const NANOGPT_VOCAB_SIZE: usize = 50_304;

impl TokenizerRef {
    /// The largest tokenizer.json that is taken, in bytes: well above any in use, and no larger than a checkpoint can hold.
    pub const MAX_BYTES: usize = 48 << 20;

    /// Returns the tokenizer of a model that does not name one: GPT-2's, if the vocabulary is of its size.
    pub(crate) fn guess(vocab_size: usize) -> Self {
        match vocab_size {
            GPT2_VOCAB_SIZE | NANOGPT_VOCAB_SIZE => Self::Gpt2,
            _ => Self::Unknown,
        }
    }
}

impl From<String> for TokenizerRef {
    fn from(text: String) -> Self {
        match text.as_str() {
            "gpt2" => Self::Gpt2,
            "" => Self::Unknown,
            _ => Self::Json(text),
        }
    }
}

impl From<TokenizerRef> for String {
    fn from(tokenizer: TokenizerRef) -> Self {
        match tokenizer {
            TokenizerRef::Gpt2 => "gpt2".into(),
            TokenizerRef::Json(text) => text,
            TokenizerRef::Unknown => String::new(),
        }
    }
}
