//! A specification, resolved against the files that it names: the run's own state, or the checkpoint that it starts from. Each is
//! read once. What is still missing is the data (`job.rs`).

use std::path::PathBuf;

use ngen3_model::words::count;
use ngen3_model::{ChatFormat, Checkpoint, Config, Error as ModelError, Lora, LoraList, Recipe, TokenizerRef, Variant};

use crate::config::config_file;
use crate::config::finetune_defaults::finetune_defaults;
use crate::config::shape::Shape;
use crate::hash::sha256_of;
use crate::prepare::spec::{RunSpec, StartFrom};
use crate::prepare::surgery::{cut_positions, some_layers};
use crate::run_files::record::{AdapterRecord, ObjectiveRecord, RunKind, RunRecord, TrainProgress};
use crate::run_files::state::{self, State};
use crate::{Error, Overrides, RunPaths, TrainSettings};

/// Training defaults of a shape without a variant.
const PLAIN_RECIPE: Recipe = Recipe { batch_size: 16, learning_rate: 3e-4, max_iters: 2_000 };

/// A run whose shape, settings and weights are settled.
#[derive(Debug)]
pub struct Resolved {
    /// The command.
    pub kind: RunKind,
    /// Its files.
    pub paths: RunPaths,
    /// The model's shape.
    pub config: Config,
    /// How it is trained.
    pub settings: TrainSettings,
    /// `[total]`; `None` if they are to be drawn.
    pub(crate) params: Option<Vec<f32>>,
    /// The adapters, if only they learn.
    pub(crate) adapters: Option<AdapterRecord>,
    /// Their numbers, in the order of [`LoraList`].
    pub(crate) adapter_params: Option<Vec<f32>>,
    /// Those of a run that goes on.
    pub(crate) moments: Option<Moments>,
    /// How far it is.
    pub(crate) progress: TrainProgress,
    pub(crate) origin: Origin,
    pub(crate) notes: Vec<String>,
}

/// AdamW's moments, each as long as what learns.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// The first.
    pub exp_avg: Vec<f32>,
    /// The second.
    pub exp_avg_sq: Vec<f32>,
}

/// Limit on the data, besides the model.
#[derive(Debug)]
pub(crate) enum Origin {
    Scratch,
    /// A checkpoint, the tokenizer that it was trained with, and how it has conversations.
    Checkpoint(PathBuf, TokenizerRef, Option<ChatFormat>),
    /// The state of the same run.
    State(Box<RunRecord>),
}

impl RunSpec {
    /// Settles the shape, the settings and the weights. `vocab_size` is the data's, for a model whose weights are drawn and
    /// whose vocabulary nobody says.
    ///
    /// # Errors
    /// [`Error::Usage`] for what was asked wrongly; the others for files that are not what they should be.
    pub fn resolve(self, vocab_size: impl FnOnce() -> Result<usize, Error>) -> Result<Resolved, Error> {
        let (file_settings, file_shape) = match &self.config_file {
            Some(file) => config_file::load(file)?,
            None => Default::default(),
        };
        let named = self.variant.filter(|variant| file_shape.keeps_to(variant));
        let paths = self.paths(named)?;
        let Self { kind, variant, start, overwrite, settings, shape, lora, .. } = self;
        let (mut asked, shape) = (settings.or(file_settings), shape.or(file_shape));
        if start != StartFrom::Resume {
            if !overwrite {
                refuse_to_replace(&paths)?;
            }
            if kind == RunKind::Finetune {
                asked = finetune_defaults(asked, recipe_of(variant).learning_rate, lora.is_some());
            }
        }
        let (from, checkpoint, shape) = match start {
            StartFrom::Resume => {
                let run = Resolved::resume(kind, paths, variant, shape, asked)?;
                return lora.map_or(Ok(run), |_| Err(no_base()));
            }
            StartFrom::Scratch => {
                let run = Resolved::from_scratch(kind, paths, variant, shape, asked, vocab_size()?)?;
                return lora.map_or(Ok(run), |_| Err(no_base()));
            }
            StartFrom::Checkpoint(from) => {
                let checkpoint = Checkpoint::load(&from)?;
                (from, checkpoint, shape)
            }
            StartFrom::Loaded(from, checkpoint) => {
                // Of whatever shape it is, whoever names the variant.
                let shape = shape.or(Shape::from(&checkpoint.config));
                (from, *checkpoint, shape)
            }
            StartFrom::LayersOf(from, deeper) => {
                let checkpoint = some_layers(&deeper, &from, shape.clone().or(shape_of(variant)).n_layer)?;
                (from, checkpoint, shape)
            }
        };
        Resolved::from_checkpoint(kind, paths, (from, checkpoint), variant, shape, asked, lora)
    }
}

