//! Specification of a run: the request, without the data.

use std::path::PathBuf;
use std::sync::Arc;

use ngen3_cluster::World;
use ngen3_model::{Checkpoint, Lora, Variant};

use crate::config::shape::Shape;
use crate::run_files::record::RunKind;
use crate::{Error, Overrides, RunPaths};

/// Specification of a run. [`RunSpec::resolve`] fills in the rest.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The command.
    pub kind: RunKind,
    /// Variant: shape and training defaults.
    pub variant: Option<&'static Variant>,
    /// TOML file with settings and shape.
    pub config_file: Option<PathBuf>,
    /// Path of the model. Default: `VARIANT_model.pt`, with the prefix `distilled_` or `finetuned_` for such runs;
    /// `CONFIG_model.pt` without a variant, or if the config file changes its shape.
    pub out: Option<PathBuf>,
    /// Initial weights.
    pub start: StartFrom,
    /// `true` to replace an existing model.
    pub overwrite: bool,
    /// Settings given on the command line; they override the file's.
    pub settings: Overrides,
    /// Shape given on the command line; it overrides the file's, which overrides the variant's.
    pub shape: Shape,
    /// LoRA adapters to train instead of the weights, for a new run.
    pub lora: Option<Lora>,
    /// Ranks that train together.
    pub world: Arc<dyn World>,
}

/// Initial weights of a run, with the path they come from.
#[derive(Clone, Debug, PartialEq)]
pub enum StartFrom {
    /// Random initialisation.
    Scratch,
    /// Weights of a checkpoint.
    Checkpoint(PathBuf),
    /// Weights of a checkpoint in memory.
    Loaded(PathBuf, Box<Checkpoint>),
    /// Some layers of a deeper model: as many as the shape has, by default half of them. The model is shared, for example with
    /// the teacher, to save memory.
    LayersOf(PathBuf, Arc<Checkpoint>),
    /// The run's own state.
    Resume,
}

impl RunSpec {
    /// Returns the paths of the run's files. `named` is the variant that the model is named after, if any.
    ///
    /// # Errors
    /// [`Error::Usage`] if nothing names the model; as [`RunPaths::new`].
    pub(crate) fn paths(&self, named: Option<&Variant>) -> Result<RunPaths, Error> {
        if let Some(out) = &self.out {
            return RunPaths::new(out);
        }
        let stem = self.config_file.as_deref().and_then(|file| file.file_stem());
        let name = match (named, stem) {
            (Some(variant), _) => variant.name.into(),
            (None, Some(stem)) => stem.to_string_lossy(),
            (None, None) => {
                let flag = self.kind.variant_flag();
                let what = format!("no model given: expected {flag}, a --config file with a shape, or --out");
                return Err(Error::Usage(what));
            }
        };
        RunPaths::new(format!("{}{name}_model.pt", self.kind.prefix()).as_ref())
    }
}
