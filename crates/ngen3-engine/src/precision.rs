//! Precision and other options of an engine.

use serde::{Deserialize, Serialize};

/// Precision of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// The fastest precision of the hardware.
    #[default]
    Auto,
    /// f32 throughout, on every processor.
    F32,
    /// Operands of matrix products in bf16, everything else in f32. A CPU needs AMX, AVX512-BF16 or Arm's bf16.
    Bf16,
}

impl std::str::FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err("expected auto, f32 or bf16".into()),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// Options of an engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Number of compute threads; 0 is one per core.
    pub threads: usize,
    /// Precision of matrix products.
    pub dtype: Dtype,
    /// Quantisation of the weights, to decode faster; not for training.
    pub quant: Quant,
    /// True for activation checkpointing: the forward pass keeps only each block's input, and the backward pass recomputes the
    /// block. Results are the same; activations take a fraction of the memory, a step an eighth to a quarter more time.
    pub recompute: bool,
}

/// Quantisation of weights for inference. A teacher's int8 is also that of the inputs of its products; its int4 rounds weights
/// only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quant {
    /// None: bf16 weights where the engine multiplies in bf16, f32 otherwise.
    #[default]
    None,
    /// int8 with one scale per output.
    Int8,
    /// 4 bits with one scale per 32 weights, as GGUF's `Q4_0`. A decoder also rounds the inputs of its products, to 8 bits with
    /// one scale per 32.
    Int4,
}

impl Quant {
    /// All names, as flags take them.
    pub const NAMES: [&str; 3] = ["none", "int8", "int4"];
}

impl std::str::FromStr for Quant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err("expected none, int8 or int4".into()),
        }
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}
