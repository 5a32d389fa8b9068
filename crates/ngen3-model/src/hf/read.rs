//! Reads a Hugging Face folder as a checkpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::config::{self, Parsed};
use super::export::weights;
use super::{chat, tokenizer};
use crate::files::{read_error, read_text};
use crate::params::names::{self, LM_HEAD};
use crate::tensors::safetensors::Reader;
use crate::tensors::{Format, Storages, Tensor, open, torch};
use crate::words::count;
use crate::{Checkpoint, CheckpointMeta, Error, Family, state_dict};

/// Files that hold the weights, in the order in which `transformers` looks for them.
const WEIGHTS: [(&str, WeightsFile); 4] = [
    ("model.safetensors", WeightsFile::Tensors),
    ("model.safetensors.index.json", WeightsFile::Index),
    ("pytorch_model.bin", WeightsFile::Tensors),
    ("pytorch_model.bin.index.json", WeightsFile::Index),
];
/// Size limit of config.json, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Size limit of an index, in bytes.
const MAX_INDEX: u64 = 16 << 20;
/// Maximum number of files in an index.
const MAX_SHARDS: usize = 1 << 12;

/// Kind of a weight file.
#[derive(Clone, Copy, PartialEq)]
enum WeightsFile {
    /// Holds tensors.
    Tensors,
    /// Lists the files that hold the tensors.
    Index,
}

/// Reads the model of a folder.
///
/// # Errors
/// [`Error::Read`] naming the file and what is wrong with it.
pub(crate) fn read(folder: &Path) -> Result<Checkpoint, Error> {
    let path = folder.join("config.json");
    let Some(text) = read_text(&path, MAX_CONFIG)? else {
        return Err(read_error(folder)("not a Hugging Face model: no config.json in the folder".into()));
    };
    let Parsed { config, tied } = config::parse(&text).map_err(read_error(&path))?;
    let chat = chat::read(folder)?;
    let tokenizer = tokenizer::read(folder, config.vocab_size, chat.is_some())?;

    let Some((name, content)) = WEIGHTS.into_iter().find(|(name, _)| folder.join(name).exists()) else {
        let names = WEIGHTS.map(|(name, _)| name).join(", ");
        return Err(read_error(folder)(format!("no weights: expected one of {names}")));
    };
    let path = folder.join(name);
    let mut shards = match content {
        WeightsFile::Tensors => Shards::open(folder, BTreeSet::from([name.to_string()]))?,
        WeightsFile::Index => {
            let text = read_text(&path, MAX_INDEX)?.unwrap_or_default();
            let index = Index::parse(&text).map_err(read_error(&path))?;
            let shards = Shards::open(folder, index.weight_map.values().cloned().collect())?;
            index.check(&shards).map_err(read_error(&path))?;
            shards
        }
    };
    let meta = shards.meta.take().map_or_else(|| Ok(CheckpointMeta::default()), |text| weights::parse_meta(&text));
    let meta = CheckpointMeta { tokenizer, chat, ..meta.map_err(read_error(&path))? };
    let tensors = with_prefix(config.family, std::mem::take(&mut shards.tensors)).map_err(read_error(&path))?;
    // As in `state_dict::read_params`: the file's number of layers cannot be trusted yet.
    if config.n_layer > tensors.len() {
        let (tensors, layers) = (count(tensors.len(), "tensor"), count(config.n_layer, "layer"));
        return Err(read_error(&path)(format!("{tensors}: too few for {layers}")));
    }
    if !tied && !tensors.contains_key(LM_HEAD) {
        let reason = "missing tensor lm_head.weight: tie_word_embeddings is false in config.json";
        return Err(read_error(&path)(reason.into()));
    }
    let len = shards.len;
    let params = state_dict::read_params(&config, names::hugging_face(config.family), tensors, &mut shards, len)
        .map_err(read_error(&path))?;
    Ok(Checkpoint { config, params, meta })
}

/// `model.safetensors.index.json`: the file of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn parse(text: &str) -> Result<Self, String> {
        let index: Self = serde_json::from_str(text).map_err(|error| format!("not an index of weights: {error}"))?;
        for file in index.weight_map.values() {
            let plain = !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\', ':', '\0']);
            if !plain {
                return Err(format!("expected files of the same folder, got {file:?}"));
            }
        }
        Ok(index)
    }

    fn check(&self, shards: &Shards) -> Result<(), String> {
        let missing = self.weight_map.iter().find(|(name, file)| {
            shards
                .tensors
                .get(*name)
                .and_then(|tensor| tensor.storage.split_once('/'))
                .is_none_or(|(at, _)| at != *file)
        });
        match missing {
            Some((name, file)) => Err(format!("expected tensor {name} in {file}, which does not hold it")),
            None => Ok(()),
        }
    }
}

/// All weight files of a folder. A storage is named by its file, a slash and its name there.
struct Shards {
    files: BTreeMap<String, Box<dyn Storages>>,
    tensors: HashMap<String, Tensor>,
    /// Total size of the files, in bytes.
    len: u64,
    /// Training record, in an export of ours.
    meta: Option<String>,
}

impl Shards {
    fn open(folder: &Path, names: BTreeSet<String>) -> Result<Self, Error> {
        if names.is_empty() || names.len() > MAX_SHARDS {
            return Err(read_error(folder)(format!(
                "expected 1 to {MAX_SHARDS} files in the index of weights, got {}",
                names.len()
            )));
        }
        let mut shards = Self { files: BTreeMap::new(), tensors: HashMap::new(), len: 0, meta: None };
        for name in names {
            let path = folder.join(&name);
            shards.add(name, &path).map_err(read_error(&path))?;
        }
        Ok(shards)
    }

    fn add(&mut self, name: String, path: &Path) -> Result<(), String> {
        let (file, len, format) = open(path)?;
        let (storages, tensors): (Box<dyn Storages>, _) = match format {
            Format::Safetensors => {
                let reader = Reader::open(file, len)?;
                self.meta = self.meta.take().or_else(|| reader.metadata(weights::META).map(String::from));
                let tensors = reader.tensors();
                (Box::new(reader), tensors)
            }
            Format::Torch => {
                let (archive, tensors) = torch::open_state_dict(file)?;
                (Box::new(archive), tensors)
            }
        };
        for (tensor_name, tensor) in tensors {
            let storage = format!("{name}/{}", tensor.storage).into();
            if self.tensors.insert(tensor_name.clone(), Tensor { storage, ..tensor }).is_some() {
                return Err(format!("tensor {tensor_name} is also in another file"));
            }
        }
        self.len = self.len.saturating_add(len);
        self.files.insert(name, storages);
        Ok(())
    }
}

impl Storages for Shards {
    fn open(&mut self, storage: &str, bytes: u64) -> Result<Box<dyn Read + '_>, String> {
        let (file, storage) = storage.split_once('/').expect("Shards::add puts a slash into names");
        let file = self.files.get_mut(file).ok_or_else(|| format!("no file {file}"))?;
        file.open(storage, bytes)
    }
}

/// Adds the prefix that files of a bare model, such as `GPT2Model`, omit.
fn with_prefix(family: Family, tensors: HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>, String> {
    let (table, prefix) = (names::hugging_face(family), names::hf_prefix(family));
    let mut renamed = HashMap::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let full = if table.has_start(&name, prefix) { format!("{prefix}{name}") } else { name };
        if let Some(twice) = renamed.insert(full.clone(), tensor) {
            return Err(format!("duplicate tensor {full}, of shapes {:?} and {:?}", twice.shape, renamed[&full].shape));
        }
    }
    Ok(renamed)
}
