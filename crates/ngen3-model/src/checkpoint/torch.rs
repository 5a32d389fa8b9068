//! `.pt`: PyTorch's zip file in nanoGPT's layout.
//!
//! ```text
//! archive/data.pkl   the pickle of a dictionary: `model` (the state dict) and what `header.rs` lists
//! archive/byteorder  "little"
//! archive/data/N     the elements of storage N, uncompressed, aligned so that they can be mapped
//! archive/version    "3"
//! ```
//!
//! The format is that of `torch.save` (PyTorch's `serialization.py`). `lm_head.weight` and `transformer.wte.weight` are
//! two views of storage 0. nanoGPT's own files also have an `optimizer`, which is parsed past and never read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};

use serde_json::{Map, Value};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::pickle::{Id, Node, Pickle, Writer};
use super::state::{self, Dtype, Storages, Tensor};
use super::{Checkpoint, CheckpointMeta, header};
use crate::{Config, ParamList};

/// The alignment of storages in the file, which is also `torch.save`'s.
const ALIGNMENT: u16 = 64;
/// The largest pickle that is read: checkpoints need some kilobytes, and a tokenizer some megabytes.
const MAX_PICKLE: u64 = 64 << 20;
/// `torch.compile` puts this before every name.
const COMPILED: &str = "_orig_mod.";

/// Writes a checkpoint, straight from the flat array.
pub(super) fn write(
    file: &mut (impl Write + Seek),
    config: &Config,
    list: &ParamList,
    params: &[f32],
    meta: &CheckpointMeta,
) -> io::Result<()> {
    let mut zip = ZipWriter::new(file);
    if let Err(error) = write_parts(&mut zip, config, list, params, meta) {
        // Dropped, it would try to end the archive on the disk that refuses it, and complain on stderr.
        std::mem::forget(zip);
        return Err(error);
    }
    zip.finish()?;
    Ok(())
}

fn write_parts<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    config: &Config,
    list: &ParamList,
    params: &[f32],
    meta: &CheckpointMeta,
) -> io::Result<()> {
    let options = |bytes: u64| {
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        stored.with_alignment(ALIGNMENT).large_file(bytes > u32::MAX.into())
    };
    let small = |zip: &mut ZipWriter<W>, name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), options(bytes.len() as u64))?;
        zip.write_all(bytes)
    };
    let pickle = pickle(config, list, meta);
    if pickle.len() as u64 > MAX_PICKLE {
        let what = "what stands beside the weights, such as the tokenizer, is too large for a .pt";
        return Err(io::Error::other(format!("{what}: {} bytes of at most {MAX_PICKLE}", pickle.len())));
    }
    small(zip, "data.pkl", &pickle)?;
    small(zip, "byteorder", b"little")?;
    for (key, param) in list.iter().enumerate() {
        zip.start_file(format!("archive/data/{key}"), options(4 * param.len() as u64))?;
        state::write_f32(zip, &params[param.range()])?;
    }
    small(zip, "version", b"3\n")
}

fn pickle(config: &Config, list: &ParamList, meta: &CheckpointMeta) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.dict(|writer| {
        writer.string("model");
        writer.ordered_dict(|writer| {
            for (key, param) in list.iter().enumerate() {
                writer.string(&param.name);
                writer.tensor(&key.to_string(), &param.shape);
            }
            writer.string("lm_head.weight");
            writer.tensor("0", &[config.vocab_size, config.n_embd]);
        });
        for (name, value) in &header::entries(config, meta) {
            writer.string(name);
            writer.value(value);
        }
    });
    writer.finish()
}

/// Reads a checkpoint of `len` bytes.
pub(super) fn read(file: File, len: u64) -> Result<(Checkpoint, bool), String> {
    let mut archive = Archive::open(file)?;
    let pickle = archive.read_pickle()?;
    let Some(entries) = pickle.entries(pickle.root()) else {
        return Err("its pickle is not a dictionary".into());
    };
    let Some(model) = entries.get("model").and_then(|&model| pickle.entries(model)) else {
        return Err("it has no model entry: it is not a checkpoint in nanoGPT's layout".into());
    };
    let header = header::parse(plain_entries(&pickle, &entries, &mut archive)?)?;
    let tensors = state_dict(&pickle, model)?;
    let params = state::read_params(&header.config, header.bias, tensors, &mut archive, len)?;
    Ok((Checkpoint { config: header.config, params, meta: header.meta }, header.ours))
}

/// Opens a file that holds a state dict and nothing else, such as Hugging Face's `pytorch_model.bin`.
pub(crate) fn open_state_dict(file: File) -> Result<(Archive, HashMap<String, Tensor>), String> {
    let mut archive = Archive::open(file)?;
    let pickle = archive.read_pickle()?;
    let entries = pickle.entries(pickle.root()).ok_or("its pickle is not a state dict")?;
    let tensors = state_dict(&pickle, entries)?;
    Ok((archive, tensors))
}

