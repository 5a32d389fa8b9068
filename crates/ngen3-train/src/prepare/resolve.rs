//! Resolves a specification against its files: the run's own state, or the checkpoint that it starts from. Each is read once. The
//! data follows in `job.rs`.

use std::path::PathBuf;
use std::sync::Arc;

use ngen3_cluster::World;
use ngen3_model::words::{count, grouped, grouped_count};
use ngen3_model::{ChatFormat, Checkpoint, Config, Error as ModelError, Lora, LoraList, Recipe, TokenizerRef, Variant};

use crate::config::config_file;
use crate::config::finetune_defaults::finetune_defaults;
use crate::config::settings::default_min_lr;
use crate::config::shape::Shape;
use crate::hash::sha256_of;
use crate::prepare::spec::{RunSpec, StartFrom};
use crate::prepare::surgery::{cut_positions, some_layers};
use crate::run_files::record::{AdapterRecord, ObjectiveRecord, RunKind, RunRecord, TrainProgress};
use crate::run_files::state::{self, State};
use crate::{Error, Overrides, ReduceDtype, RunPaths, TrainSettings};

/// Training defaults of models that are not a variant.
const PLAIN_RECIPE: Recipe = Recipe { batch_size: 16, learning_rate: 3e-4, max_iters: 2_000 };

/// Tokens per sequence when a model with a longer context is trained further, unless asked otherwise.
pub const LONGEST_SEQUENCE: usize = 1024;

/// A run with final shape, settings and weights.
#[derive(Debug)]
pub struct Resolved {
    /// The command.
    pub kind: RunKind,
    /// Paths of its files.
    pub paths: RunPaths,
    /// The model's shape.
    pub config: Config,
    /// Training settings.
    pub settings: TrainSettings,
    /// Weights, `[total]`; `None` to initialise them at random.
    pub(crate) params: Option<Vec<f32>>,
    /// LoRA adapters, if only they are trained.
    pub(crate) adapters: Option<AdapterRecord>,
    /// Their parameters, in the order of [`LoraList`].
    pub(crate) adapter_params: Option<Vec<f32>>,
    /// AdamW's moments of a resumed run.
    pub(crate) moments: Option<Moments>,
    /// Outer momentum of a resumed run with `sync_every`, as long as the trained parameters.
    pub(crate) outer_momentum: Option<Vec<f32>>,
    /// Progress so far.
    pub(crate) progress: TrainProgress,
    pub(crate) origin: Origin,
    pub(crate) notes: Vec<String>,
    /// Ranks that train together.
    pub(crate) world: Arc<dyn World>,
}

/// AdamW's moments, each as long as the trained parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// First moment.
    pub exp_avg: Vec<f32>,
    /// Second moment.
    pub exp_avg_sq: Vec<f32>,
}

/// Origin of the weights; the data must match it.
#[derive(Debug)]
pub(crate) enum Origin {
    Scratch,
    /// A checkpoint, with its tokenizer and chat format.
    Checkpoint(PathBuf, TokenizerRef, Option<ChatFormat>),
    /// The state of the resumed run.
    State(Box<RunRecord>),
}

/// Parts of a specification that every way to begin needs.
struct Request {
    kind: RunKind,
    paths: RunPaths,
    variant: Option<&'static Variant>,
    shape: Shape,
    asked: Overrides,
    world: Arc<dyn World>,
}

