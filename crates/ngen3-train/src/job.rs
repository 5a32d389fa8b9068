//! What a run is to do, settled before it starts: flags, files and data become one [`Job`].
//!
//! Everything that can be wrong is found here, in seconds and before any file changes: settings out of range, shapes that
//! contradict each other, other data than before, a folder that cannot be written to. It goes in two parts, since the data
//! is opened for a shape and the shape may follow from the data: [`Request::start`] settles shape, settings and where the
//! weights come from; [`Start::with`] checks them against the data.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ngen3_engine::{Device, Quant, Slot, Trainer, Workload};
use ngen3_model::hf::write_adapter;
use ngen3_model::{ChatFormat, Checkpoint, CheckpointMeta, Config, Lora, ParamList, TokenizerRef, Variant, checkpoint};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config_file::{self, Shape};
use crate::finetune::finetune_defaults;
use crate::start::{Origin, Start, recipe_of, shape_of, some_layers};
use crate::state::{Adapting, DataIdentity, Reached};
use crate::{Error, Held, Overrides, RunPaths, TrainSettings, memory};

/// What kind of run it is: each goes on only as what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// From a token file.
    #[default]
    Train,
    /// From a token file and a teacher.
    Distill,
    /// From conversations or a token file, on the way to a use.
    Finetune,
}

impl Kind {
    /// The name of the command.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Distill => "distill",
            Self::Finetune => "finetune",
        }
    }

    /// The flag that names the model's variant.
    pub(crate) fn variant_flag(self) -> &'static str {
        if self == Self::Distill { "--student_variant" } else { "--variant" }
    }

    /// The flag that names the weights to start from.
    pub(crate) fn init_flag(self) -> &'static str {
        match self {
            Self::Train => "--init_from",
            Self::Distill => "--init_student",
            Self::Finetune => "--model_checkpoint",
        }
    }

    /// What the names of its models begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Train => "",
            Self::Distill => "distilled_",
            Self::Finetune => "finetuned_",
        }
    }
}

/// What somebody asked for, but for the data.
#[derive(Clone, Debug)]
pub struct Request {
    /// What kind of run it is.
    pub kind: Kind,
    /// The named shape, with its recipe.
    pub variant: Option<&'static Variant>,
    /// A TOML file of settings and shape.
    pub config_file: Option<PathBuf>,
    /// Where the model goes; `VARIANT_model.pt` (or, without a variant, or where the file makes another shape of it,
    /// `CONFIG_model.pt`) if nobody says, after `distilled_` or `finetuned_` if it is that.
    pub out: Option<PathBuf>,
    /// Where the weights come from.
    pub begin: Begin,
    /// Settings given on the command line; they come before the file's.
    pub settings: Overrides,
    /// Shape given on the command line; it comes before the file's, and that before the variant's.
    pub shape: Shape,
    /// Adapters that are to learn beside the model of a fresh run, which then stays as it is.
    pub lora: Option<Lora>,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Begin {
    /// A run that starts at step 0.
    Fresh {
        /// The weights to start from.
        init: Init,
        /// Whether a model that is there already may be replaced.
        overwrite: bool,
    },
    /// From the state of the same run, which goes on.
    Resume,
}

/// The weights of a fresh run.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Drawn at random.
    Random,
    /// A checkpoint's.
    From(PathBuf),
    /// Those of a checkpoint that was read already; the path is where it came from, for messages.
    Given(PathBuf, Box<Checkpoint>),
    /// As many layers of a deeper model as the shape asks for, or half of them; the path is where it came from, for messages.
    /// The model may be somebody else's too, such as a teacher: no second copy of it is in memory.
    LayersOf(PathBuf, Arc<Checkpoint>),
}

/// What a run learns from, as far as its files and messages know it.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// The file, for messages.
    pub path: PathBuf,
    /// What tells it from others.
    pub identity: DataIdentity,
    /// What made the token ids; it travels with the model.
    pub tokenizer: TokenizerRef,
    /// How conversations become text, if it holds any; it travels with the model, which else keeps its own.
    pub chat: Option<ChatFormat>,
    /// Where the text came from.
    pub source: Vec<String>,
}

