//! Exports a checkpoint as a folder: the weights (`weights.rs` or `gguf.rs`), config and tokenizer files, and a model card
//! (`card.rs`).

mod card;
mod encode;
mod evaluations;
mod gguf;
mod spec;
pub(super) mod weights;

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::config;
use super::lookup::id_of;
use super::roles::Roles;
use super::tokenizer::{self, ByteLevel};
use crate::files::{NewFolder, parse_json, pretty_json, write_atomic};
use crate::params::WithBiases;
use crate::{Activation, Checkpoint, Error, Family, ParamList, Rope, RopeScaling};
pub use encode::ExportDtype;
pub use spec::{CurvePoint, Export, ExportFormat, Exported};

/// Writes a model into the folder `path`, atomically. An earlier export there is replaced if `overwrite`. Both formats require
/// biases; those of a model without are written as zeros.
///
/// # Errors
/// [`Error::Config`] for a model or dtype that the format does not support; [`Error::Write`] naming the file or folder.
pub fn export(export: &Export, path: &Path, overwrite: bool) -> Result<Exported, Error> {
    check_dtype(export.format, export.dtype)?;
    let json: Option<Value> = export
        .tokenizer
        .map(parse_json)
        .transpose()
        .map_err(|reason| Error::Config(format!("cannot export the tokenizer: {reason}")))?;
    let byte_level = match export.format {
        ExportFormat::Hf => None,
        ExportFormat::Gguf => Some(gguf_tokenizer(export, json.as_ref())?),
    };

    let folder = NewFolder::create(path, overwrite, is_ours)?;
    write(export, json.as_ref(), byte_level.as_ref(), folder.files()).map_err(|error| folder.explain(error))?;
    let files = list(folder.files()).map_err(|source| Error::Write { path: path.into(), source })?;
    folder.commit()?;
    Ok(Exported { files })
}

/// Checks an export before its model is read: that the format supports the dtype, and that the folder `path` can be created or,
/// if `overwrite`, replaced.
///
/// # Errors
/// As [`export`].
pub fn check_export(path: &Path, format: ExportFormat, dtype: ExportDtype, overwrite: bool) -> Result<(), Error> {
    check_dtype(format, dtype)?;
    NewFolder::create(path, overwrite, is_ours).map(drop)
}

fn check_dtype(format: ExportFormat, dtype: ExportDtype) -> Result<(), Error> {
    if format == ExportFormat::Hf && dtype.is_quantized() {
        let name = dtype.name();
        return Err(Error::Config(format!("the hf format does not support {name}: expected f32, bf16 or f16")));
    }
    Ok(())
}

/// Writes all files into `folder`. `json` is the parsed tokenizer.json, `gguf` the tokenizer for GGUF.
fn write(export: &Export, json: Option<&Value>, gguf: Option<&ByteLevel>, folder: &Path) -> Result<(), Error> {
    let list = ParamList::new(&export.checkpoint.config);
    match gguf {
        None => write_hf(export, json, folder)?,
        Some(tokenizer) => {
            let Checkpoint { config, params, meta } = export.checkpoint;
            let model = gguf::Model {
                name: export.name,
                config,
                weights: &WithBiases::new(config, params),
                tokenizer,
                eot: export.eot.map(|(_, id)| id),
                chat_template: meta.chat.as_ref().map(|chat| chat.template.as_str()),
                chat_end: chat_end(export, json),
                bos: bos(export, json),
                add_bos: json.is_some_and(|json| Roles::of(json).add_bos),
            };
            write_atomic(&folder.join(export.gguf_name()), |file| gguf::write(file, &model, export.dtype))?;
        }
    }
    put(folder, "README.md", &card::write(export, &list))?;
    export.loss_svg.map_or(Ok(()), |svg| put(folder, "loss.svg", svg))
}

