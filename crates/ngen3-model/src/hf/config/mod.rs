//! `config.json`: a model's shape in Hugging Face's format.
//!
//! `gpt2.rs` and `llama.rs` have the entries of a family each, `entries.rs` reads single ones. Options that change the results and are not supported are rejected
//! with an error that names them.

mod entries;
mod gpt2;
mod llama;

use serde_json::{Map, Value};

use entries::Entries;
pub use llama::rope_scaling;

use crate::{Config, Family};

/// Parsed config.json.
#[derive(Debug, PartialEq)]
pub(crate) struct Parsed {
    pub config: Config,
    /// True if the head is tied to the token embedding. If not, GPT-2's file must hold the head's weights, for comparison.
    pub tied: bool,
}

/// Parses a config.json. The error is the reason alone.
pub(crate) fn parse(text: &str) -> Result<Parsed, String> {
    parse_entries(serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))?)
}

/// Parses the entries of a config.json. The error is the reason alone.
pub(crate) fn parse_entries(entries: Map<String, Value>) -> Result<Parsed, String> {
    let file = Entries(entries);
    let expected = Family::ALL.map(Family::model_type).join(", ");
    let kind = file.get("model_type").ok_or_else(|| format!("missing model_type: expected one of {expected}"))?;
    let family = Family::ALL.into_iter().find(|family| kind == family.model_type());
    let family = family.ok_or_else(|| format!("unsupported model_type {kind}: expected one of {expected}"))?;
    if let Some(value) = file.get("quantization_config") {
        let method = value.get("quant_method").unwrap_or(value);
        return Err(format!("unsupported quantisation {method}: expected weights in float32, float16 or bfloat16"));
    }
    let config = match family {
        Family::Gpt2 => gpt2::parse(&file)?,
        _ => llama::parse(&file, family)?,
    };
    let tied = file.get("tie_word_embeddings").map_or(family == Family::Gpt2, |tied| *tied == true);
    Ok(Parsed { config, tied })
}

/// Returns the config.json of a model. `eot` is the id of the end-of-document token, `dtype` the type of the stored weights.
pub(crate) fn write(config: &Config, eot: Option<u32>, dropout: f64, dtype: &str) -> Value {
    match config.family {
        Family::Gpt2 => gpt2::write(config, eot, dropout, dtype),
        _ => llama::write(config, eot, dropout, dtype),
    }
}

#[cfg(test)]
mod tests;