/// The tensors of a state dict by their names.
fn state_dict(pickle: &Pickle, entries: HashMap<&str, Id>) -> Result<HashMap<String, Tensor>, String> {
    let tensor = |(name, id): (&str, Id)| {
        let name = name.strip_prefix(COMPILED).unwrap_or(name);
        match pickle.node(id) {
            Node::Tensor(tensor) => Ok((name.to_string(), tensor.clone())),
            _ => Err(format!("its model entry {name} is not a tensor")),
        }
    };
    entries.into_iter().map(tensor).collect()
}

/// The entries that `header.rs` reads, as JSON. nanoGPT's `best_val_loss` is a tensor of one element.
fn plain_entries(
    pickle: &Pickle,
    entries: &HashMap<&str, Id>,
    archive: &mut Archive,
) -> Result<Map<String, Value>, String> {
    let mut plain = Map::new();
    for name in header::NAMES {
        let Some(&id) = entries.get(name) else { continue };
        let value = match pickle.node(id) {
            Node::Tensor(tensor) => scalar(tensor, archive)?.map(Value::from),
            _ => pickle.to_json(id)?,
        };
        plain.extend(value.map(|value| (name.to_string(), value)));
    }
    Ok(plain)
}

/// The value of a tensor of one float.
fn scalar(tensor: &Tensor, archive: &mut Archive) -> Result<Option<f32>, String> {
    if matches!(tensor.dtype, Dtype::Other(..)) || tensor.shape.iter().any(|&dim| dim != 1) {
        return Ok(None);
    }
    let mut found = None;
    state::stream(archive, tensor, |at, values| {
        found = tensor.offset.checked_sub(at).and_then(|here| values.get(here).copied()).or(found);
        Ok(())
    })?;
    Ok(found)
}

/// A zip file whose entries are uncompressed, lie apart, and stand in one folder.
pub(crate) struct Archive {
    zip: ZipArchive<BufReader<File>>,
    /// The folder, with its slash: torch.save names it after the file.
    root: String,
}

impl Archive {
    fn open(file: File) -> Result<Self, String> {
        let damaged = |error| format!("it is damaged or cut short ({error})");
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
        // No two entries share bytes, so that all of them together are no larger than the file.
        zip.validate_header_consistency().map_err(damaged)?;
        let roots: Vec<String> = zip
            .file_names()
            .filter_map(Result::ok)
            .filter_map(|name| name.strip_suffix("data.pkl").map(String::from))
            .filter(|root| root.ends_with('/') && root.matches('/').count() == 1)
            .collect();
        let [root] = roots.as_slice() else {
            return Err(format!("it is a zip file, but not PyTorch's: it has {} data.pkl, not one", roots.len()));
        };
        let mut archive = Self { root: root.clone(), zip };
        archive.check_byteorder()?;
        Ok(archive)
    }

    fn check_byteorder(&mut self) -> Result<(), String> {
        let name = format!("{}byteorder", self.root);
        if self.zip.index_for_name(&name).is_none() {
            return Ok(());
        }
        let mut order = String::new();
        let (_, reader) = self.entry("byteorder")?;
        reader.take(16).read_to_string(&mut order).map_err(|error| format!("its byteorder is damaged: {error}"))?;
        if order != "little" {
            return Err(format!("its byteorder is {order:?}; only little-endian files are read"));
        }
        Ok(())
    }

    /// The size and the bytes of an entry; its checksum is compared when the end is read.
    fn entry(&mut self, name: &str) -> Result<(u64, impl Read + '_), String> {
        let entry = self.zip.by_name(&format!("{}{name}", self.root));
        let entry = entry.map_err(|error| format!("its {name} cannot be read: {error}"))?;
        if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
            return Err(format!("its {name} is compressed; torch.save writes uncompressed files"));
        }
        Ok((entry.size(), entry))
    }

    fn read_pickle(&mut self) -> Result<Pickle, String> {
        let (size, mut entry) = self.entry("data.pkl")?;
        if size > MAX_PICKLE {
            return Err(format!("its data.pkl has {size} bytes; at most {MAX_PICKLE} are read"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|error| format!("its data.pkl is damaged: {error}"))?;
        Pickle::parse(&bytes)
    }
}

impl Storages for Archive {
    fn open(&mut self, storage: &str, bytes: u64) -> Result<Box<dyn Read + '_>, String> {
        let (size, entry) = self.entry(&format!("data/{storage}"))?;
        if size != bytes {
            return Err(format!("its storage {storage} has {size} bytes, not {bytes}"));
        }
        Ok(Box::new(entry))
    }
}