/// Checks that llama.cpp supports the model's activation and tokenizer. Returns the tokenizer.
fn gguf_tokenizer<'a>(export: &Export, json: Option<&'a Value>) -> Result<ByteLevel<'a>, Error> {
    if export.checkpoint.config.activation == Activation::Gelu {
        return Err(Error::Config("llama.cpp's gpt2 does not support the activation gelu: expected gelu_new".into()));
    }
    if export.checkpoint.config.family == Family::Qwen3 && export.checkpoint.config.qkv_bias {
        return Err(Error::Config("llama.cpp's qwen3 does not support biases of attention".into()));
    }
    if let Some(Rope { scaling: scaling @ RopeScaling::Yarn { factor, original_max_position_embeddings, .. }, .. }) =
        export.checkpoint.config.rope
        && scaling != RopeScaling::yarn(factor, original_max_position_embeddings)
    {
        let what = "GGUF export does not support these settings of yarn: expected the defaults of beta_fast, beta_slow, truncate";
        return Err(Error::Config(format!("{what} and attention_factor")));
    }
    let Some(json) = json else {
        return Err(Error::Config("a GGUF file needs the tokenizer, but the model does not name one".into()));
    };
    ByteLevel::of(json).ok_or_else(|| {
        Error::Config("GGUF export does not support the model's tokenizer: expected byte-level BPE as of GPT-2, SmolLM2, Llama 3 or Qwen".into())
    })
}

/// Returns the id of the token that begins a text: the tokenizer's, or else the chat format's.
fn bos(export: &Export, json: Option<&Value>) -> Option<u32> {
    let of_chat = || export.checkpoint.meta.chat.as_ref()?.bos_token.clone();
    let json = json?;
    id_of(json, &Roles::of(json).bos.or_else(of_chat)?)
}

/// Returns the id of the token that ends the assistant's turn, if it is not the end-of-document token.
fn chat_end(export: &Export, json: Option<&Value>) -> Option<u32> {
    let token = export.checkpoint.meta.chat.as_ref()?.eos_token.as_ref()?;
    id_of(json?, token).filter(|&end| export.eot.is_none_or(|(_, eot)| eot != end))
}

fn write_hf(export: &Export, json: Option<&Value>, folder: &Path) -> Result<(), Error> {
    let Checkpoint { config, params, meta } = export.checkpoint;
    let dtype = match export.dtype {
        ExportDtype::Bf16 => "bfloat16",
        ExportDtype::F16 => "float16",
        _ => "float32",
    };
    let dropout = meta.training.get("dropout").and_then(Value::as_f64).unwrap_or(0.0);
    let eot = export.eot.map(|(_, id)| id);
    let bos = bos(export, json).or(eot);
    let mut written = config::write(config, eot, dropout, dtype);
    written["bos_token_id"] = bos.into();
    put(folder, "config.json", &pretty_json(&written))?;
    // Generation stops at either: one ends an answer, the other a document.
    let ends = match (chat_end(export, json), eot) {
        (Some(end), Some(eot)) => json!([end, eot]),
        (end, eot) => json!(end.or(eot)),
    };
    let generation = json!({ "bos_token_id": bos, "eos_token_id": ends, "pad_token_id": eot });
    put(folder, "generation_config.json", &pretty_json(&generation))?;
    if let (Some(text), Some(json)) = (export.tokenizer, json) {
        let eot = export.eot.map(|(text, _)| text);
        let files = tokenizer::files(text, json, eot, meta.chat.as_ref(), config.block_size);
        files.iter().try_for_each(|(name, content)| put(folder, name, content))?;
    }
    weights::write(folder, &WithBiases::new(config, params), export.dtype, weights::MAX_SHARD, meta)
}

fn put(folder: &Path, name: &str, content: &str) -> Result<(), Error> {
    write_atomic(&folder.join(name), |file| file.write_all(content.as_bytes()))
}

/// Returns true if a file of this name is part of an export, so that `--overwrite` may replace it.
fn is_ours(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "README.md",
        "config.json",
        "generation_config.json",
        "loss.svg",
        "merges.txt",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ];
    let weights = name.starts_with("model") && name.ends_with(".safetensors");
    weights || name.ends_with(".gguf") || NAMES.contains(&name)
}

fn list(folder: &Path) -> std::io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
    }
    files.sort();
    Ok(files)
}
