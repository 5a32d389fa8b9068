//! `config.json`: the shape of a model in Hugging Face's words.
//!
//! Missing entries have the defaults of `GPT2Config` in `transformers`. Options that the engine could not run to the same
//! numbers are rejected with an error that names them.

use serde_json::{Map, Value, json};

use crate::{Activation, Config, GPT2_VOCAB_SIZE};

/// The content of a config.json.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    pub config: Config,
    /// The final projection is the token embedding; if not, its weights must be there to be compared.
    pub tied: bool,
}

/// Reads a config.json. The error is the reason alone.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    let file: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("it is not a JSON object: {error}"))?;
    let get = |name: &str| file.get(name).filter(|value| !value.is_null());
    match get("model_type") {
        Some(kind) if kind == "gpt2" => {}
        Some(kind) => return Err(format!("its model_type is {kind}; only \"gpt2\" models can be run")),
        None => return Err("it has no model_type; only \"gpt2\" models can be run".into()),
    }
    if let Some(named) = get("architectures") {
        let known = |name: &Value| ["GPT2LMHeadModel", "GPT2Model"].iter().any(|known| name == known);
        if !named.as_array().is_some_and(|names| names.iter().all(known)) {
            return Err(format!("its architectures are {named}; GPT2LMHeadModel and GPT2Model can be run"));
        }
    }
    // Each of these changes what the model computes.
    for (name, harmless) in
        [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
    {
        if let Some(value) = get(name).filter(|value| **value != json!(harmless)) {
            return Err(format!("its {name} is {value}; only models with {harmless} can be run"));
        }
    }
    if let Some(value) = get("quantization_config") {
        let method = value.get("quant_method").unwrap_or(value);
        return Err(format!("its weights are quantised ({method}); only float32, float16 and bfloat16 are read"));
    }

    let size = |names: &[&str], default: usize| {
        let Some((name, value)) = names.iter().find_map(|name| Some((name, get(name)?))) else { return Ok(default) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| format!("its {name} is {value}, which is no size"))
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
        Some(Ok(name)) => return Err(format!("its activation_function is {name:?}; gelu_new and gelu can be run")),
        Some(Err(value)) => return Err(format!("its activation_function is {value}, which is no name")),
    };
    if let Some(value) = get("layer_norm_epsilon") {
        let epsilon = value.as_f64().ok_or_else(|| format!("its layer_norm_epsilon is {value}, which is no number"))?;
        config.layer_norm_epsilon = epsilon as f32;
    }
    config.validate().map_err(|error| error.to_string())?;
    let inner = size(&["n_inner"], 4 * config.n_embd)?;
    if inner != 4 * config.n_embd {
        return Err(format!("its n_inner is {inner}; only models with 4 · n_embd = {} can be run", 4 * config.n_embd));
    }
    Ok(Parsed { config, tied: get("tie_word_embeddings").is_none_or(|tied| tied == true) })
}

/// The config.json of a model. `eot` is the id of the token that ends a document, `dtype` how the weights are stored.
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
            ("model_type", json!("llama"), "its model_type is \"llama\""),
            ("model_type", json!(null), "it has no model_type"),
            ("architectures", json!(["GPT2ForSequenceClassification"]), "its architectures are [\"GPT2ForSeq"),
            ("activation_function", json!("relu"), "its activation_function is \"relu\"; gelu_new and gelu"),
            ("activation_function", json!(7), "its activation_function is 7, which is no name"),
            ("scale_attn_weights", json!(false), "its scale_attn_weights is false; only models with true"),
            ("scale_attn_by_inverse_layer_idx", json!(true), "its scale_attn_by_inverse_layer_idx is true"),
            ("add_cross_attention", json!(true), "its add_cross_attention is true"),
            ("quantization_config", json!({"quant_method": "gptq"}), "its weights are quantised (\"gptq\")"),
            ("n_inner", json!(1000), "its n_inner is 1000; only models with 4 · n_embd = 3072"),
            ("n_layer", json!(0), "n_layer is 0"),
            ("n_layer", json!(-1), "its n_layer is -1, which is no size"),
            ("n_embd", json!(1e300), "its n_embd is 1e+300, which is no size"),
            ("n_embd", json!(u64::MAX), "n_embd is 18446744073709551615"),
            ("n_head", json!(7), "n_embd 768 is not a multiple of n_head 7"),
            ("layer_norm_epsilon", json!("small"), "its layer_norm_epsilon is \"small\", which is no number"),
            ("layer_norm_epsilon", json!(-1), "layer_norm_epsilon is -1"),
        ] {
            let mut file = json!({"model_type": "gpt2"});
            file[name] = value;
            let error = parse(&file.to_string()).unwrap_err();
            assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        }
        assert!(parse("[]").unwrap_err().contains("it is not a JSON object"));
    }
}
