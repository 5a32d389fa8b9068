//! PyTorch's zip files, as `torch.save` writes them (PyTorch's `serialization.py`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Node, Pickle};
use super::tensor::{self, Dtype, Storages, Tensor};

/// Size limit of a pickle, in bytes: checkpoints need kilobytes, a tokenizer megabytes.
pub(crate) const MAX_PICKLE: u64 = 64 << 20;
/// Prefix that `torch.compile` adds to every name.
const COMPILED: &str = "_orig_mod.";

/// Opens a file that holds only a state dict, such as Hugging Face's `pytorch_model.bin`.
pub(crate) fn open_state_dict(file: File) -> Result<(Archive<File>, HashMap<String, Tensor>), String> {
    let mut archive = Archive::open(file)?;
    let pickle = archive.read_pickle()?;
    let entries = pickle.entries(pickle.root()).ok_or("not a state dict: its pickle is not a dictionary")?;
    let tensors = state_dict(&pickle, entries)?;
    Ok((archive, tensors))
}

/// Returns the tensors of a state dict by name.
pub(crate) fn state_dict(pickle: &Pickle, entries: HashMap<&str, Id>) -> Result<HashMap<String, Tensor>, String> {
    let tensor = |(name, id): (&str, Id)| {
        let name = name.strip_prefix(COMPILED).unwrap_or(name);
        match pickle.node(id) {
            Node::Tensor(tensor) => Ok((name.to_string(), tensor.clone())),
            _ => Err(format!("model entry {name} is not a tensor")),
        }
    };
    entries.into_iter().map(tensor).collect()
}

/// Returns the value of a tensor of one float; `None` for any other.
pub(crate) fn scalar(tensor: &Tensor, archive: &mut dyn Storages) -> Result<Option<f32>, String> {
    if matches!(tensor.dtype, Dtype::Other(..)) || tensor.shape.iter().any(|&dim| dim != 1) {
        return Ok(None);
    }
    let mut found = None;
    tensor::stream(archive, tensor, |at, values| {
        found = tensor.offset.checked_sub(at).and_then(|here| values.get(here).copied()).or(found);
        Ok(())
    })?;
    Ok(found)
}

/// Zip file whose entries are uncompressed, do not overlap, and are in one folder.
pub(crate) struct Archive<F> {
    zip: ZipArchive<BufReader<F>>,
    /// The folder, with a trailing slash: torch.save names it after the file.
    root: String,
}

impl<F: Read + Seek> Archive<F> {
    /// Opens a zip file that `torch.save` wrote.
    pub fn open(file: F) -> Result<Self, String> {
        let damaged = |error| format!("damaged or truncated zip file ({error})");
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
        // Entries do not overlap, so that together they are no larger than the file.
        zip.validate_header_consistency().map_err(damaged)?;
        let roots: Vec<String> = zip
            .file_names()
            .filter_map(Result::ok)
            .filter_map(|name| name.strip_suffix("data.pkl").map(String::from))
            .filter(|root| root.ends_with('/') && root.matches('/').count() == 1)
            .collect();
        let [root] = roots.as_slice() else {
            return Err(format!("not a PyTorch file: expected one data.pkl in the zip file, got {}", roots.len()));
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
        reader.take(16).read_to_string(&mut order).map_err(|error| format!("byteorder is damaged: {error}"))?;
        if order != "little" {
            return Err(format!("unsupported byteorder {order:?}: expected \"little\""));
        }
        Ok(())
    }

    /// Opens an entry. Returns its size in bytes and its content; reading the end compares the checksum.
    fn entry(&mut self, name: &str) -> Result<(u64, impl Read + '_), String> {
        let entry = self.zip.by_name(&format!("{}{name}", self.root));
        let entry = entry.map_err(|error| format!("cannot read {name}: {error}"))?;
        if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
            return Err(format!("{name} is compressed: expected an uncompressed file, as from torch.save"));
        }
        Ok((entry.size(), entry))
    }

    /// Reads `data.pkl`.
    pub fn read_pickle(&mut self) -> Result<Pickle, String> {
        let (size, mut entry) = self.entry("data.pkl")?;
        if size > MAX_PICKLE {
            return Err(format!("data.pkl: expected at most {MAX_PICKLE} bytes, got {size}"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|error| format!("data.pkl is damaged: {error}"))?;
        Pickle::parse(&bytes)
    }
}

impl<F: Read + Seek> Storages for Archive<F> {
    fn open(&mut self, storage: &str, bytes: u64) -> Result<Box<dyn Read + '_>, String> {
        let (size, entry) = self.entry(&format!("data/{storage}"))?;
        if size != bytes {
            return Err(format!("storage {storage}: expected {bytes} bytes, got {size}"));
        }
        Ok(Box::new(entry))
    }
}
