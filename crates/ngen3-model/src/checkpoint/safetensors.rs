//! `.safetensors`: Hugging Face's format, with nanoGPT's names.
//!
//! The header's `__metadata__` holds what `header.rs` lists, each entry as a JSON text. The head is not stored: it is
//! `transformer.wte.weight`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use safetensors::Dtype as FileDtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

use super::state::{self, Dtype, Storages, Tensor};
use super::{Checkpoint, CheckpointMeta, header};
use crate::{Config, ParamList};

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Writes a checkpoint, straight from the flat array.
pub(super) fn write(
    file: &mut impl Write,
    config: &Config,
    list: &ParamList,
    params: &[f32],
    meta: &CheckpointMeta,
) -> io::Result<()> {
    let mut metadata = Map::from_iter([("format".to_string(), Value::from("pt"))]);
    metadata.extend(header::entries(config, meta).into_iter().map(|(name, value)| (name, value.to_string().into())));
    let mut header = Map::from_iter([("__metadata__".to_string(), Value::Object(metadata))]);
    for param in list {
        let data_offsets = (4 * param.range().start, 4 * param.range().end);
        let info = TensorInfo { dtype: FileDtype::F32, shape: param.shape.clone(), data_offsets };
        header.insert(param.name.clone(), serde_json::to_value(info)?);
    }
    let mut header = serde_json::to_vec(&header)?;
    // The data start at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    state::write_f32(file, params)
}

/// Reads a checkpoint of `len` bytes.
pub(super) fn read(mut file: File, len: u64) -> Result<Checkpoint, String> {
    let say = |error: io::Error| error.to_string();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(say)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size > len - 8 {
        return Err(format!("its header claims {size} bytes; the file has {len}"));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact(&mut bytes).map_err(say)?;
    let bad = |error: serde_json::Error| format!("its header is not that of a safetensors file: {error}");
    let file_header: Metadata = serde_json::from_slice(&bytes).map_err(bad)?;
    let data = 8 + size;
    let expected = data + file_header.data_len() as u64;
    if expected != len {
        return Err(format!("it has {len} bytes, but its header describes {expected}: it is cut short or damaged"));
    }

    let mut entries = Map::new();
    for name in header::NAMES {
        let Some(text) = file_header.metadata().as_ref().and_then(|metadata| metadata.get(name)) else { continue };
        let value = serde_json::from_str(text).map_err(|error| format!("its metadata entry {name}: {error}"))?;
        entries.insert(name.into(), value);
    }
    let header = header::parse(entries)?;
    let tensors = file_header.tensors();
    let tensors = tensors.into_iter().map(|(name, info)| {
        let dtype = match info.dtype {
            FileDtype::F32 => Dtype::F32,
            FileDtype::F16 => Dtype::F16,
            FileDtype::BF16 => Dtype::Bf16,
            _ => Dtype::Other("another type", 0),
        };
        let shape = info.shape.clone();
        // The header's own check: the shape's product does not overflow.
        let storage_len = shape.iter().product();
        let tensor = Tensor { storage: name.as_str().into(), dtype, storage_len, offset: 0, shape, contiguous: true };
        (name, tensor)
    });
    let tensors = tensors.collect();
    let mut source = Source { file: BufReader::new(file), header: &file_header, data };
    let params = state::read_params(&header.config, header.bias, tensors, &mut source, len)?;
    Ok(Checkpoint { config: header.config, params, meta: header.meta })
}

/// Each tensor is a storage of its own.
struct Source<'a> {
    file: BufReader<File>,
    header: &'a Metadata,
    /// Where the data start.
    data: u64,
}

impl Storages for Source<'_> {
    fn open(&mut self, storage: &str, bytes: u64) -> Result<Box<dyn Read + '_>, String> {
        let info = self.header.info(storage).ok_or_else(|| format!("it has no tensor {storage}"))?;
        let start = self.data + info.data_offsets.0 as u64;
        self.file.seek(SeekFrom::Start(start)).map_err(|error| error.to_string())?;
        Ok(Box::new((&mut self.file).take(bytes)))
    }
}
