//! Opens models for generation, by default with a file's own quantized weights.

use std::path::Path;
use std::str::FromStr;

use ngen3_engine::{Device, Dtype, Model, Options, Quant};
use ngen3_model::{Checkpoint, StoredWeight, Variant};

use crate::device::DecodeDeviceFlag;
use crate::model::{self, Found};
use crate::progress::write_line;
use crate::threads::Threads;

/// Weights to decode with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeQuant {
    /// A GGUF file's quantized weights as they are, those of other models unquantized.
    Auto,
    /// The parameters, quantized so.
    As(Quant),
}

impl DecodeQuant {
    /// All names.
    pub const NAMES: [&str; 4] = ["auto", "none", "int8", "int4"];
}

impl FromStr for DecodeQuant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            name => name.parse().map(Self::As).map_err(|_| "expected auto, none, int8 or int4".into()),
        }
    }
}

/// Flags that control how a model decodes.
#[derive(clap::Args, Clone, Copy)]
#[command(rename_all = "snake_case")]
pub struct DecodeFlags {
    /// Precision: auto (the fastest that the processor supports), f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    dtype: Dtype,
    /// Weights to decode with: auto (those of a Q4_0, Q4_1 or Q8_0 GGUF file as they are, unless --dtype is given; otherwise
    /// none), none (the weights in --dtype), int8 (one scale per output) or int4 (one scale per 32 weights, as Q4_0)
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    quant: DecodeQuant,
    #[command(flatten)]
    device: DecodeDeviceFlag,
    #[command(flatten)]
    pub threads: Threads,
}

impl DecodeFlags {
    /// Loads the model that a flag names.
    ///
    /// # Errors
    /// Those of [`load`].
    pub fn load(&self, named: &Path, variant: Option<&Variant>) -> anyhow::Result<Loaded> {
        load(self.device.open()?, named, variant, self.quant, self.dtype)
    }

    /// Opens the model.
    ///
    /// # Errors
    /// Those of [`Loaded::open`].
    pub fn open(&self, model: Loaded) -> anyhow::Result<Box<dyn Model>> {
        let options = Options { threads: self.threads.count(), dtype: self.dtype, ..Options::default() };
        model.open(self.quant, options)
    }
}

/// A model's file, read, and the quantized weights in it.
pub struct Loaded {
    /// The device that multiplies by its weights.
    device: &'static dyn Device,
    /// Location.
    pub found: Found,
    /// Shape, parameters and metadata.
    pub checkpoint: Checkpoint,
    /// One entry for each parameter, or none at all.
    stored: Vec<Option<StoredWeight>>,
}

/// Loads the model that a flag names, and checks it against the variant. The file's quantized weights are kept if `quant` is auto,
/// and if `dtype` is: another says how to multiply by widened weights.
///
/// # Errors
/// Those of [`model::load`].
pub fn load(
    device: &'static dyn Device,
    named: &Path,
    variant: Option<&Variant>,
    quant: DecodeQuant,
    dtype: Dtype,
) -> anyhow::Result<Loaded> {
    let as_stored = quant == DecodeQuant::Auto && dtype == Dtype::Auto;
    let keep = |tensor_type| as_stored && device.multiplies(tensor_type);
    let (found, checkpoint, stored) = model::load_stored(named, variant, &keep)?;
    Ok(Loaded { device, found, checkpoint, stored })
}

impl Loaded {
    /// Opens the model. A note says if it decodes with the file's own weights.
    ///
    /// # Errors
    /// Those of the device.
    pub fn open(self, quant: DecodeQuant, options: Options) -> anyhow::Result<Box<dyn Model>> {
        let Self { device, found, checkpoint: Checkpoint { config, params, .. }, stored } = self;
        let mut types: Vec<_> = stored.iter().flatten().map(|weight| weight.tensor_type.to_string()).collect();
        if types.is_empty() {
            let quant = match quant {
                DecodeQuant::Auto => Quant::None,
                DecodeQuant::As(quant) => quant,
            };
            return Ok(device.open(config, params, Options { quant, ..options })?);
        }
        let kept = types.len();
        types.sort_unstable();
        types.dedup();
        let (types, path) = (types.join(" and "), found.path.display());
        write_line(&format!(
            "note: {path}: decoding with its own {types} weights ({kept} tensors), inputs of their products rounded to 8 bits; \
             --quant none widens them"
        ));
        Ok(device.open_stored(config, params, stored, options)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_parsed() {
        let found = DecodeQuant::NAMES.map(|name| name.parse::<DecodeQuant>().unwrap());
        let expected = [Quant::None, Quant::Int8, Quant::Int4].map(DecodeQuant::As);
        assert_eq!((found[0], &found[1..]), (DecodeQuant::Auto, &expected[..]));
        assert_eq!("q4".parse::<DecodeQuant>(), Err("expected auto, none, int8 or int4".into()));
    }
}
