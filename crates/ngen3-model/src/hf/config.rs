//! `config.json`: a model's shape in Hugging Face's format.
//!
//! Missing entries default as in `GPT2Config` of `transformers`. Options that change the results and are not supported are
//! rejected with an error that names them.

use serde_json::{Map, Value, json};

use crate::{Activation, Config, GPT2_VOCAB_SIZE};

/// Parsed config.json.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    pub config: Config,
    /// True if the head is tied to the token embedding. If not, the file must hold the head's weights, for comparison.
    pub tied: bool,
}

/// Parses a config.json. The error is the reason alone.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    let file: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))?;
    let get = |name: &str| file.get(name).filter(|value| !value.is_null());
    match get("model_type") {
        Some(kind) if kind == "gpt2" => {}
        Some(kind) => return Err(format!("unsupported model_type {kind}: expected \"gpt2\"")),
        None => return Err("missing model_type: expected \"gpt2\"".into()),
    }
    if let Some(named) = get("architectures") {
        let known = |name: &Value| ["GPT2LMHeadModel", "GPT2Model"].iter().any(|known| name == known);
        if !named.as_array().is_some_and(|names| names.iter().all(known)) {
            return Err(format!("unsupported architectures {named}: expected GPT2LMHeadModel or GPT2Model"));
        }
    }
    // Each of these changes the results.
    for (name, harmless) in
        [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
    {
        if let Some(value) = get(name).filter(|value| **value != json!(harmless)) {
            return Err(format!("unsupported {name} {value}: expected {harmless}"));
        }
    }
    if let Some(value) = get("quantization_config") {
        let method = value.get("quant_method").unwrap_or(value);
        return Err(format!("unsupported quantisation {method}: expected weights in float32, float16 or bfloat16"));
    }

    let size = |names: &[&str], default: usize| {
        let Some((name, value)) = names.iter().find_map(|name| Some((name, get(name)?))) else { return Ok(default) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| format!("{name}: expected a size, got {value}"))
    };
    let mut config = Config::new(
        size(&["n_layer", "num_hidden_layers"], 12)?,
        size(&["n_head", "num_attention_heads"], 12)?,
        size(&["n_embd", "hidden_size"], 768)?,
        size(&["n_positions", "max_position_embeddings", "n_ctx"], 1024)?,
        size(&["vocab_size"], GPT2_VOCAB_SIZE)?,
    );
    config.activation = match get("activation_function").map(|value| value.as_str().ok_or(value)) {
        // Two names of the same function.
        None | Some(Ok("gelu_new" | "gelu_pytorch_tanh")) => Activation::GeluNew,
        Some(Ok("gelu")) => Activation::Gelu,
        Some(Ok(name)) => return Err(format!("unsupported activation_function {name:?}: expected gelu_new or gelu")),
        Some(Err(value)) => return Err(format!("activation_function: expected a name, got {value}")),
    };
    if let Some(value) = get("layer_norm_epsilon") {
        let epsilon = value.as_f64().ok_or_else(|| format!("layer_norm_epsilon: expected a number, got {value}"))?;
        config.layer_norm_epsilon = epsilon as f32;
    }
    config.validate().map_err(|error| error.to_string())?;
    let inner = size(&["n_inner"], 4 * config.n_embd)?;
    if inner != 4 * config.n_embd {
        return Err(format!("unsupported n_inner {inner}: expected 4 · n_embd = {}", 4 * config.n_embd));
    }
    Ok(Parsed { config, tied: get("tie_word_embeddings").is_none_or(|tied| tied == true) })
}

/// Returns the config.json of a model. `eot` is the id of the end-of-document token, `dtype` the type of the stored weights.
pub(super) fn write(config: &Config, eot: Option<u32>, dropout: f64, dtype: &str) -> Value {
    json!({
        "activation_function": match config.activation {
            Activation::GeluNew => "gelu_new",
            Activation::Gelu => "gelu",
        },
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": dropout,
        "bos_token_id": eot,
        "embd_pdrop": dropout,
        "eos_token_id": eot,
        "initializer_range": 0.02,
        "layer_norm_epsilon": config.written_epsilon(),
        "model_type": "gpt2",
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": null,
        "n_layer": config.n_layer,
        "n_positions": config.block_size,
        "reorder_and_upcast_attn": false,
        "resid_pdrop": dropout,
        "scale_attn_by_inverse_layer_idx": false,
        "scale_attn_weights": true,
        "tie_word_embeddings": true,
        "torch_dtype": dtype,
        "use_cache": true,
        "vocab_size": config.vocab_size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("model_type", json!("llama"), "unsupported model_type \"llama\": expected \"gpt2\""),
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
