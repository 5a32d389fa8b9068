//! `config.json`: a model's shape in Hugging Face's format.
//!
//! `gpt2.rs` and `llama.rs` have the entries of a family each. Options that change the results and are not supported are rejected
//! with an error that names them.

mod gpt2;
mod llama;

use serde_json::{Map, Value};

use crate::{Config, Family};

/// Parsed config.json.
#[derive(Debug, PartialEq)]
pub(crate) struct Parsed {
    pub config: Config,
    /// True if the head is tied to the token embedding. If not, GPT-2's file must hold the head's weights, for comparison.
    pub tied: bool,
}

/// Entries of a config.json.
struct Entries(Map<String, Value>);

impl Entries {
    /// Returns an entry that is there and not null.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Returns the size that one of these entries gives.
    fn size_of(&self, names: &[&str]) -> Result<Option<usize>, String> {
        let Some((name, value)) = names.iter().find_map(|name| Some((name, self.get(name)?))) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| format!("{name}: expected a size, got {value}"))
    }

    fn size(&self, names: &[&str], default: usize) -> Result<usize, String> {
        Ok(self.size_of(names)?.unwrap_or(default))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| format!("{name}: expected a number, got {value}"))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| format!("{name}: expected true or false, got {value}"))
    }

    fn check_architectures(&self, known: &[&str]) -> Result<(), String> {
        let Some(named) = self.get("architectures") else { return Ok(()) };
        let is_known = |name: &Value| known.iter().any(|known| name == known);
        if named.as_array().is_some_and(|names| names.iter().all(is_known)) {
            return Ok(());
        }
        Err(format!("unsupported architectures {named}: expected {}", known.join(" or ")))
    }

    /// Checks that entries that would change the results are missing or have these values.
    fn check_harmless(&self, entries: &[(&str, Value)]) -> Result<(), String> {
        for (name, harmless) in entries {
            if let Some(value) = self.get(name).filter(|value| *value != harmless) {
                return Err(format!("unsupported {name} {value}: expected {harmless}"));
            }
        }
        Ok(())
    }
}

/// Parses a config.json. The error is the reason alone.
pub(crate) fn parse(text: &str) -> Result<Parsed, String> {
    parse_entries(serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))?)
}

/// Parses the entries of a config.json. The error is the reason alone.
pub(crate) fn parse_entries(entries: Map<String, Value>) -> Result<Parsed, String> {
    let file = Entries(entries);
    let families = [Family::Gpt2, Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];
    let expected = families.map(Family::model_type).join(", ");
    let kind = file.get("model_type").ok_or_else(|| format!("missing model_type: expected one of {expected}"))?;
    let family = families.into_iter().find(|family| kind == family.model_type());
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Activation, GPT2_VOCAB_SIZE};

    #[test]
    fn what_is_written_is_read() {
        let mut config = Config::new(2, 3, 12, 16, 97);
        config.activation = Activation::Gelu;
        config.layer_norm_epsilon = 1e-6;
        let text = write(&config, Some(96), 0.1, "float32").to_string();
        assert_eq!(parse(&text), Ok(Parsed { config, tied: true }));
        assert!(text.contains("\"layer_norm_epsilon\":1e-6"), "{text}");
    }

    #[test]
    fn what_is_not_said_is_gpt2() {
        let config = |text: &str| parse(text).map(|parsed| parsed.config);
        assert_eq!(config("{\"model_type\": \"gpt2\"}"), Ok(Config::new(12, 12, 768, 1024, GPT2_VOCAB_SIZE)));
        let other_names = r#"{"model_type": "gpt2", "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 12,
            "n_ctx": 16, "vocab_size": 97, "n_inner": 48, "activation_function": "gelu_pytorch_tanh",
            "reorder_and_upcast_attn": true}"#;
        assert_eq!(config(other_names), Ok(Config::new(2, 3, 12, 16, 97)));
    }

    #[test]
    fn what_cannot_be_run_exactly_is_named() {
        for (name, value, reason) in [
            (
                "model_type",
                json!("bert"),
                "unsupported model_type \"bert\": expected one of gpt2, llama, mistral, qwen2, qwen3",
            ),
            ("model_type", json!(null), "missing model_type"),
            ("architectures", json!(["GPT2ForSequenceClassification"]), "unsupported architectures [\"GPT2ForSeq"),
            (
                "activation_function",
                json!("relu"),
                "unsupported activation_function \"relu\": expected gelu_new or gelu",
            ),
            ("activation_function", json!(7), "activation_function: expected a name, got 7"),
            ("scale_attn_weights", json!(false), "unsupported scale_attn_weights false: expected true"),
            (
                "scale_attn_by_inverse_layer_idx",
                json!(true),
                "unsupported scale_attn_by_inverse_layer_idx true: expected false",
            ),
            ("add_cross_attention", json!(true), "unsupported add_cross_attention true: expected false"),
            ("quantization_config", json!({"quant_method": "gptq"}), "unsupported quantisation \"gptq\""),
            ("n_inner", json!(1000), "unsupported n_inner 1000: expected 4 · n_embd = 3072"),
            ("n_layer", json!(0), "n_layer is 0"),
            ("n_layer", json!(-1), "n_layer: expected a size, got -1"),
            ("n_embd", json!(1e300), "n_embd: expected a size, got 1e+300"),
            ("n_embd", json!(u64::MAX), "n_embd is 18446744073709551615"),
            ("n_head", json!(7), "n_embd 768 is not a multiple of n_head 7"),
            ("layer_norm_epsilon", json!("small"), "layer_norm_epsilon: expected a number, got \"small\""),
            ("layer_norm_epsilon", json!(-1), "layer_norm_epsilon is -1"),
        ] {
            let mut file = json!({"model_type": "gpt2"});
            file[name] = value;
            let error = parse(&file.to_string()).unwrap_err();
            assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        }
        assert!(parse("[]").unwrap_err().contains("expected a JSON object"));
    }
}
