//! Loads a model from any supported file or folder.

use std::path::Path;

use serde_json::{Map, Value};

use crate::gguf::TensorType;
use crate::params::WithBiases;
use crate::{Checkpoint, Config, Error, StoredWeight, checkpoint, gguf, hf};

impl Checkpoint {
    /// Loads a checkpoint: an NGen3 `.pt` or `.safetensors`, nanoGPT's `ckpt.pt`, a GGUF file, or a Hugging Face folder. The
    /// content decides the format, not the name.
    ///
    /// # Errors
    /// [`Error::Read`] naming the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        match path {
            path if path.is_dir() => hf::read(path),
            path if gguf::is_gguf(path) => Ok(gguf::read(path, &|_| false)?.0),
            path => checkpoint::read(path),
        }
    }

    /// As [`Checkpoint::load`], and also returns the quantized weights that products multiply by, as a GGUF file stores them: one
    /// entry for each parameter, in the order of [`ParamList`](crate::ParamList). It is `None` for a parameter that is no such
    /// weight or is of a type that `keep` does not accept. Other files have none.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn load_stored(
        path: &Path,
        keep: &dyn Fn(TensorType) -> bool,
    ) -> Result<(Self, Vec<Option<StoredWeight>>), Error> {
        if path.is_dir() || !gguf::is_gguf(path) {
            return Ok((Self::load(path)?, Vec::new()));
        }
        gguf::read(path, keep)
    }

    /// Checks that this checkpoint, loaded from `path`, has the shape `expected`.
    fn expect(&self, path: &Path, expected: &Config) -> Result<(), Error> {
        let (found, wanted) = (fields(&self.config), fields(expected));
        let differences: Vec<_> = found
            .iter()
            .filter(|(name, value)| wanted.get(*name) != Some(value))
            .map(|(name, value)| format!("{name} is {value}, not {}", wanted[name]))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::OtherModel { path: path.into(), differences: differences.join("; ") })
    }

    /// As [`Checkpoint::load`], for a model that must have the shape `expected`. If only `expected` has biases, they are zeros.
    ///
    /// # Errors
    /// As [`Checkpoint::load`]; [`Error::OtherModel`] naming each field that differs.
    pub fn load_for(path: &Path, expected: &Config) -> Result<Self, Error> {
        let mut checkpoint = Self::load(path)?;
        if expected.bias && !checkpoint.config.bias {
            // Earlier versions read the missing biases as zeros; runs started from such a file can be resumed.
            let weights = WithBiases::new(&checkpoint.config, &checkpoint.params);
            let params = weights.list().iter().flat_map(|param| weights.values(param).into_owned()).collect();
            checkpoint = Self { config: Config { bias: true, ..checkpoint.config }, params, ..checkpoint };
        }
        if checkpoint.config.rope.is_some() {
            // Files hold the whole context, whatever the length of the sequences in training.
            checkpoint.config.block_size = checkpoint.config.block_size.min(expected.block_size);
        }
        checkpoint.expect(path, expected)?;
        Ok(checkpoint)
    }
}

fn fields(config: &Config) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(mut fields)) => {
            // serde omits it if true.
            fields.insert("bias".into(), config.bias.into());
            fields
        }
        other => unreachable!("a Config serialises to an object, not {other:?}"),
    }
}
