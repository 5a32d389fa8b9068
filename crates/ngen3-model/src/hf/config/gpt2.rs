//! GPT-2's entries. Missing ones default as in `GPT2Config` of `transformers`.

use serde_json::{Value, json};

use super::entries::Entries;
use crate::{Activation, Config, GPT2_VOCAB_SIZE};

/// Parses the entries that GPT-2 has.
pub(super) fn parse(file: &Entries) -> Result<Config, String> {
    file.check_architectures(&["GPT2LMHeadModel", "GPT2Model"])?;
    file.check_harmless(&[
        ("scale_attn_weights", json!(true)),
        ("scale_attn_by_inverse_layer_idx", json!(false)),
        ("add_cross_attention", json!(false)),
    ])?;
    let mut config = Config::new(
        file.size(&["n_layer", "num_hidden_layers"], 12)?,
        file.size(&["n_head", "num_attention_heads"], 12)?,
        file.size(&["n_embd", "hidden_size"], 768)?,
        file.size(&["n_positions", "max_position_embeddings", "n_ctx"], 1024)?,
        file.size(&["vocab_size"], GPT2_VOCAB_SIZE)?,
    );
    config.activation = match file.get("activation_function").map(|value| value.as_str().ok_or(value)) {
        // Two names of the same function.
        None | Some(Ok("gelu_new" | "gelu_pytorch_tanh")) => Activation::GeluNew,
        Some(Ok("gelu")) => Activation::Gelu,
        Some(Ok(name)) => return Err(format!("unsupported activation_function {name:?}: expected gelu_new or gelu")),
        Some(Err(value)) => return Err(format!("activation_function: expected a name, got {value}")),
    };
    if let Some(value) = file.get("layer_norm_epsilon") {
        let epsilon = value.as_f64().ok_or_else(|| format!("layer_norm_epsilon: expected a number, got {value}"))?;
        config.layer_norm_epsilon = epsilon as f32;
    }
    config.validate().map_err(|error| error.to_string())?;
    let inner = file.size(&["n_inner"], 4 * config.n_embd)?;
    if inner != 4 * config.n_embd {
        return Err(format!("unsupported n_inner {inner}: expected 4 · n_embd = {}", 4 * config.n_embd));
    }
    Ok(config)
}

/// Returns the entries of a model: see [`super::write`].
pub(super) fn write(config: &Config, eot: Option<u32>, dropout: f64, dtype: &str) -> Value {
    json!({
        "activation_function": match config.activation {
            Activation::GeluNew => "gelu_new",
            Activation::Gelu | Activation::Swiglu => "gelu",
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
