//! Settings that are a choice between names.

use std::fmt;
use std::str::FromStr;

use ngen3_cluster::wire::Format;
use serde::{Deserialize, Serialize};

use super::field::FieldType;

/// Defines an enum whose variants are written by the given names on the command line and in files; the first is the default.
macro_rules! choice {
    (
        $(#[doc = $doc:literal])*
        $choice:ident, $expected:literal {
            $(#[doc = $first_doc:literal])* $first:ident = $first_name:literal,
            $($(#[doc = $other_doc:literal])* $other:ident = $other_name:literal,)+
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $choice {
            #[default]
            $(#[doc = $first_doc])*
            #[serde(rename = $first_name)]
            $first,
            $($(#[doc = $other_doc])* #[serde(rename = $other_name)] $other,)+
        }

        impl FromStr for $choice {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                match name {
                    $first_name => Ok(Self::$first),
                    $($other_name => Ok(Self::$other),)+
                    _ => Err(format!("expected {}", $expected)),
                }
            }
        }

        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    Self::$first => $first_name,
                    $(Self::$other => $other_name,)+
                })
            }
        }

        impl FieldType for $choice {
            const EXPECTED: &str = $expected;
        }
    };
}

choice! {
    /// Defaults of the settings that decide how fast a model learns.
    RecipeName, "standard or fast" {
        /// The variant's: AdamW with a cosine schedule.
        Standard = "standard",
        /// Muon, higher learning rates, and a schedule that decays to zero: about half the steps for the same loss
        /// (docs/recipe.md).
        Fast = "fast",
    }
}

choice! {
    /// Optimizer of the matrices of the blocks' linear layers. AdamW updates all other parameters in any case.
    OptimizerKind, "adamw or muon" {
        /// AdamW (Loshchilov & Hutter 2019).
        AdamW = "adamw",
        /// Muon (Jordan et al. 2024).
        Muon = "muon",
    }
}

choice! {
    /// Type of the numbers that ranks send each other to be added up. What rounding leaves out is added to the next.
    ReduceDtype, "f32, bf16 or int8" {
        /// As they are.
        F32 = "f32",
        /// Half the bytes.
        Bf16 = "bf16",
        /// A quarter of the bytes.
        Int8 = "int8",
    }
}

impl From<ReduceDtype> for Format {
    fn from(dtype: ReduceDtype) -> Self {
        match dtype {
            ReduceDtype::F32 => Self::F32,
            ReduceDtype::Bf16 => Self::Bf16,
            ReduceDtype::Int8 => Self::Int8,
        }
    }
}

choice! {
    /// Course of the learning rate after the warm-up.
    Schedule, "cosine, linear or wsd" {
        /// Half a cosine from the peak to `min_lr` (Loshchilov & Hutter 2017).
        Cosine = "cosine",
        /// Straight from the peak to `min_lr`.
        Linear = "linear",
        /// Warm-up, stable, decay: at the peak until the last `decay_fraction` of the run, then straight to `min_lr`
        /// (Hu et al. 2024, arXiv:2404.06395).
        Wsd = "wsd",
    }
}
