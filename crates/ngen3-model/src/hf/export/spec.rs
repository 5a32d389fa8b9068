//! The order for an export: which model, in which format, with what beside it.

use std::str::FromStr;

use super::encode::ExportDtype;
use crate::{Checkpoint, Error};

/// What a folder is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// Hugging Face's `transformers`, and all that reads its folders.
    Hf,
    /// llama.cpp.
    Gguf,
}

impl FromStr for ExportFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "hf" => Ok(Self::Hf),
            "gguf" => Ok(Self::Gguf),
            _ => Err(Error::Config(format!("there is no format {name:?}; there are hf and gguf"))),
        }
    }
}

/// What was measured at one step of a model's training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// Updates done.
    pub step: u64,
    /// Loss of the update's batch, in nats per token.
    pub train_loss: Option<f32>,
    /// Loss on the validation tokens, in nats per token.
    pub val_loss: Option<f32>,
}

/// A model on its way out.
#[derive(Clone, Debug)]
pub struct Export<'a> {
    /// What it is called.
    pub name: &'a str,
    /// The model.
    pub checkpoint: &'a Checkpoint,
    /// The tokenizer.json of its tokenizer, if it is known.
    pub tokenizer: Option<&'a str>,
    /// The token that ends a document: its text and its id.
    pub eot: Option<(&'a str, u32)>,
    /// How its training went, in order; empty if that is not known.
    pub curve: &'a [CurvePoint],
    /// A drawing of it, in SVG.
    pub loss_svg: Option<&'a str>,
    /// What the folder is for.
    pub format: ExportFormat,
    /// How the weights are stored.
    pub dtype: ExportDtype,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Names of the files and their sizes in bytes, by name.
    pub files: Vec<(String, u64)>,
}

impl Export<'_> {
    /// Name of the GGUF file.
    pub(super) fn gguf_name(&self) -> String {
        format!("{}-{}.gguf", self.name, self.dtype.name())
    }
}
