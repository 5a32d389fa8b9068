//! `.safetensors`: Hugging Face's format, with the names of a `.pt`.
//!
//! The header's `__metadata__` holds the entries of `header.rs`, each as JSON text. A tied head is not stored.

use std::io::{self, Read, Seek, Write};

use safetensors::Dtype as FileDtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};

use super::header;
use crate::params::names;
use crate::tensors::safetensors::{Reader, write_header};
use crate::tensors::write_f32;
use crate::{Checkpoint, CheckpointMeta, Config, Param, ParamList, state_dict};

/// Writes a checkpoint directly from the flat array.
pub(super) fn write(
    file: &mut impl Write,
    config: &Config,
    list: &ParamList,
    params: &[f32],
    meta: &CheckpointMeta,
) -> io::Result<()> {
    let mut metadata = Map::from_iter([("format".to_string(), Value::from("pt"))]);
    metadata.extend(header::entries(config, meta).into_iter().map(|(name, value)| (name, value.to_string().into())));
    let info = |param: &Param| {
        let data_offsets = (4 * param.range().start, 4 * param.range().end);
        let info = TensorInfo { dtype: FileDtype::F32, shape: param.shape.clone(), data_offsets };
        (param.name(), info)
    };
    write_header(file, metadata, list.iter().map(info))?;
    write_f32(file, params)
}

/// Reads a checkpoint of `len` bytes.
pub(crate) fn read(file: impl Read + Seek, len: u64) -> Result<(Checkpoint, bool), String> {
    let mut reader = Reader::open(file, len)?;
    let mut entries = Map::new();
    for name in header::NAMES {
        let Some(text) = reader.metadata(name) else { continue };
        let value =
            serde_json::from_str(text).map_err(|error| format!("metadata entry {name}: invalid JSON: {error}"))?;
        entries.insert(name.into(), value);
    }
    if entries.is_empty() {
        return Err(
            "no model shape in its metadata; for a Hugging Face model, give the folder with its config.json".into()
        );
    }
    let header = header::parse(entries)?;
    let tensors = reader.tensors();
    let names = names::checkpoint(header.config.family);
    let params = state_dict::read_params(&header.config, names, tensors, &mut reader, len)?;
    Ok((Checkpoint { config: header.config, params, meta: header.meta }, header.ours))
}
