//! Specification of an export.

use std::str::FromStr;

use super::encode::ExportDtype;
use crate::{Checkpoint, Error};

/// Format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// Folder for Hugging Face's `transformers`.
    Hf,
    /// GGUF file for llama.cpp.
    Gguf,
}

impl FromStr for ExportFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "hf" => Ok(Self::Hf),
            "gguf" => Ok(Self::Gguf),
            _ => Err(Error::Config("expected hf or gguf".into())),
        }
    }
}

/// Losses at one training step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// Number of optimizer steps.
    pub step: u64,
    /// Loss on the step's batch, in nats per token.
    pub train_loss: Option<f32>,
    /// Loss on the validation tokens, in nats per token.
    pub val_loss: Option<f32>,
}

/// Model to export, and its options.
#[derive(Clone, Debug)]
pub struct Export<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// The model.
    pub checkpoint: &'a Checkpoint,
    /// Content of its tokenizer.json, if known.
    pub tokenizer: Option<&'a str>,
    /// End-of-document token: its text and its id.
    pub eot: Option<(&'a str, u32)>,
    /// Training curve, in order of steps; empty if unknown.
    pub curve: &'a [CurvePoint],
    /// Plot of the curve, as SVG.
    pub loss_svg: Option<&'a str>,
    /// Format.
    pub format: ExportFormat,
    /// Type of the stored weights.
    pub dtype: ExportDtype,
}

/// Result of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Names and sizes in bytes of the files, sorted by name.
    pub files: Vec<(String, u64)>,
}

impl Export<'_> {
    /// Returns the name of the GGUF file.
    pub(super) fn gguf_name(&self) -> String {
        format!("{}-{}.gguf", self.name, self.dtype.name())
    }
}