impl RunSpec {
    /// Resolves shape, settings and weights. `vocab_size` returns the data's, the default for a model trained from scratch.
    ///
    /// # Errors
    /// [`Error::Usage`] for invalid requests; other errors for files with unexpected content.
    pub fn resolve(self, vocab_size: impl FnOnce() -> Result<usize, Error>) -> Result<Resolved, Error> {
        let (file_settings, file_shape) = match &self.config_file {
            Some(file) => config_file::load(file)?,
            None => Default::default(),
        };
        let named = self.variant.filter(|variant| file_shape.keeps_to(variant));
        let paths = self.paths(named)?;
        let Self { kind, variant, start, overwrite, settings, shape, lora, world, .. } = self;
        let (mut asked, shape) = (settings.or(file_settings), shape.or(file_shape));
        if asked.max_iters.is_some() && asked.minutes.is_some_and(|minutes| minutes > 0.0) {
            return Err(Error::Usage("minutes and max_iters: expected one of them, got both".into()));
        }
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
                let run = Resolved::resume(Request { kind, paths, variant, shape, asked, world })?;
                return lora.map_or(Ok(run), |_| Err(no_base()));
            }
            StartFrom::Scratch => {
                let request = Request { kind, paths, variant, shape, asked, world };
                let run = Resolved::from_scratch(request, vocab_size()?)?;
                return lora.map_or(Ok(run), |_| Err(no_base()));
            }
            StartFrom::Checkpoint(from) => {
                let checkpoint = Checkpoint::load(&from)?;
                (from, checkpoint, shape)
            }
            StartFrom::Loaded(from, checkpoint) => {
                // The checkpoint's own shape, even if it is not the variant's.
                let mut own = Shape::from(&checkpoint.config);
                own.block_size.take_if(|_| checkpoint.config.rope.is_some());
                let shape = shape.or(own);
                (from, *checkpoint, shape)
            }
            StartFrom::LayersOf(from, deeper) => {
                let checkpoint = some_layers(&deeper, &from, shape.clone().or(Shape::sizes_of(variant)).n_layer)?;
                (from, checkpoint, shape)
            }
        };
        Resolved::from_checkpoint(Request { kind, paths, variant, shape, asked, world }, from, checkpoint, lora)
    }
}

/// Error for adapters without a base model.
fn no_base() -> Error {
    Error::Usage("LoRA adapters need a base model; name one with --model_checkpoint".into())
}

impl Resolved {
    /// Starts at step 0 with random weights. `vocab_size` is the default for the vocabulary.
    fn from_scratch(request: Request, vocab_size: usize) -> Result<Self, Error> {
        let Request { kind, paths, variant, shape, asked, world } = request;
        let Some(config) = shape.config(variant, vocab_size) else {
            return Err(Error::Usage(format!(
                "incomplete model shape: expected {}, or n_layer, n_head, n_embd and block_size in a --config file",
                kind.variant_flag()
            )));
        };
        config.validate()?;
        let mut notes = Vec::new();
        let settings = TrainSettings::settle(asked, recipe_of(variant), &config)?.dealt_to(&*world, &mut notes)?;
        Ok(Self {
            kind,
            paths,
            config,
            settings,
            params: None,
            adapters: None,
            adapter_params: None,
            moments: None,
            outer_momentum: None,
            progress: TrainProgress::default(),
            origin: Origin::Scratch,
            notes,
            world,
        })
    }

