//! PyTorch's zip files, as `torch.save` writes them (PyTorch's `serialization.py`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Node, Pickle};
use super::tensor::{self, Dtype, Storages, Tensor};

/// The largest pickle that is read, in bytes: checkpoints need some kilobytes, and a tokenizer some megabytes.
pub(crate) const MAX_PICKLE: u64 = 64 << 20;
/// `torch.compile` puts this before every name.
const COMPILED: &str = "_orig_mod.";

/// Opens a file that holds a state dict and nothing else, such as Hugging Face's `pytorch_model.bin`.
pub(crate) fn open_state_dict(file: File) -> Result<(Archive, HashMap<String, Tensor>), String> {
    let mut archive = Archive::open(file)?;
    let pickle = archive.read_pickle()?;
    let entries = pickle.entries(pickle.root()).ok_or("its pickle is not a state dict")?;
    let tensors = state_dict(&pickle, entries)?;
    Ok((archive, tensors))
}

/// The tensors of a state dict by their names.
pub(crate) fn state_dict(pickle: &Pickle, entries: HashMap<&str, Id>) -> Result<HashMap<String, Tensor>, String> {
    let tensor = |(name, id): (&str, Id)| {
        let name = name.strip_prefix(COMPILED).unwrap_or(name);
        match pickle.node(id) {
            Node::Tensor(tensor) => Ok((name.to_string(), tensor.clone())),
            _ => Err(format!("its model entry {name} is not a tensor")),
        }
    };
    entries.into_iter().map(tensor).collect()
}

/// The value of a tensor of one float.
pub(crate) fn scalar(tensor: &Tensor, archive: &mut Archive) -> Result<Option<f32>, String> {
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

/// A zip file whose entries are uncompressed, lie apart, and stand in one folder.
pub(crate) struct Archive {
    zip: ZipArchive<BufReader<File>>,
    /// The folder, with its slash: torch.save names it after the file.
    root: String,
}

impl Archive {
    /// Opens a zip file that `torch.save` wrote.
    pub fn open(file: File) -> Result<Self, String> {
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

    /// Reads `data.pkl`.
    pub fn read_pickle(&mut self) -> Result<Pickle, String> {
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
