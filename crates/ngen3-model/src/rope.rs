//! Rotary positions (RoPE, Su et al. 2021): the frequencies, and how they are scaled for contexts longer than those that a model
//! was first trained on.
//!
//! Elements i and i + head_width/2 of each query and key are a pair, which position p rotates by the angle p·fᵢ. The scalings
//! and their names are those of `transformers` (`modeling_rope_utils.py`).

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Rotary positions of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies: fᵢ = theta^(−2i/head_width).
    pub theta: f64,
    /// Context length that the model is made for, in tokens. `block_size` may be less, to train on shorter sequences.
    pub context: usize,
    /// Change of the frequencies.
    #[serde(default, skip_serializing_if = "RopeScaling::is_none")]
    pub scaling: RopeScaling,
}

/// Change of the frequencies for longer contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// None.
    #[default]
    Default,
    /// All frequencies divided by a factor (Chen et al. 2023).
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies are divided, high ones are not, those between are interpolated (Grattafiori et al. 2024).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above the original context / this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below the original context / this are high frequencies.
        high_freq_factor: f64,
        /// Original context length, in tokens.
        original_max_position_embeddings: usize,
    },
    /// YaRN: as Llama 3.1's, by number of rotations, and with longer queries and keys (Peng et al. 2023).
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Original context length, in tokens.
        original_max_position_embeddings: usize,
        /// Pairs that rotate more often than this over the original context are not changed.
        beta_fast: f64,
        /// Pairs that rotate less often than this over the original context are divided.
        beta_slow: f64,
        /// True if the range of pairs between is rounded outwards.
        truncate: bool,
        /// Factor of all queries and keys.
        attention_factor: f64,
    },
}

impl RopeScaling {
    fn is_none(&self) -> bool {
        *self == Self::Default
    }

    /// Returns YaRN with the defaults of `transformers` and llama.cpp.
    pub(crate) fn yarn(factor: f64, original_max_position_embeddings: usize) -> Self {
        Self::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: Rope::yarn_factor(factor, 1.0),
        }
    }
}

impl Rope {
    /// Returns the angle per position of each pair, in radians, `[head_width / 2]`, and the factor of all queries and keys.
    pub fn frequencies(&self, head_width: usize) -> (Vec<f32>, f32) {
        let plain = |pair: usize| self.theta.powf(-((2 * pair) as f64) / head_width as f64);
        let factor = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        let scaled = (0..head_width / 2).map(|pair| self.scaled(pair, plain(pair), head_width) as f32);
        (scaled.collect(), factor as f32)
    }

    fn scaled(&self, pair: usize, frequency: f64, head_width: usize) -> f64 {
        match self.scaling {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } => {
                // Rotations over the original context.
                let rotations = self.original() * frequency / (2.0 * PI);
                let kept = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, .. } => {
                // The pair that rotates this often over the original context.
                let pair_of = |rotations: f64| {
                    head_width as f64 * (self.original() / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (first, last) = (pair_of(beta_fast), pair_of(beta_slow));
                let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
                let (first, last) = (first.max(0.0), last.min(head_width as f64 - 1.0));
                let last = if first == last { last + 0.001 } else { last };
                let kept = 1.0 - ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
        }
    }

    /// Original context length, in tokens.
    fn original(&self) -> f64 {
        match self.scaling {
            RopeScaling::Llama3 { original_max_position_embeddings: tokens, .. }
            | RopeScaling::Yarn { original_max_position_embeddings: tokens, .. } => tokens as f64,
            RopeScaling::Default | RopeScaling::Linear { .. } => 1.0,
        }
    }

    /// Returns YaRN's factor of queries and keys, 0.1·mscale·ln(factor) + 1.
    pub(crate) fn yarn_factor(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// Checks that all numbers are in range. The error is the reason alone.
    pub(crate) fn check(&self) -> Result<(), String> {
        let positive = |name: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(format!("{name}: expected a number above 0, got {value}")),
        };
        if !(self.theta > 1.0 && self.theta.is_finite()) {
            return Err(format!("rope_theta: expected a number above 1, got {}", self.theta));
        }
        let context = |tokens: usize| positive("original_max_position_embeddings", tokens as f64);
        match self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", factor),
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } => {
                let RopeScaling::Llama3 { original_max_position_embeddings, .. } = self.scaling else { return Ok(()) };
                positive("factor", factor)?;
                positive("low_freq_factor", low)?;
                context(original_max_position_embeddings)?;
                match high > low && high.is_finite() {
                    true => Ok(()),
                    false => {
                        Err(format!("high_freq_factor: expected a number above low_freq_factor {low}, got {high}"))
                    }
                }
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => {
                positive("factor", factor)?;
                positive("beta_fast", beta_fast)?;
                positive("beta_slow", beta_slow)?;
                positive("attention_factor", attention_factor)?;
                context(original_max_position_embeddings)
            }
        }
    }
}
