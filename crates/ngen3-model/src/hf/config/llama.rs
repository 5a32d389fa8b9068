//! The entries of the Llama family: `LlamaConfig` of `transformers` and those of the same form.

use serde_json::{Map, Value, json};

use super::entries::Entries;
use crate::{Config, Family, Rope, RopeScaling};

/// Parses the entries that models of the family have.
pub(super) fn parse(file: &Entries, family: Family) -> Result<Config, String> {
    let name = class(family);
    file.check_architectures(&[&format!("{name}ForCausalLM"), &format!("{name}Model")])?;
    file.check_harmless(&[("hidden_act", json!("silu")), ("partial_rotary_factor", json!(1.0))])?;
    // Biases that the family's class in `transformers` always has, or never.
    let attention_bias = match family {
        Family::Llama | Family::Qwen3 => file.flag("attention_bias", false)?,
        _ => {
            let always = family == Family::Qwen2;
            file.check_harmless(&[("attention_bias", json!(always))])?;
            always
        }
    };
    if family != Family::Llama {
        file.check_harmless(&[("mlp_bias", json!(false))])?;
    }
    let size = |name: &str| file.size_of(&[name])?.ok_or_else(|| format!("missing {name}"));
    let n_head = size("num_attention_heads")?;
    let mut config = Config {
        qkv_bias: attention_bias,
        mlp_bias: file.flag("mlp_bias", false)?,
        tied: file.flag("tie_word_embeddings", false)?,
        layer_norm_epsilon: file.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        ..Config::llama(
            size("num_hidden_layers")?,
            n_head,
            file.size(&["num_key_value_heads"], n_head)?,
            size("hidden_size")?,
            size("intermediate_size")?,
            size("max_position_embeddings")?,
            size("vocab_size")?,
        )
        .with_family(family)
    };
    // Qwen3's default does not depend on the width.
    let head_dim = file.size_of(&["head_dim"])?.or((family == Family::Qwen3).then_some(128));
    config.head_dim = head_dim.filter(|&width| config.n_embd != width.saturating_mul(n_head));
    let (theta, scaling, context) = rope(file)?;
    // Within its window, a model with sliding attention sees everything.
    let window = window(file, family)?;
    config.block_size = [context, window].into_iter().flatten().fold(config.block_size, usize::min);
    config.rope = Some(Rope { theta, context: config.block_size, scaling });
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

/// Returns the number of tokens that a layer with sliding attention sees, if there is one.
fn window(file: &Entries, family: Family) -> Result<Option<usize>, String> {
    let window = file.size_of(&["sliding_window"])?;
    let slides = match family {
        Family::Qwen2 | Family::Qwen3 => file.flag("use_sliding_window", false)?,
        _ => true,
    };
    Ok(window.filter(|_| slides))
}

/// Returns the base of the frequencies, their scaling, and the context length beyond which they would change.
fn rope(file: &Entries) -> Result<(f64, RopeScaling, Option<usize>), String> {
    // The newer entry holds what the two older ones do.
    let settings = file.get("rope_parameters").or(file.get("rope_scaling"));
    let settings = match settings {
        None => Entries(Map::new()),
        Some(Value::Object(settings)) => Entries(settings.clone()),
        Some(other) => return Err(format!("rope_scaling: expected an object, got {other}")),
    };
    settings.check_harmless(&[("partial_rotary_factor", json!(1.0))])?;
    let theta = settings.number("rope_theta")?.or(file.number("rope_theta")?).unwrap_or(10_000.0);
    let positions = file.size_of(&["max_position_embeddings"])?;
    let original = settings.size_of(&["original_max_position_embeddings"])?;
    let original = original.or(file.size_of(&["original_max_position_embeddings"])?);
    // The frequencies of "dynamic" depend on the length of the text, beyond the original context only.
    if rope_type(&settings).is_some_and(|kind| kind == "dynamic") {
        return Ok((theta, RopeScaling::Default, original.or(positions)));
    }
    let scaling = scaling(&settings, original.or(positions), positions);
    Ok((theta, scaling.map_err(|reason| format!("rope_scaling: {reason}"))?, None))
}

/// Returns the kind of a scaling, under its newer name or its older one.
fn rope_type(settings: &Entries) -> Option<&Value> {
    settings.get("rope_type").or(settings.get("type"))
}

/// Parses the entries of a scaling other than "dynamic". `original` is the default for the original context length, and
/// `positions` the scaled one, of which a factor follows.
fn scaling(settings: &Entries, original: Option<usize>, positions: Option<usize>) -> Result<RopeScaling, String> {
    let missing = |name: &str| format!("missing {name}");
    let required = |name: &str| settings.number(name)?.ok_or_else(|| missing(name));
    let original = || {
        let name = "original_max_position_embeddings";
        settings.size_of(&[name])?.or(original).ok_or_else(|| missing(name))
    };
    let kind = rope_type(settings);
    Ok(match kind.map(|kind| kind.as_str().unwrap_or_default()) {
        None | Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: required("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_position_embeddings: original()?,
        },
        Some("yarn") => {
            let original = original()?;
            let stretched = || positions.map(|positions| positions as f64 / original.max(1) as f64);
            let factor = settings.number("factor")?.or_else(stretched).ok_or_else(|| missing("factor"))?;
            let mscales =
                [settings.number("mscale")?, settings.number("mscale_all_dim")?].map(|mscale| mscale.unwrap_or(0.0));
            let own = match mscales {
                [one, all] if one != 0.0 && all != 0.0 => {
                    Rope::yarn_factor(factor, one) / Rope::yarn_factor(factor, all)
                }
                _ => Rope::yarn_factor(factor, 1.0),
            };
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast: settings.number("beta_fast")?.unwrap_or(32.0),
                beta_slow: settings.number("beta_slow")?.unwrap_or(1.0),
                truncate: settings.flag("truncate", true)?,
                attention_factor: settings.number("attention_factor")?.unwrap_or(own),
            }
        }
        Some(_) => {
            let kind = kind.unwrap_or(&Value::Null);
            return Err(format!("unsupported rope_type {kind}: expected default, linear, dynamic, llama3 or yarn"));
        }
    })
}