/// Adapters are asked for, and there is no model for them.
fn no_base() -> Error {
    Error::Usage("adapters need a model to learn beside: name its checkpoint".into())
}

impl Resolved {
    /// At step 0 with weights to be drawn. `vocab_size` is the data's, for a model that is not told another.
    fn from_scratch(
        kind: RunKind,
        paths: RunPaths,
        variant: Option<&Variant>,
        shape: Shape,
        asked: Overrides,
        vocab_size: usize,
    ) -> Result<Self, Error> {
        let Some(config) = shape.or(shape_of(variant)).config(vocab_size) else {
            return Err(Error::Usage(format!(
                "the model's shape is not complete: name a {}, or give n_layer, n_head, n_embd and block_size in a \
                 --config file",
                kind.variant_flag()
            )));
        };
        config.validate()?;
        let settings = TrainSettings::settle(asked, recipe_of(variant))?;
        Ok(Self {
            kind,
            paths,
            config,
            settings,
            params: None,
            adapters: None,
            adapter_params: None,
            moments: None,
            progress: TrainProgress::default(),
            origin: Origin::Scratch,
            notes: Vec::new(),
        })
    }

    /// At step 0 with the weights of a checkpoint, or with adapters beside them. Its shape must be the one asked for; only its block may be asked to
    /// be smaller: the positions past it are cut off.
    fn from_checkpoint(
        kind: RunKind,
        paths: RunPaths,
        (from, checkpoint): (PathBuf, Checkpoint),
        variant: Option<&Variant>,
        shape: Shape,
        asked: Overrides,
        lora: Option<Lora>,
    ) -> Result<Self, Error> {
        let Checkpoint { mut config, mut params, meta } = checkpoint;
        let mut wanted = shape.or(shape_of(variant));
        if let Some(block_size) = wanted.block_size.take_if(|block_size| *block_size < config.block_size) {
            let shorter = Config { block_size, ..config.clone() };
            shorter.validate()?;
            params = cut_positions(&params, &config, &shorter);
            config = shorter;
        }
        let differences = wanted.differences_from(&config);
        if !differences.is_empty() {
            return Err(ModelError::OtherModel { path: from, differences }.into());
        }
        let settings = TrainSettings::settle(asked, recipe_of(variant))?;
        let (mut adapters, mut adapter_params) = (None, None);
        if let Some(lora) = lora {
            adapter_params = Some(LoraList::new(&config, &lora)?.init(settings.seed));
            let base = from.display().to_string();
            adapters = Some(AdapterRecord { lora, base, base_sha256: sha256_of(&params) });
        }
        Ok(Self {
            kind,
            paths,
            config,
            settings,
            params: Some(params),
            adapters,
            adapter_params,
            moments: None,
            progress: TrainProgress::default(),
            origin: Origin::Checkpoint(from, meta.tokenizer, meta.chat),
            notes: Vec::new(),
        })
    }

