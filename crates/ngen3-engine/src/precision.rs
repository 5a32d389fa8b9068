//! The numbers that an engine computes with, and how it runs.

use serde::{Deserialize, Serialize};

/// The numbers that products are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// The fastest that this processor has.
    #[default]
    Auto,
    /// Nothing is rounded to less, on every processor.
    F32,
    /// Operands of products rounded to bf16, sums and everything else in f32; needs AVX512-BF16.
    Bf16,
}

impl std::str::FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err("there are auto, f32 and bf16".into()),
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

/// How an engine runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads that compute; 0 is one for each core.
    pub threads: usize,
    /// The numbers that products are made of.
    pub dtype: Dtype,
    /// True if the weights are rounded further, to decode faster; not for training.
    pub quant: Quant,
    /// True if a pass forward keeps only each block's input, and backward runs the block again: the same numbers, in a fraction of
    /// the memory for activations and an eighth to a quarter more time.
    pub recompute: bool,
}

/// Precision that weights which are only read are rounded to; a teacher rounds what they are multiplied with, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quant {
    /// The engine's precision: bf16 weights where it multiplies in bf16, f32 elsewhere.
    #[default]
    None,
    /// int8 with a scale for each output.
    Int8,
}

impl std::str::FromStr for Quant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "int8" => Ok(Self::Int8),
            _ => Err("there are none and int8".into()),
        }
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Int8 => "int8",
        })
    }
}