/// Parses a `rope_scaling` that a user gives for a new model. Its original context length has no default.
///
/// # Errors
/// The reason, which names the entry that is missing, unknown or wrong.
pub fn rope_scaling(entries: Map<String, Value>) -> Result<RopeScaling, String> {
    let settings = Entries(entries);
    let kind = settings.get("rope_type").ok_or("missing rope_type")?;
    let of_llama3 = ["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"];
    let of_yarn = ["beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"];
    let known = match kind.as_str().unwrap_or_default() {
        "default" => Vec::new(),
        "linear" => of_llama3[..1].to_vec(),
        "llama3" => of_llama3.to_vec(),
        "yarn" => [&of_llama3[..2], &of_yarn].concat(),
        _ => return Err(format!("unsupported rope_type {kind}: expected default, linear, llama3 or yarn")),
    };
    if let Some(name) = settings.0.keys().find(|name| *name != "rope_type" && !known.contains(&name.as_str())) {
        let expected = if known.is_empty() { "no others".into() } else { known.join(", ") };
        return Err(format!("unknown entry {name:?} of rope_type {kind}: expected {expected}"));
    }
    scaling(&settings, None, None)
}

/// Returns the start of the names of its classes in `transformers`.
fn class(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "GPT2",
        Family::Llama => "Llama",
        Family::Mistral => "Mistral",
        Family::Qwen2 => "Qwen2",
        Family::Qwen3 => "Qwen3",
    }
}

/// Returns the entries of a model: see [`super::write`].
pub(super) fn write(config: &Config, eot: Option<u32>, dropout: f64, dtype: &str) -> Value {
    let rope = config.rope.expect("the Llama family has rotary positions");
    let scaling = match rope.scaling {
        RopeScaling::Default => Value::Null,
        scaling => json!(scaling),
    };
    let mut entries = json!({
        "architectures": [format!("{}ForCausalLM", class(config.family))],
        "attention_bias": config.qkv_bias,
        "attention_dropout": dropout,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "head_dim": config.head_width(),
        "hidden_act": "silu",
        "hidden_size": config.n_embd,
        "initializer_range": 0.02,
        "intermediate_size": config.inner_width(),
        "max_position_embeddings": rope.context,
        "mlp_bias": config.mlp_bias,
        "model_type": config.family.model_type(),
        "num_attention_heads": config.n_head,
        "num_hidden_layers": config.n_layer,
        "num_key_value_heads": config.kv_heads(),
        "rms_norm_eps": config.written_epsilon(),
        "rope_scaling": scaling,
        "rope_theta": rope.theta,
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,
        "use_cache": true,
        "vocab_size": config.vocab_size,
    });
    // Each class has entries of its own.
    let other = match config.family {
        Family::Gpt2 | Family::Llama => None,
        Family::Mistral => Some(("sliding_window", Value::Null)),
        Family::Qwen2 | Family::Qwen3 => Some(("use_sliding_window", json!(false))),
    };
    if let Some((name, value)) = other {
        entries[name] = value;
    }
    entries
}
