//! Model of a file: llama.cpp's architectures `gpt2`, `llama`, `qwen2` and `qwen3`.
//!
//! Names of tensors are those of `params/names.rs`, matrices have our layout, with one exception: in `llama` the rows of queries and
//! keys are in another order, since llama.cpp rotates neighbouring elements of a head there.

use std::io::Read;
use std::path::Path;

use super::file::Gguf;
use super::tokenizer::{Tokenizer, tokenizer};
use super::types::{MAGIC, TensorType};
use crate::params::names::gguf;
use crate::words::count;
use crate::{
    Checkpoint, CheckpointMeta, Config, Error, Family, Param, ParamList, Role, Rope, RopeScaling, StoredWeight,
};

/// Divisors of the frequencies, a vector beside the parameters: Llama 3.1's scaling.
pub(crate) const FREQUENCY_FACTORS: &str = "rope_freqs.weight";
/// The head in GPT-2's files, a copy of the token embedding.
const HEAD: &str = "output.weight";

/// Returns true if a file begins as a GGUF file does.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == MAGIC
}

/// Reads the model of a file, with its tokenizer, and the weights of products in the types that `keep` accepts as they are stored,
/// one entry for each parameter.
///
/// # Errors
/// [`Error::Read`] naming the file and what is wrong with it.
pub(crate) fn read(
    path: &Path,
    keep: &dyn Fn(TensorType) -> bool,
) -> Result<(Checkpoint, Vec<Option<StoredWeight>>), Error> {
    let mut file = Gguf::open(path)?;
    let config = config(&mut file)?;
    // As in `state_dict::read_params`: the file's number of layers cannot be trusted yet.
    if config.n_layer > file.tensors().len() {
        let (tensors, layers) = (count(file.tensors().len(), "tensor"), count(config.n_layer, "layer"));
        return Err(file.error(format!("{tensors}: too few for {layers}")));
    }
    let list = ParamList::new(&config);
    check_tensors(&file, &config, &list)?;
    let Tokenizer { tokenizer, chat, notes, .. } = match tokenizer(&file)? {
        Some(tokenizer) => tokenizer,
        None => return Err(file.error("no tokenizer in its metadata".into())),
    };
    let mut params = Vec::new();
    let reserved = params.try_reserve_exact(list.total());
    reserved.map_err(|_| file.error(format!("cannot allocate memory for {} parameters", list.total())))?;
    params.resize(list.total(), 0.0);
    let (names, mut stored) = (gguf(config.family), Vec::new());
    for param in &list {
        let name = names.name(param.role, param.layer);
        let (values, head) = (&mut params[param.range()], config.head_width());
        let multiplies = param.role.is_layer_weight() || param.range() == list.lm_head;
        let weight = if multiplies { stored_weight(&mut file, &name, keep)? } else { None };
        match &weight {
            Some(StoredWeight { tensor_type, bytes }) => tensor_type.decode(bytes, values),
            None => file.read_f32(&name, values)?,
        }
        stored.push(match is_interleaved(param) {
            true => {
                uninterleave(values, head, param.shape.get(1).copied().unwrap_or(1));
                weight.map(|mut weight| {
                    let row = weight.bytes.len() / param.shape[0];
                    uninterleave(&mut weight.bytes, head, row);
                    weight
                })
            }
            false => weight,
        });
    }
    if config.tied && file.tensor(HEAD).is_some() {
        check_head(&mut file, &params[list.wte.clone()])?;
    }
    let meta = CheckpointMeta { tokenizer, chat, notes, ..CheckpointMeta::default() };
    Ok((Checkpoint { config, params, meta }, stored))
}

/// Reads a tensor's blocks if it is quantized and `keep` accepts its type.
fn stored_weight(
    file: &mut Gguf,
    name: &str,
    keep: &dyn Fn(TensorType) -> bool,
) -> Result<Option<StoredWeight>, Error> {
    let Some(tensor) = file.tensor(name) else { return Err(file.error(format!("missing tensor {name}"))) };
    let (tensor_type, rows, row_bytes) = (tensor.tensor_type, tensor.rows(), tensor.row_bytes());
    let quantized = tensor_type.block().is_some_and(|(elements, _)| elements > 1);
    let Some(row_bytes) = row_bytes.filter(|_| quantized && keep(tensor_type)) else { return Ok(None) };
    let mut bytes = Vec::new();
    let reserved = bytes.try_reserve_exact(rows * row_bytes);
    reserved.map_err(|_| file.error(format!("tensor {name}: cannot allocate memory for {rows} rows")))?;
    bytes.resize(rows * row_bytes, 0);
    file.read_rows(name, 0..rows, &mut bytes)?;
    Ok(Some(StoredWeight { tensor_type, bytes }))
}

