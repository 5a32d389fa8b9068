//! A model that is served: its tokenizer and chat template, and the thread that computes.

use ngen3_data::Tokenizer;
use ngen3_data::chat::ChatEncoder;
use ngen3_model::{ChatFormat, Config};

use crate::engine::{Engine, OpenModel};

/// A model to serve.
pub struct ModelSpec {
    /// Name in the API.
    pub name: String,
    /// Shape.
    pub config: Config,
    /// Tokenizer.
    pub tokenizer: Tokenizer,
    /// Chat format; `None` for a base model, which continues text only.
    pub chat: Option<ChatFormat>,
    /// Opens the model; called on the thread that will own it.
    pub open: OpenModel,
}

/// A model whose thread runs.
#[derive(Debug)]
pub(crate) struct ServedModel {
    pub name: String,
    pub config: Config,
    pub tokenizer: Tokenizer,
    /// `None` for a base model.
    pub chat: Option<ChatEncoder>,
    pub engine: Engine,
}

impl ServedModel {
    /// Returns the token that ends a text, if any.
    pub fn text_end(&self) -> Vec<u32> {
        self.tokenizer.eot().into_iter().collect()
    }

    /// Returns the number of tokens of the prompt and the answer together.
    pub fn context(&self) -> usize {
        self.config.block_size
    }
}