/// A run that is ready to start.
#[derive(Debug)]
pub struct Job {
    /// What kind of run it is.
    pub kind: Kind,
    /// The model's shape.
    pub config: Config,
    /// How it is trained.
    pub settings: TrainSettings,
    /// Bytes of memory that it takes, about.
    pub bytes: u64,
    /// Where it goes.
    pub paths: RunPaths,
    /// Nobody else goes there.
    pub held: Held,
    /// What it learns from.
    pub data: Data,
    /// What else decides what it learns (a teacher, a temperature): by name, the same for the whole run.
    pub lesson: Map<String, Value>,
    /// The adapters, if only they learn.
    pub adapting: Option<Adapting>,
    /// Where it stands.
    pub reached: Reached,
    /// What is good to know before it starts, each a sentence.
    pub notes: Vec<String>,
}

/// The numbers that a run starts from.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[total]`, in the order of [`ParamList`].
    pub params: Vec<f32>,
    /// In the order of [`ngen3_model::LoraList`], if only adapters learn.
    pub adapter: Option<Vec<f32>>,
    /// AdamW's moments, of a run that goes on.
    pub moments: Option<Moments>,
}

/// AdamW's moments, each `[total]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// The first.
    pub exp_avg: Vec<f32>,
    /// The second.
    pub exp_avg_sq: Vec<f32>,
}

impl Moments {
    /// Gives them to the engine.
    ///
    /// # Errors
    /// [`Error::Engine`] when they do not fit in memory.
    pub fn restore(self, engine: &mut dyn Trainer) -> Result<(), Error> {
        engine.write(Slot::ExpAvg, &self.exp_avg)?;
        engine.write(Slot::ExpAvgSq, &self.exp_avg_sq)?;
        Ok(())
    }
}

impl Request {
    /// Settles the shape, the settings and the weights. `vocab_size` is the data's, for a model whose weights are drawn and
    /// whose vocabulary nobody says.
    ///
    /// # Errors
    /// [`Error::Usage`] for what was asked wrongly; the others for files that are not what they should be.
    pub fn start(self, vocab_size: impl FnOnce() -> Result<usize, Error>) -> Result<Start, Error> {
        let Self { kind, variant, config_file, out, begin, settings: flags, shape: flag_shape, lora } = self;
        let (file_settings, file_shape) = match &config_file {
            Some(file) => config_file::load(file)?,
            None => Default::default(),
        };
        let asked = flags.or(file_settings);
        let shape = flag_shape.or(file_shape.clone());
        let named = variant.filter(|variant| file_shape.keeps_to(variant));
        let paths = RunPaths::new(&out.map_or_else(|| default_out(kind, named, config_file.as_deref()), Ok)?)?;
        let start = match begin {
            Begin::Resume => return Start::resume(kind, paths, variant, shape, asked),
            Begin::Fresh { init, overwrite } => {
                if !overwrite {
                    refuse_to_replace(&paths)?;
                }
                let asked = match kind {
                    Kind::Finetune => finetune_defaults(asked, recipe_of(variant).learning_rate, lora.is_some()),
                    Kind::Train | Kind::Distill => asked,
                };
                match init {
                    Init::Random => Start::fresh(kind, paths, variant, shape, asked, vocab_size()?)?,
                    Init::From(from) => {
                        let checkpoint = Checkpoint::load(&from)?;
                        Start::init_from(kind, paths, from, checkpoint, variant, shape, asked)?
                    }
                    Init::Given(from, checkpoint) => {
                        // Of whatever shape it is, whoever names the variant.
                        let shape = shape.or(Shape::from(&checkpoint.config));
                        Start::init_from(kind, paths, from, *checkpoint, variant, shape, asked)?
                    }
                    Init::LayersOf(from, deeper) => {
                        let checkpoint = some_layers(&deeper, &from, shape.clone().or(shape_of(variant)).n_layer)?;
                        Start::init_from(kind, paths, from, checkpoint, variant, shape, asked)?
                    }
                }
            }
        };
        match lora {
            Some(lora) => start.adapting(lora),
            None => Ok(start),
        }
    }
}