/// Returns the shape that the metadata and the embedding's rows give.
fn config(file: &mut Gguf) -> Result<Config, Error> {
    let architecture = file.text("general.architecture")?.unwrap_or_default().to_owned();
    let family = match architecture.as_str() {
        "gpt2" => Family::Gpt2,
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => {
            return Err(file
                .error(format!("general.architecture: unsupported {other:?}: expected gpt2, llama, qwen2 or qwen3")));
        }
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let size_of = |name: &str| match file.integer(&key(name))? {
        None => Ok(None),
        Some(size) => {
            usize::try_from(size).map(Some).map_err(|_| file.error(format!("{}: too large: {size}", key(name))))
        }
    };
    let size = |name: &str| size_of(name)?.ok_or_else(|| file.error(format!("missing {}", key(name))));
    for name in ["expert_count", "attention.sliding_window"] {
        if let Some(value) = size_of(name)?.filter(|&value| value > 0) {
            return Err(file.error(format!("unsupported {}: {value}", key(name))));
        }
    }
    let embedding = gguf(family).name(Role::Wte, None);
    let vocab_size = file.tensor(&embedding).map(super::Tensor::rows);
    let vocab_size = vocab_size.ok_or_else(|| file.error(format!("missing tensor {embedding}")))?;
    let (n_layer, n_head, n_embd) = (size("block_count")?, size("attention.head_count")?, size("embedding_length")?);
    let (context, inner) = (size("context_length")?, size("feed_forward_length")?);
    let mut config = if family == Family::Gpt2 {
        let config = Config::new(n_layer, n_head, n_embd, context, vocab_size);
        if inner != config.inner_width() {
            return Err(file.error(format!("{}: expected 4 · {n_embd}, got {inner}", key("feed_forward_length"))));
        }
        config
    } else {
        let head = size_of("attention.key_length")?;
        if head != size_of("attention.value_length")? {
            return Err(file.error(format!("{}: expected the width of the keys", key("attention.value_length"))));
        }
        let has = |role| file.tensor(&gguf(family).name(role, Some(0))).is_some();
        Config {
            tied: file.tensor(&gguf(family).name(Role::LmHeadWeight, None)).is_none(),
            qkv_bias: family == Family::Qwen2 || has(Role::QProjBias),
            mlp_bias: has(Role::GateProjBias),
            head_dim: head.filter(|&head| n_embd != head.saturating_mul(n_head)),
            ..Config::llama(
                n_layer,
                n_head,
                size_of("attention.head_count_kv")?.unwrap_or(n_head),
                n_embd,
                inner,
                context,
                vocab_size,
            )
            .with_family(family)
        }
    };
    let (epsilon, default) = match family {
        Family::Gpt2 => ("attention.layer_norm_epsilon", 1e-5),
        _ => ("attention.layer_norm_rms_epsilon", 1e-6),
    };
    config.layer_norm_epsilon = file.number(&key(epsilon))?.unwrap_or(default) as f32;
    config.validate().map_err(|error| file.error(error.to_string()))?;
    if config.rope.is_some() {
        if let Some(turned) = size_of("rope.dimension_count")?.filter(|&turned| turned != config.head_width()) {
            let head = config.head_width();
            return Err(
                file.error(format!("{}: expected {head}, a whole head, got {turned}", key("rope.dimension_count")))
            );
        }
        let theta = file.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        let scaling = scaling(file, &key, theta, &config)?;
        config.rope = Some(Rope { theta, context, scaling });
        config.validate().map_err(|error| file.error(error.to_string()))?;
    }
    Ok(config)
}

fn scaling(file: &mut Gguf, key: &dyn Fn(&str) -> String, theta: f64, config: &Config) -> Result<RopeScaling, Error> {
    let kind = file.text(&key("rope.scaling.type"))?.unwrap_or("none").to_owned();
    let factor = file.number(&key("rope.scaling.factor"))?;
    let original = file.integer(&key("rope.scaling.original_context_length"))?;
    if let Some(value) = file.number(&key("rope.scaling.attn_factor"))?.filter(|&value| value != 1.0) {
        return Err(file.error(format!("unsupported {}: expected 1, got {value}", key("rope.scaling.attn_factor"))));
    }
    let factor = || factor.ok_or_else(|| file.error(format!("missing {}", key("rope.scaling.factor"))));
    match kind.as_str() {
        "none" => frequency_factors(file, theta, config),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "yarn" => {
            let original = original.map_or(config.block_size, |tokens| tokens as usize);
            Ok(RopeScaling::yarn(factor()?, original))
        }
        other => {
            Err(file
                .error(format!("{}: unsupported {other:?}: expected none, linear or yarn", key("rope.scaling.type"))))
        }
    }
}

/// Recognises Llama 3.1's scaling by the divisors that it gives, which are all that the file holds.
fn frequency_factors(file: &mut Gguf, theta: f64, config: &Config) -> Result<RopeScaling, Error> {
    let Some(tensor) = file.tensor(FREQUENCY_FACTORS) else { return Ok(RopeScaling::Default) };
    let (pairs, found) = (config.head_width() / 2, tensor.elements());
    if found != pairs {
        return Err(file.error(format!("tensor {FREQUENCY_FACTORS}: expected {pairs} elements, got {found}")));
    }
    let mut divisors = vec![0.0; pairs];
    file.read_f32(FREQUENCY_FACTORS, &mut divisors)?;
    let factor = divisors.iter().fold(1.0f32, |most, &divisor| most.max(divisor));
    let scaling = RopeScaling::Llama3 {
        factor: factor.into(),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let of = |scaling| Rope { theta, context: config.block_size, scaling }.frequencies(config.head_width()).0;
    let (plain, scaled) = (of(RopeScaling::Default), of(scaling));
    let expected = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
    match divisors.iter().zip(expected).all(|(found, expected)| (found / expected - 1.0).abs() < 1e-3) {
        true => Ok(scaling),
        false => {
            Err(file.error(format!("tensor {FREQUENCY_FACTORS}: unsupported divisors: expected those of Llama 3.1")))
        }
    }
}

/// Checks that the file has the tensors of the model and no others.
fn check_tensors(file: &Gguf, config: &Config, list: &ParamList) -> Result<(), Error> {
    let names = gguf(config.family);
    let mut known: Vec<String> = Vec::new();
    for param in list {
        let name = names.name(param.role, param.layer);
        let Some(tensor) = file.tensor(&name) else {
            return Err(file.error(format!("missing tensor {name}")));
        };
        if tensor.shape() != param.shape {
            let (expected, found) = (&param.shape, tensor.shape());
            return Err(file.error(format!("tensor {name}: expected shape {expected:?}, got {found:?}")));
        }
        known.push(name);
    }
    known.push(FREQUENCY_FACTORS.into());
    if config.family == Family::Gpt2 {
        known.push(HEAD.into());
    }
    known.sort_unstable();
    match file.tensors().iter().find(|tensor| known.binary_search(&tensor.name).is_err()) {
        Some(tensor) => {
            let family = config.family.model_type();
            let name = &tensor.name;
            Err(file.error(format!("unexpected tensor {name}: not part of a {family} model of this shape")))
        }
        None => Ok(()),
    }
}

/// Checks that the head of GPT-2 is the token embedding.
fn check_head(file: &mut Gguf, wte: &[f32]) -> Result<(), Error> {
    let mut head = vec![0.0; wte.len()];
    file.read_f32(HEAD, &mut head)?;
    if head == wte {
        return Ok(());
    }
    Err(file.error(format!("tensor {HEAD} differs from the token embedding: expected a tied head")))
}

/// Reorders the rows of each head of `weight`, `[heads · head_width, row]`, from pairs of neighbours, (0, 1), (2, 3), …, to pairs
/// that are half a head apart.
pub(crate) fn uninterleave<T: Copy>(weight: &mut [T], head_width: usize, row: usize) {
    reorder(weight, head_width, row, |row| (row % (head_width / 2)) * 2 + row / (head_width / 2));
}

/// Reverses [`uninterleave`].
pub(crate) fn interleave(weight: &mut [f32], head_width: usize, inputs: usize) {
    reorder(weight, head_width, inputs, |row| row / 2 + (row % 2) * (head_width / 2));
}

/// Moves row `from(row)` of each head to `row`.
fn reorder<T: Copy>(weight: &mut [T], head_width: usize, inputs: usize, from: impl Fn(usize) -> usize) {
    for weight in weight.chunks_exact_mut(head_width * inputs) {
        let old = weight.to_vec();
        for (row, to) in weight.chunks_exact_mut(inputs).enumerate() {
            to.copy_from_slice(&old[from(row) * inputs..][..inputs]);
        }
    }
}

/// Returns true if llama.cpp has the parameter's rows as pairs of neighbours.
pub(crate) fn is_interleaved(param: &Param) -> bool {
    let llama = matches!(param.family, Family::Llama | Family::Mistral);
    llama && matches!(param.role, Role::QProjWeight | Role::KProjWeight | Role::QProjBias | Role::KProjBias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_reordered_and_back() {
        // Two heads of four rows of one input.
        let mut weight = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        let file = weight;
        uninterleave(&mut weight, 4, 1);
        assert_eq!(weight, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        interleave(&mut weight, 4, 1);
        assert_eq!(weight, file);
        let mut wide = [0.0, 0.5, 1.0, 1.5];
        uninterleave(&mut wide, 2, 2);
        assert_eq!(wide, [0.0, 0.5, 1.0, 1.5]);
    }
}