    /// Starts at step 0 with the weights of a checkpoint, and optionally with adapters. The checkpoint must have the requested
    /// shape; only the context length may be shorter: positions beyond it are cut off.
    fn from_checkpoint(
        request: Request,
        from: PathBuf,
        checkpoint: Checkpoint,
        lora: Option<Lora>,
    ) -> Result<Self, Error> {
        let Request { kind, paths, variant, shape, asked, world } = request;
        let Checkpoint { mut config, mut params, meta } = checkpoint;
        let mut wanted = shape.clone().or(Shape::sizes_of(variant));
        if let Some(block_size) = wanted.block_size.take_if(|block_size| *block_size < config.block_size) {
            let shorter = Config { block_size, ..config.clone() };
            shorter.validate()?;
            params = cut_positions(&params, &config, &shorter);
            config = shorter;
        }
        let mut notes = Vec::new();
        if config.rope.is_some()
            && wanted.block_size.is_none()
            && shape.block_size.is_none()
            && config.block_size > LONGEST_SEQUENCE
        {
            let context = config.block_size;
            config.block_size = LONGEST_SEQUENCE;
            notes.push(format!(
                "training on sequences of {} of the model's {}; --block_size sets another length",
                grouped(LONGEST_SEQUENCE as u64),
                grouped_count(context as u64, "token")
            ));
        }
        let differences = wanted.differences_from(&config);
        if !differences.is_empty() {
            return Err(ModelError::OtherModel { path: from, differences }.into());
        }
        let settings = TrainSettings::settle(asked, recipe_of(variant), &config)?.dealt_to(&*world, &mut notes)?;
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
            outer_momentum: None,
            progress: TrainProgress::default(),
            origin: Origin::Checkpoint(from, meta.tokenizer, meta.chat),
            notes,
            world,
        })
    }

    /// Continues from the run's state. Settings are the run's own unless given again; the shape cannot change.
    fn resume(request: Request) -> Result<Self, Error> {
        let Request { kind, paths, variant, shape, asked, world } = request;
        let Some(State { record, params, exp_avg, exp_avg_sq, outer_momentum }) = state::load(&paths.state)? else {
            return Err(Error::Usage(format!(
                "nothing to resume: {} does not exist; drop --resume to start a new run, or start from a checkpoint \
                 with {}",
                paths.state.display(),
                kind.init_flag()
            )));
        };
        if record.kind != kind {
            let (path, was) = (paths.state.display(), record.kind.name());
            return Err(Error::Usage(format!("{path} belongs to a run of ngen3 {was}; resume it with that command")));
        }
        let layers = variant
            .filter(|variant| !variant.fits(&record.config))
            .map(|variant| Shape { block_size: None, ..Shape::sizes_of(Some(variant)) });
        let differences = shape.or(layers.unwrap_or_default()).differences_from(&record.config);
        if !differences.is_empty() {
            return Err(ModelError::OtherModel { path: paths.state, differences }.into());
        }
        let step = record.progress.step;
        let mut own = Overrides::from(record.settings.clone());
        let progress_s = record.progress.elapsed_s;
        if step == 0 && own.warmup_iters == Some(TrainSettings::default_warmup(record.settings.max_iters)) {
            // Warm-up has not begun (`--max_iters 0` only initialises the model), so a longer run gets the default of its length.
            own.warmup_iters = None;
        }
        let default_min_lr = default_min_lr(record.settings.schedule, record.settings.learning_rate);
        if (asked.learning_rate.is_some() || asked.schedule.is_some()) && own.min_lr == Some(default_min_lr) {
            // The default, which follows the learning rate and the schedule.
            own.min_lr = None;
        }
        if let Some(optimizer) = asked.optimizer.filter(|&optimizer| optimizer != record.settings.optimizer) {
            return Err(Error::Usage(format!(
                "optimizer: expected {}, with which the run began, got {optimizer}; to train on with another, start a new \
                 run with {}",
                record.settings.optimizer,
                kind.init_flag()
            )));
        }
        if asked.max_iters.is_some() {
            own.minutes = None;
        } else if let Some(minutes) = asked.minutes.filter(|&minutes| minutes > 0.0) {
            // As many steps as fit at the pace of the run so far; foreseen anew with each step.
            let pace = if step > 0 { progress_s / step as f64 } else { 1.0 };
            let max_iters = step + ((60.0 * minutes - progress_s) / pace).max(0.0) as u64;
            own.max_iters = Some(max_iters);
            own.warmup_iters = own.warmup_iters.map(|warmup_iters| warmup_iters.min(max_iters));
        }
        if let Some(max_iters) = asked.max_iters.filter(|&max_iters| max_iters < step) {
            let done = count(step, "step");
            return Err(Error::Usage(format!("max_iters: expected at least the {done} already done, got {max_iters}")));
        }
        let settings = TrainSettings::settle(asked.or(own), &PLAIN_RECIPE, &record.config)?;
        settings.check_ranks(&*world)?;
        let changes = settings.changes_since(&record.settings);
        let mut notes = Vec::new();
        if !changes.is_empty() {
            notes.push(format!("settings changed: {}", changes.join(", ")));
        }
        let (before, now) = (record.settings.lr_at(step), settings.lr_at(step));
        if before != now {
            notes
                .push(format!("the learning rate continues at {now:.2e}; without the change it would be {before:.2e}"));
        }
        if world.size() > 1 && step > 0 {
            let left = [
                (settings.sync_every > 1, "every rank goes on with rank 0's averages of gradients"),
                (settings.reduce_dtype != ReduceDtype::F32, "what rounding left out of the last exchange is not saved"),
            ];
            notes.extend(left.into_iter().filter(|&(holds, _)| holds).map(|(_, note)| note.into()));
        }
        let (config, mut progress, adapters) =
            (record.config.clone(), record.progress.clone(), record.adapters.clone());
        let was_kept = record.settings.keep_best || progress.best_step == step;
        if settings.keep_best && progress.best_val_loss.is_some() && !(was_kept && paths.model.exists()) {
            let (best, model) = (progress.best_step, paths.model.display());
            let why = if was_kept { format!("is no longer in {model}") } else { "was not kept".into() };
            notes.push(format!("the best model so far, of step {best}, {why}; --keep_best applies from here on"));
            let TrainProgress { elapsed_s, unevaluated, .. } = progress;
            progress = TrainProgress { step, elapsed_s, unevaluated, ..TrainProgress::default() };
        }
        let moments = Some(Moments { exp_avg, exp_avg_sq });
        let (params, adapter_params) = match &adapters {
            None => (Some(params), None),
            Some(adapters) => (Some(base_of(&paths, &config, adapters)?), Some(params)),
        };
        let origin = Origin::State(Box::new(record));
        Ok(Self {
            kind,
            paths,
            config,
            settings,
            params,
            adapters,
            adapter_params,
            moments,
            outer_momentum,
            progress,
            origin,
            notes,
            world,
        })
    }

    /// Objective of the resumed run; `None` for a new run.
    pub(crate) fn objective_before(&self) -> Option<&ObjectiveRecord> {
        match &self.origin {
            Origin::State(record) => Some(&record.objective),
            Origin::Scratch | Origin::Checkpoint(..) => None,
        }
    }
}

