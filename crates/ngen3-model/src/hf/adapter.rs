//! Folders of low-rank adapters in the format of Hugging Face's `peft`: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! `peft` stores A as `[rank, inputs]` and B as `[outputs, rank]`, as we do; `fan_in_fan_out` tells it that GPT-2's own weights
//! are transposed.

use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value, json};

use crate::files::{create_folders, pretty_json, write_atomic};
use crate::tensors::safetensors::write_header;
use crate::tensors::write_f32;
use crate::{Config, Error, Family, Lora, LoraList, Target};

/// Names of the files in the folder.
pub const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Prefix that `peft` adds to the names of a model's parameters.
const PREFIX: &str = "base_model.model.";

/// Writes adapters, `[total]` in the order of [`LoraList`], into a folder, creating it if necessary. `base` is the name of the
/// base model. Each file is written atomically.
///
/// # Errors
/// [`Error::Config`] when the adapters do not fit the model; [`Error::Write`] naming the file or folder.
///
/// # Panics
/// If `values` does not have the length of the list.
pub fn write_adapter(folder: &Path, config: &Config, lora: &Lora, values: &[f32], base: &str) -> Result<(), Error> {
    let list = LoraList::new(config, lora)?;
    assert_eq!(values.len(), list.total(), "values do not match the adapters");
    create_folders(folder).map_err(|source| Error::Write { path: folder.into(), source })?;
    let settings = pretty_json(&settings(config, lora, base));
    write_atomic(&folder.join(ADAPTER_FILES[0]), |file| file.write_all(settings.as_bytes()))?;
    write_atomic(&folder.join(ADAPTER_FILES[1]), |file| write_tensors(file, &list, values))
}

fn write_tensors(file: &mut impl Write, list: &LoraList, values: &[f32]) -> io::Result<()> {
    let metadata = Map::from_iter([("format".to_string(), Value::from("pt"))]);
    let tensors = list.iter().map(|param| {
        let data_offsets = (4 * param.range().start, 4 * param.range().end);
        let info = TensorInfo { dtype: Dtype::F32, shape: param.shape.clone(), data_offsets };
        (format!("{PREFIX}{}", param.name()), info)
    });
    write_header(file, metadata, tensors)?;
    write_f32(file, values)
}

fn settings(config: &Config, lora: &Lora, base: &str) -> Value {
    let Lora { rank, alpha, targets } = lora;
    let targets: Vec<&str> = targets.of(config.family).map(Target::name).collect();
    // peft writes a whole number.
    let alpha = if alpha.fract() == 0.0 { json!(*alpha as i64) } else { json!(alpha) };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "fan_in_fan_out": config.family == Family::Gpt2,
        "bias": "none",
        "modules_to_save": null,
        "init_lora_weights": true,
        "inference_mode": true
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Projection;

    #[test]
    fn the_folder_has_what_peft_looks_for() {
        let config = Config::new(2, 3, 12, 16, 97);
        let lora = Lora { rank: 4, alpha: 8.0, targets: "c_attn,mlp.c_proj".parse().unwrap() };
        let list = LoraList::new(&config, &lora).unwrap();
        let values: Vec<f32> = (0..list.total()).map(|i| i as f32 * 0.5).collect();
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("x.adapter");
        write_adapter(&folder, &config, &lora, &values, "gpt2").unwrap();
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        let settings: Value = serde_json::from_slice(&read("adapter_config.json")).unwrap();
        assert_eq!((&settings["r"], &settings["lora_alpha"]), (&json!(4), &json!(8)));
        assert_eq!(settings["target_modules"], json!(["attn.c_attn", "mlp.c_proj"]));
        assert_eq!(settings["fan_in_fan_out"], true);
        let bytes = read("adapter_model.safetensors");
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 8);
        let tensor = file.tensor("base_model.model.transformer.h.1.mlp.c_proj.lora_A.weight").unwrap();
        assert_eq!(tensor.shape(), [4, 48]);
        let range = &list.adapter(1, Projection::MlpCProj).unwrap().a;
        let first = f32::from_le_bytes(tensor.data()[..4].try_into().unwrap());
        assert_eq!(first, values[range.start]);
        let tensor = file.tensor("base_model.model.transformer.h.0.attn.c_attn.lora_B.weight").unwrap();
        assert_eq!(tensor.shape(), [36, 4]);
        let other = Lora { rank: 13, ..lora };
        assert!(write_adapter(&folder, &config, &other, &values, "gpt2").unwrap_err().to_string().contains("rank"));
    }
}
