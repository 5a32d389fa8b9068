//! The entries of a checkpoint other than the tensors, in nanoGPT's layout.
//!
//! ```text
//! model_args     n_layer, n_head, n_embd, block_size, bias, vocab_size, dropout: the arguments of nanoGPT's GPTConfig;
//!                for the Llama family, the entries of Hugging Face's config.json
//! iter_num       number of optimizer steps
//! best_val_loss  nats per token; 1e9, nanoGPT's initial value, before the first evaluation
//! config         entries that nanoGPT lacks: activation, layer_norm_epsilon, tokenizer, training, and optionally chat
//!                and evaluations
//! ```
//!
//! A `.pt` stores them as Python values, a `.safetensors` as JSON in its metadata. This module handles both as JSON.

use serde_json::{Map, Value, json};

use crate::{Activation, CheckpointMeta, Config, Family, TokenizerRef, hf};

/// Names of the entries, in nanoGPT's order.
pub(crate) const NAMES: [&str; 4] = ["model_args", "iter_num", "best_val_loss", "config"];
/// nanoGPT's `best_val_loss` before the first evaluation.
const NO_LOSS: f64 = 1e9;

/// Returns the entries of a checkpoint.
pub(super) fn entries(config: &Config, meta: &CheckpointMeta) -> Map<String, Value> {
    let mut entries = json!({
        "model_args": model_args(config),
        "iter_num": meta.iter_num,
        "best_val_loss": meta.best_val_loss.unwrap_or(NO_LOSS),
        "config": {
            "activation": config.activation,
            "layer_norm_epsilon": config.written_epsilon(),
            "tokenizer": meta.tokenizer,
            "training": meta.training,
        },
    });
    if let Some(chat) = &meta.chat {
        entries["config"]["chat"] = json!(chat);
    }
    if !meta.evaluations.is_empty() {
        entries["config"]["evaluations"] = json!(meta.evaluations);
    }
    match entries {
        Value::Object(entries) => entries,
        other => unreachable!("an object was written, not {other}"),
    }
}

fn model_args(config: &Config) -> Value {
    if config.family != Family::Gpt2 {
        return hf::config::write(config, None, 0.0, "float32");
    }
    json!({
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "block_size": config.block_size,
        "bias": config.bias,
        "vocab_size": config.vocab_size,
        "dropout": 0.0,
    })
}

/// Parsed entries of a checkpoint.
pub(crate) struct Header {
    pub config: Config,
    pub meta: CheckpointMeta,
    /// True if NGen3 wrote the file.
    pub ours: bool,
}

/// Parses the entries of a checkpoint of NGen3 or nanoGPT. nanoGPT's `config` holds its training settings, and its activation
/// is the exact GELU.
pub(crate) fn parse(mut entries: Map<String, Value>) -> Result<Header, String> {
    let Some(Value::Object(args)) = entries.remove("model_args") else {
        return Err("missing entry model_args, which holds the model's shape".into());
    };
    let mut config = shape(args)?;
    let mut extra = match entries.remove("config") {
        Some(Value::Object(extra)) => extra,
        Some(other) => return Err(format!("config: expected a dictionary, got {other}")),
        None => Map::new(),
    };
    config.activation = match extra.remove("activation") {
        Some(value) => from_value("activation", value)?,
        None if config.family == Family::Gpt2 => Activation::Gelu,
        None => config.activation,
    };
    if let Some(value) = extra.remove("layer_norm_epsilon") {
        let epsilon =
            value.as_f64().ok_or_else(|| format!("config: expected a number for layer_norm_epsilon, got {value}"))?;
        config.layer_norm_epsilon = epsilon as f32;
    }
    config.validate().map_err(|error| error.to_string())?;

    let tokenizer = match extra.remove("tokenizer") {
        Some(value) => from_value("tokenizer", value)?,
        None => TokenizerRef::guess(config.vocab_size),
    };
    let chat = extra.remove("chat").map(|value| from_value("chat", value)).transpose()?;
    let evaluations = match extra.remove("evaluations") {
        Some(value) => from_value("evaluations", value)?,
        None => Map::new(),
    };
    let ours = extra.contains_key("training");
    let training = match extra.remove("training") {
        Some(value) => from_value("training", value)?,
        None => extra,
    };
    let iter_num = match entries.remove("iter_num") {
        Some(value) => value.as_u64().ok_or_else(|| format!("iter_num: expected a step count, got {value}"))?,
        None => 0,
    };
    let best_val_loss = match entries.remove("best_val_loss") {
        Some(value) => value.as_f64().filter(|&loss| loss < NO_LOSS),
        None => None,
    };
    let meta = CheckpointMeta { iter_num, best_val_loss, tokenizer, chat, training, evaluations, notes: Vec::new() };
    Ok(Header { config, meta, ours })
}

/// Parses `model_args`.
fn shape(args: Map<String, Value>) -> Result<Config, String> {
    if args.contains_key("model_type") {
        let parsed = hf::config::parse_entries(args).map_err(|reason| format!("model_args: {reason}"))?;
        return Ok(parsed.config);
    }
    let size = |name: &str| {
        let value = args.get(name).ok_or_else(|| format!("model_args: missing {name}"))?;
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| format!("model_args: expected a size for {name}, got {value}"))
    };
    let mut config = Config::from_sizes(size)?;
    match args.get("bias") {
        None => {}
        Some(Value::Bool(bias)) => config.bias = *bias,
        Some(other) => return Err(format!("model_args: expected true or false for bias, got {other}")),
    }

    Ok(config)
}

fn from_value<T: serde::de::DeserializeOwned>(name: &str, value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("config: invalid {name}: {error}"))
}
