//! Reads a model from whatever holds one.

use std::path::Path;

use serde_json::{Map, Value};

use crate::params::WithBiases;
use crate::{Checkpoint, Config, Error, checkpoint, hf};

impl Checkpoint {
    /// Reads a checkpoint: ours, nanoGPT's `ckpt.pt`, a safetensors file of ours, or a Hugging Face folder. The content
    /// decides the format.
    ///
    /// # Errors
    /// [`Error::Read`] naming the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        if path.is_dir() { hf::read(path) } else { checkpoint::read(path) }
    }

    /// Checks that this checkpoint, which came from `path`, is a model of the shape `expected`.
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

    /// As [`Checkpoint::load`], of a model that must have the shape `expected`. Biases that only `expected` has are zero.
    ///
    /// # Errors
    /// As [`Checkpoint::load`]; [`Error::OtherModel`] naming each field that differs.
    pub fn load_for(path: &Path, expected: &Config) -> Result<Self, Error> {
        let mut checkpoint = Self::load(path)?;
        if expected.bias && !checkpoint.config.bias {
            // Runs were started from such a file when its missing biases were read as zeros; they can be resumed.
            let weights = WithBiases::new(&checkpoint.config, &checkpoint.params);
            let params = weights.list().iter().flat_map(|param| weights.values(param).into_owned()).collect();
            checkpoint = Self { config: Config { bias: true, ..checkpoint.config }, params, ..checkpoint };
        }
        checkpoint.expect(path, expected)?;
        Ok(checkpoint)
    }
}

fn fields(config: &Config) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(mut fields)) => {
            // It is left out where it is true.
            fields.insert("bias".into(), config.bias.into());
            fields
        }
        other => unreachable!("a Config serialises to an object, not {other:?}"),
    }
}
