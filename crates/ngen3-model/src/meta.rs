//! Content of a model's files: shape, parameters and metadata.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::gguf::TensorType;
use crate::hf::without_roles;
use crate::{Config, GPT2_VOCAB_SIZE};

/// Model as a file stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Shape of the model.
    pub config: Config,
    /// Parameters, `[total]` in the order of [`ParamList`](crate::ParamList).
    pub params: Vec<f32>,
    /// Training record, tokenizer and evaluations.
    pub meta: CheckpointMeta,
}

/// Weight `[outputs, inputs]` as a file stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredWeight {
    /// Type of its elements.
    pub tensor_type: TensorType,
    /// Blocks of elements, row by row.
    pub bytes: Vec<u8>,
}

/// Metadata of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckpointMeta {
    /// Number of optimizer steps.
    pub iter_num: u64,
    /// Lowest validation loss so far, in nats per token; `None` before the first evaluation.
    pub best_val_loss: Option<f64>,
    /// Tokenizer of the model.
    pub tokenizer: TokenizerRef,
    /// Chat format, for a model that was trained on conversations.
    pub chat: Option<ChatFormat>,
    /// Training record: settings by name.
    pub training: Map<String, Value>,
    /// Evaluation results by task: `{version, n-shot, n-samples, dataset, metrics}`.
    pub evaluations: Map<String, Value>,
    /// Assumptions and omissions of the reader, a line each; not stored.
    pub notes: Vec<String>,
}

/// Tokenizer of a model, stored with it as one string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TokenizerRef {
    /// GPT-2's, which is built in: `"gpt2"`.
    #[default]
    Gpt2,
    /// Full text of a Hugging Face `tokenizer.json`.
    Json(String),
    /// Unknown: the file names none, and the vocabulary is not GPT-2's: `""`.
    Unknown,
}

/// Format that turns conversations into text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatFormat {
    /// Jinja template, `chat_template` in `transformers`.
    pub template: String,
    /// Value of `bos_token` in the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<String>,
    /// Value of `eos_token` in the template. If present, it ends an assistant's turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
}

/// nanoGPT's default vocabulary size: GPT-2's rounded up to a multiple of 64.
const NANOGPT_VOCAB_SIZE: usize = 50_304;

impl TokenizerRef {
    /// Size limit of a tokenizer.json, in bytes: well above any in use, and what a checkpoint can hold.
    pub const MAX_BYTES: usize = 48 << 20;

    /// True if two tokenizers may give the same ids: one is unknown, or they differ at most in the roles of special tokens.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let plain = |text: &str| {
            let mut file: Value = serde_json::from_str(text).ok()?;
            without_roles(&mut file);
            Some(file)
        };
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => true,
            (Self::Json(one), Self::Json(other)) => {
                one == other || plain(one).is_some_and(|one| Some(one) == plain(other))
            }
            _ => self == other,
        }
    }

    /// Returns the tokenizer of a model that names none: GPT-2's, if the vocabulary has its size.
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