impl Start {
    /// Checks the start against the data, and draws the weights if they are to be drawn. `lesson` is what else decides what
    /// the run learns; `teacher` is whom it learns from, and what that is rounded to. This writes only the folders that the run's files
    /// go to, and what its adapters learn beside.
    ///
    /// # Errors
    /// [`Error::Usage`] when the data or the lesson is not the run's or does not fit in memory; [`Error::Io`] for a folder
    /// that cannot be written to.
    pub fn with(
        self,
        device: &dyn Device,
        mut data: Data,
        lesson: Map<String, Value>,
        teacher: Option<(&Config, Quant)>,
    ) -> Result<(Job, Weights), Error> {
        let Self { kind, paths, config, settings, params, adapting, adapter, moments, reached, origin, mut notes } =
            self;
        match &origin {
            Origin::Nothing => {}
            Origin::Checkpoint(from, trained_with, chat) => {
                check_tokenizers(from, trained_with, &data.path, &data.tokenizer)?;
                data.chat = data.chat.or_else(|| chat.clone());
            }
            Origin::State(before) => {
                // The lesson first: what it counts as learned depends on it.
                check_lesson(&before.lesson, &lesson)?;
                check_data(kind, &before.data, &data)?;
                data.chat = data.chat.or_else(|| before.chat.clone());
            }
        }
        let moments_held = moments.as_ref().map_or(0, |moments| 2 * moments.exp_avg.len());
        let teachers = teacher.map_or(0, |(teacher, _)| ParamList::new(teacher).total());
        let held = 4 * (params.as_ref().map_or(0, Vec::len) + moments_held + teachers) as u64;
        let batch_size = settings.batch_size;
        let workload = match (&adapting, teacher) {
            (Some(adapting), _) => Workload::Adapt { batch_size, lora: &adapting.lora },
            (None, Some((teacher, quant))) => Workload::Distill { batch_size, teacher, quant },
            (None, None) => Workload::Train { batch_size },
        };
        let (bytes, note) = memory::check(device, &config, workload, &settings, held)?;
        notes.extend(note);
        if data.identity.val_tokens == 0 && settings.patience > 0 {
            notes.push("nothing is held out, so there is no validation loss for --patience to wait for".into());
        }
        let held = paths.prepare()?;
        let params = params.unwrap_or_else(|| ParamList::new(&config).init(settings.seed));
        if adapting.is_some() && !matches!(origin, Origin::State(_)) {
            // Kept beside the state, so that the run can go on whatever becomes of the file that it came from.
            checkpoint::save(&paths.base, &config, &params, &CheckpointMeta::default())?;
        }
        let weights = Weights { params, adapter, moments };
        Ok((Job { kind, config, settings, bytes, paths, held, data, lesson, adapting, reached, notes }, weights))
    }
}

impl Job {
    /// Whether nothing is left to do: all steps are done and evaluated, or the run stopped early.
    pub fn is_finished(&self) -> bool {
        self.reached.step > 0
            && self.reached.unevaluated.is_none()
            && (self.reached.step == self.settings.max_iters || self.reached.is_stale(self.settings.patience))
    }

    /// Writes the model of a finished run again if the last save was cut off between the state and the model. One that is whole stays as
    /// it is, with what was measured on it since.
    ///
    /// # Errors
    /// As [`Job::save_model`].
    pub fn complete(&self, engine: &dyn Trainer) -> Result<(), Error> {
        // The best model was written before the state that knows of it.
        let keeps_best = self.settings.keep_best && self.reached.best_val_loss.is_some();
        let whole = || Checkpoint::load(&self.paths.model).is_ok_and(|model| model.meta.iter_num == self.reached.step);
        if keeps_best || whole() { Ok(()) } else { self.save_model(engine, &self.reached) }
    }

