//! The specification of an export.

use std::str::FromStr;

use super::encode::ExportDtype;
use crate::{Checkpoint, Error};

/// Format of an export, after the program that reads it.
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

/// Losses at one step of a model's training.
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
    /// Its name.
    pub name: &'a str,
    /// The model.
    pub checkpoint: &'a Checkpoint,
    /// The tokenizer.json of its tokenizer, if it is known.
    pub tokenizer: Option<&'a str>,
    /// The token that ends a document: its text and its id.
    pub eot: Option<(&'a str, u32)>,
    /// Losses of its training, in order; empty if they are not known.
    pub curve: &'a [CurvePoint],
    /// A drawing of it, in SVG.
    pub loss_svg: Option<&'a str>,
    /// The format of the folder.
    pub format: ExportFormat,
    /// The type in which weights are stored.
    pub dtype: ExportDtype,
}

/// The result of an export.
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