/// Training defaults of a variant.
fn recipe_of(variant: Option<&Variant>) -> &Recipe {
    variant.map_or(&PLAIN_RECIPE, |variant| &variant.recipe)
}

/// Loads the base model of a run's adapters.
fn base_of(paths: &RunPaths, config: &Config, adapters: &AdapterRecord) -> Result<Vec<f32>, Error> {
    let Checkpoint { params, .. } = Checkpoint::load_for(&paths.base, config)?;
    if sha256_of(&params) != adapters.base_sha256 {
        let what = "expected the base model of the run's adapters; start again with --overwrite";
        return Err(Error::file(&paths.base, what));
    }
    Ok(params)
}

/// Returns true for the files of a run that was killed before it could be resumed: its initial model without a state.
pub fn was_never_begun(paths: &RunPaths) -> bool {
    let is_initial = |model: Checkpoint| model.meta.iter_num == 0 && model.meta.training.contains_key("data");
    !paths.state.exists() && paths.model.exists() && Checkpoint::load(&paths.model).is_ok_and(is_initial)
}

/// Fails if the model exists: hours of training are not lost by repeating a command.
fn refuse_to_replace(paths: &RunPaths) -> Result<(), Error> {
    if was_never_begun(paths) {
        return Ok(());
    }
    for path in [&paths.model, &paths.state, &paths.adapter] {
        if path.exists() {
            return Err(Error::Usage(format!(
                "{} already exists; continue it with --resume, replace it with --overwrite, or choose another name \
                 with --out",
                path.display()
            )));
        }
    }
    Ok(())
}