    /// Writes the model as it is after `reached.step` updates, adapters merged; and these themselves, if there are any.
    ///
    /// # Errors
    /// [`Error::Model`] if it cannot be written; the old file is then as it was.
    pub fn save_model(&self, engine: &dyn Trainer, reached: &Reached) -> Result<(), Error> {
        // By way of text, so that 3e-4 stays 0.0003 where f32 becomes f64.
        let json = serde_json::to_string(&self.settings).expect("numbers and names serialise");
        let mut training: Map<String, Value> = serde_json::from_str(&json).expect("what serialises is JSON");
        let Data { identity, tokenizer, chat, source, .. } = self.data.clone();
        let DataIdentity { train_tokens, val_tokens, sha256 } = identity;
        let data =
            json!({ "source": source, "train_tokens": train_tokens, "val_tokens": val_tokens, "sha256": sha256 });
        training.insert("data".into(), data);
        if self.kind != Kind::Train {
            training.insert(self.kind.name().into(), self.lesson.clone().into());
        }
        if let Some(Adapting { lora, .. }) = &self.adapting {
            training.insert("lora".into(), serde_json::to_value(lora).expect("names and numbers serialise"));
        }
        let best_val_loss = reached.best_val_loss.map(f64::from);
        let meta = CheckpointMeta {
            iter_num: reached.step,
            best_val_loss,
            tokenizer,
            chat,
            training,
            evaluations: Map::new(),
        };
        if let Some(Adapting { lora, base, .. }) = &self.adapting {
            write_adapter(&self.paths.adapter, &self.config, lora, &engine.read(Slot::Params), base)?;
        }
        Ok(checkpoint::save(&self.paths.model, &self.config, &engine.merged(), &meta)?)
    }
}

/// The name that a run's model has if nobody says.
fn default_out(kind: Kind, variant: Option<&Variant>, config_file: Option<&Path>) -> Result<PathBuf, Error> {
    let name = match (variant, config_file.and_then(Path::file_stem)) {
        (Some(variant), _) => variant.name.into(),
        (None, Some(stem)) => stem.to_string_lossy(),
        (None, None) => {
            let flag = kind.variant_flag();
            let what = format!("which model? Name a {flag}, a shape in a --config file, or the file with --out");
            return Err(Error::Usage(what));
        }
    };
    Ok(format!("{}{name}_model.pt", kind.prefix()).into())
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

/// Refuses a model whose tokenizer is not that of the data, as far as both are known.
pub(crate) fn check_tokenizers(from: &Path, ours: &TokenizerRef, data: &Path, its: &TokenizerRef) -> Result<(), Error> {
    if ours == its || [ours, its].contains(&&TokenizerRef::Unknown) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} was trained with another tokenizer than the one that made {}: the same ids stand for other text",
        from.display(),
        data.display()
    )))
}

fn check_data(kind: Kind, before: &DataIdentity, Data { path, identity: now, .. }: &Data) -> Result<(), Error> {
    if before == now {
        return Ok(());
    }
    let what = if before.sha256 == now.sha256 {
        format!(
            "the run was trained on {} tokens and validated on {} of {}, and would now be on {} and {}: leave \
             --val_fraction and val.bin as they were",
            before.train_tokens,
            before.val_tokens,
            path.display(),
            now.train_tokens,
            now.val_tokens
        )
    } else {
        format!(
            "{} is not the data that the run was trained on (its SHA-256 begins with {}, not {}); to train on other \
             data, start a run with {}",
            path.display(),
            &now.sha256.get(..8).unwrap_or_default(),
            &before.sha256.get(..8).unwrap_or_default(),
            kind.init_flag()
        )
    };
    Err(Error::Usage(what))
}

/// A part of a lesson as messages name it: with the flag, where it has another name.
fn called(name: &str) -> &str {
    match name {
        "teacher_sha256" => "teacher_sha256 (of the weights of --teacher_model_path)",
        "teacher_top_k" => "teacher_top_k (of --teacher_cache)",
        name => name,
    }
}

/// A run that would learn something else is another run.
fn check_lesson(before: &Map<String, Value>, now: &Map<String, Value>) -> Result<(), Error> {
    let of = |lesson: &Map<String, Value>, name: &str| match lesson.get(name) {
        None | Some(Value::Null) => "none".into(),
        // Of a hash the beginning is enough.
        Some(Value::String(text)) => text.chars().take(16).collect(),
        Some(value) => value.to_string(),
    };
    let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
    // What an older version did not ask about was nothing.
    let said = |lesson: &Map<String, Value>, name: &String| lesson.get(name).cloned().unwrap_or_default();
    let differences: Vec<String> = names
        .filter(|name| said(before, name) != said(now, name))
        .map(|name| format!("{} is {} there, not {}", called(name), of(before, name), of(now, name)))
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "the run that is to go on learns something else: {}; leave it as it was, or start another run with --out",
        differences.join("; ")
    )))
}
