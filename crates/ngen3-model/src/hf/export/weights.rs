//! `model.safetensors`: the weights in the layout of `transformers`, in one file or in shards with an index.

use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype as FileDtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value, json};

use super::encode::{Encoder, ExportDtype};
use crate::files::{pretty_json, write_atomic};
use crate::params::WithBiases;
use crate::params::names::hugging_face;
use crate::tensors::safetensors::write_header;
use crate::{CheckpointMeta, Error, Param, ParamList};

/// Metadata entry with the training record of the checkpoint.
pub(crate) const META: &str = "ngen3";
/// Maximum size of a shard, in bytes.
pub(super) const MAX_SHARD: usize = 5_000_000_000;

fn meta_text(meta: &CheckpointMeta) -> String {
    let CheckpointMeta { iter_num, best_val_loss, training, evaluations, .. } = meta;
    let mut entry = json!({ "iter_num": iter_num, "best_val_loss": best_val_loss, "training": training });
    if !evaluations.is_empty() {
        entry["evaluations"] = json!(evaluations);
    }
    entry.to_string()
}

/// Parses the training record that [`write()`] stores; the tokenizer and its chat template are not part of it.
pub(crate) fn parse_meta(text: &str) -> Result<CheckpointMeta, String> {
    let wrong = |what| format!("metadata entry {META}: invalid {what}");
    let mut file: Map<String, Value> = serde_json::from_str(text).map_err(|_| wrong("JSON"))?;
    Ok(CheckpointMeta {
        iter_num: file.get("iter_num").and_then(Value::as_u64).ok_or_else(|| wrong("iter_num"))?,
        best_val_loss: file.get("best_val_loss").and_then(Value::as_f64),
        training: match file.remove("training") {
            Some(Value::Object(training)) => training,
            _ => return Err(wrong("training")),
        },
        evaluations: match file.remove("evaluations") {
            None => Map::new(),
            Some(Value::Object(evaluations)) => evaluations,
            Some(_) => return Err(wrong("evaluations")),
        },
        ..CheckpointMeta::default()
    })
}

/// Writes the weights into `folder`, in files of at most `max_bytes` or a single tensor.
///
/// # Errors
/// [`Error::Write`] naming the file.
pub(super) fn write(
    folder: &Path,
    weights: &WithBiases,
    dtype: ExportDtype,
    max_bytes: usize,
    meta: &CheckpointMeta,
) -> Result<(), Error> {
    let list = weights.list();
    let shards = split(list, dtype, max_bytes);
    let name = |index: usize| match shards.len() {
        1 => "model.safetensors".to_string(),
        count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    let meta = meta_text(meta);
    for (index, shard) in shards.iter().enumerate() {
        write_atomic(&folder.join(name(index)), |file| write_shard(file, shard, weights, dtype, &meta))?;
    }
    if shards.len() == 1 {
        return Ok(());
    }
    let files = shards.iter().enumerate().flat_map(|(index, shard)| shard.iter().map(move |param| (param, index)));
    let weight_map: Map<_, _> = files
        .map(|(param, index)| (hugging_face(param.family).name(param.role, param.layer), name(index).into()))
        .collect();
    let metadata = json!({ "total_parameters": list.total(), "total_size": dtype.bytes(list.total()) });
    let index = pretty_json(&json!({ "metadata": metadata, "weight_map": weight_map }));
    write_atomic(&folder.join("model.safetensors.index.json"), |file| file.write_all(index.as_bytes()))
}

/// Returns the parameters of each shard.
fn split(list: &ParamList, dtype: ExportDtype, max_bytes: usize) -> Vec<Vec<&Param>> {
    let mut shards = vec![Vec::new()];
    let mut bytes = 0;
    for param in list {
        let here = dtype.bytes(param.len());
        if bytes > 0 && bytes + here > max_bytes {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += here;
        shards.last_mut().expect("there is at least one shard").push(param);
    }
    shards
}

fn write_shard(
    file: &mut impl Write,
    shard: &[&Param],
    weights: &WithBiases,
    dtype: ExportDtype,
    meta: &str,
) -> io::Result<()> {
    let file_dtype = match dtype {
        ExportDtype::F32 => FileDtype::F32,
        ExportDtype::Bf16 => FileDtype::BF16,
        ExportDtype::F16 => FileDtype::F16,
        ExportDtype::Q8_0 | ExportDtype::Q4_0 => unreachable!("rejected by check_dtype"),
    };
    let metadata = [("format", "pt"), (META, meta)].map(|(name, text)| (name.to_string(), Value::from(text)));
    let mut start = 0;
    let info = |param: &&Param| {
        let mut shape = param.shape.clone();
        if hugging_face(param.family).is_transposed(param.role) {
            shape.reverse();
        }
        let data_offsets = (start, start + dtype.bytes(param.len()));
        start = data_offsets.1;
        (
            hugging_face(param.family).name(param.role, param.layer),
            TensorInfo { dtype: file_dtype, shape, data_offsets },
        )
    };
    write_header(file, Map::from_iter(metadata), shard.iter().map(info))?;
    let mut encoder = Encoder::new(file, dtype);
    for param in shard {
        let values = weights.values(param);
        if hugging_face(param.family).is_transposed(param.role) {
            encoder.write_transposed(param, &values, param.shape[0])?;
        } else {
            values.chunks(1 << 16).try_for_each(|values| encoder.write(param, values))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Checkpoint, Config, TokenizerRef, hf};

    #[test]
    fn weights_in_many_files_come_back_bit_for_bit() {
        let config = Config::new(2, 3, 12, 16, 97);
        let list = ParamList::new(&config);
        let meta = CheckpointMeta { iter_num: 7, tokenizer: TokenizerRef::Unknown, ..CheckpointMeta::default() };
        let expected = Checkpoint { params: list.init(7), config, meta };
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("config.json"), hf::config::write(&expected.config, None, 0.0, "float32").to_string())
            .unwrap();
        let weights = WithBiases::new(&expected.config, &expected.params);
        write(folder, &weights, ExportDtype::F32, 8_000, &expected.meta).unwrap();
        // No tensor is split across files.
        for shard in 1..=3 {
            let file = folder.join(format!("model-{shard:05}-of-00003.safetensors"));
            assert!(fs::metadata(&file).unwrap().len() < 10_000, "{}", file.display());
        }
        let index = fs::read(folder.join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["metadata"]["total_size"], 4 * list.total());
        assert_eq!(fs::read_dir(folder).unwrap().count(), 5);
        assert_eq!(Checkpoint::load(folder).unwrap(), expected);
    }
}
