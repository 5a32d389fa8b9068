//! The specification of a run: what somebody asked for, but for the data.

use std::path::PathBuf;
use std::sync::Arc;

use ngen3_model::{Checkpoint, Lora, Variant};

use crate::config::shape::Shape;
use crate::run_files::record::RunKind;
use crate::{Error, Overrides, RunPaths};

/// A run as it was asked for. [`RunSpec::resolve`] settles what it leaves open.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The command.
    pub kind: RunKind,
    /// The named shape, with its recipe.
    pub variant: Option<&'static Variant>,
    /// A TOML file of settings and shape.
    pub config_file: Option<PathBuf>,
    /// File for the model. Default: `VARIANT_model.pt` (or, without a variant, or where the file makes another shape of it,
    /// `CONFIG_model.pt`), after `distilled_` or `finetuned_` if it is that.
    pub out: Option<PathBuf>,
    /// Source of the weights.
    pub start: StartFrom,
    /// Replace a model that is there already.
    pub overwrite: bool,
    /// Settings given on the command line; they come before the file's.
    pub settings: Overrides,
    /// Shape given on the command line; it comes before the file's, and that before the variant's.
    pub shape: Shape,
    /// Adapters that are to learn beside the model of a fresh run, which then stays as it is.
    pub lora: Option<Lora>,
}

/// The weights that a run starts from; paths are where they came from.
#[derive(Clone, Debug, PartialEq)]
pub enum StartFrom {
    /// Drawn at random.
    Scratch,
    /// A checkpoint's.
    Checkpoint(PathBuf),
    /// Those of a checkpoint that was read already.
    Loaded(PathBuf, Box<Checkpoint>),
    /// As many layers of a deeper model as the shape asks for, or half of them. The model may be somebody else's too, such as a
    /// teacher: no second copy of it is in memory.
    LayersOf(PathBuf, Arc<Checkpoint>),
    /// Those of the run's own state: the run goes on.
    Resume,
}

impl RunSpec {
    /// The files of the run. `named` is the variant, if the model is to be named after it.
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
                let what = format!("which model? Name a {flag}, a shape in a --config file, or the file with --out");
                return Err(Error::Usage(what));
            }
        };
        RunPaths::new(format!("{}{name}_model.pt", self.kind.prefix()).as_ref())
    }
}