    /// The point where a run stopped. Settings are the run's own, but for those asked for now; its shape cannot change.
    fn resume(
        kind: RunKind,
        paths: RunPaths,
        variant: Option<&Variant>,
        shape: Shape,
        asked: Overrides,
    ) -> Result<Self, Error> {
        let Some(State { record, params, exp_avg, exp_avg_sq }) = state::load(&paths.state)? else {
            return Err(Error::Usage(format!(
                "there is nothing to resume: no {}. Leave --resume away to start; {} starts from the weights of a \
                 checkpoint",
                paths.state.display(),
                kind.init_flag()
            )));
        };
        if record.kind != kind {
            let (path, was) = (paths.state.display(), record.kind.name());
            return Err(Error::Usage(format!("{path} is of a run of ngen3 {was}, which goes on with that command")));
        }
        let layers = variant.filter(|variant| !variant.fits(&record.config)).map(|variant| {
            let Shape { n_layer, n_head, n_embd, .. } = shape_of(Some(variant));
            Shape { n_layer, n_head, n_embd, ..Shape::default() }
        });
        let differences = shape.or(layers.unwrap_or_default()).differences_from(&record.config);
        if !differences.is_empty() {
            return Err(ModelError::OtherModel { path: paths.state, differences }.into());
        }
        let step = record.progress.step;
        let mut own = Overrides::from(record.settings.clone());
        if step == 0 && own.warmup_iters == Some(TrainSettings::default_warmup(record.settings.max_iters)) {
            // Nothing is warm yet (`--max_iters 0` only made the model), so a longer run gets the warm-up of its length.
            own.warmup_iters = None;
        }
        if asked.learning_rate.is_some() && own.min_lr == own.learning_rate.map(|lr| lr / 10.0) {
            // It follows the learning rate, as nobody had said otherwise.
            own.min_lr = None;
        }
        if let Some(max_iters) = asked.max_iters.filter(|&max_iters| max_iters < step) {
            let done = count(step, "step");
            return Err(Error::Usage(format!("max_iters is {max_iters}, and the run has done {done} already")));
        }
        let settings = TrainSettings::settle(asked.or(own), &PLAIN_RECIPE)?;
        let changes = settings.changes_since(&record.settings);
        let mut notes = Vec::new();
        if !changes.is_empty() {
            notes.push(format!("changed since the run stopped: {}", changes.join(", ")));
        }
        let (before, now) = (record.settings.lr_at(step), settings.lr_at(step));
        if before != now {
            notes.push(format!(
                "the learning rate goes on at {now:.2e}; before the change it would have been {before:.2e}"
            ));
        }
        let (config, mut progress, adapters) =
            (record.config.clone(), record.progress.clone(), record.adapters.clone());
        let was_kept = record.settings.keep_best || progress.best_step == step;
        if settings.keep_best && progress.best_val_loss.is_some() && !(was_kept && paths.model.exists()) {
            let (best, model) = (progress.best_step, paths.model.display());
            let why = if was_kept { format!("is not in {model} any more") } else { "was not kept".into() };
            notes.push(format!("the model of step {best} {why}: the best is looked for from here on"));
            let TrainProgress { elapsed_s, unevaluated, .. } = progress;
            progress = TrainProgress { step, elapsed_s, unevaluated, ..TrainProgress::default() };
        }
        let moments = Some(Moments { exp_avg, exp_avg_sq });
        let (params, adapter_params) = match &adapters {
            None => (Some(params), None),
            Some(adapters) => (Some(base_of(&paths, &config, adapters)?), Some(params)),
        };
        let origin = Origin::State(Box::new(record));
        Ok(Self { kind, paths, config, settings, params, adapters, adapter_params, moments, progress, origin, notes })
    }

    /// Objective of the run that goes on; `None` of a run that starts.
    pub(crate) fn objective_before(&self) -> Option<&ObjectiveRecord> {
        match &self.origin {
            Origin::State(record) => Some(&record.objective),
            Origin::Scratch | Origin::Checkpoint(..) => None,
        }
    }
}

/// Defaults of a run.
fn recipe_of(variant: Option<&Variant>) -> &Recipe {
    variant.map_or(&PLAIN_RECIPE, |variant| &variant.recipe)
}

/// The model that the adapters of a run learn beside.
fn base_of(paths: &RunPaths, config: &Config, adapters: &AdapterRecord) -> Result<Vec<f32>, Error> {
    let Checkpoint { params, .. } = Checkpoint::load_for(&paths.base, config)?;
    if sha256_of(&params) != adapters.base_sha256 {
        let what = "it is not the model that the run's adapters learn beside; start the run anew with --overwrite";
        return Err(Error::file(&paths.base, what));
    }
    Ok(params)
}

/// A variant's shape. Its vocabulary and activation are only defaults: the data and the checkpoint decide them.
fn shape_of(variant: Option<&Variant>) -> Shape {
    variant.map_or_else(Shape::default, |variant| Shape {
        vocab_size: None,
        activation: None,
        ..Shape::from(&variant.config())
    })
}

/// A model is hours of work: it is not replaced because somebody typed the same command again.
fn refuse_to_replace(paths: &RunPaths) -> Result<(), Error> {
    for path in [&paths.model, &paths.state, &paths.adapter] {
        if path.exists() {
            return Err(Error::Usage(format!(
                "{} is there already: go on from it with --resume, replace it with --overwrite, or choose another name \
                 with --out",
                path.display()
            )));
        }
    }
    Ok(())
}
