//! What a run is to do, settled before it starts: flags, files and data become one [`Job`].
//!
//! Everything that can be wrong is found here, in seconds and before any file changes: settings out of range, shapes that
//! contradict each other, other data than before, a folder that cannot be written to. Read [`Job::prepare`] first; then
//! [`Start`], the three ways to begin.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ngen3_data::{BatchSampler, TokenFile};
use ngen3_engine::{Engine, Slot};
use ngen3_model::{CheckpointMeta, Config, ParamList, TokenizerRef, Variant, checkpoint};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::config_file::{self, Shape};
use crate::start::{Origin, Start};
use crate::state::DataIdentity;
use crate::{Error, Overrides, RunPaths, TrainSettings, memory};

/// What somebody asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The named shape, with its recipe.
    pub variant: Option<&'static Variant>,
    /// A TOML file of settings and shape.
    pub config_file: Option<PathBuf>,
    /// The token file.
    pub data: PathBuf,
    /// Where the model goes; `VARIANT_model.pt` (or, without a variant, `CONFIG_model.pt`) if nobody says.
    pub out: Option<PathBuf>,
    /// Where the weights come from.
    pub begin: Begin,
    /// Settings given on the command line; they come before the file's.
    pub settings: Overrides,
    /// Shape given on the command line; it comes before the file's, and that before the variant's.
    pub shape: Shape,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Drawn at random, or read from a checkpoint, for a run that starts at step 0.
    Fresh {
        /// A checkpoint to start from.
        init_from: Option<PathBuf>,
        /// Whether a model that is there already may be replaced.
        overwrite: bool,
    },
    /// From the state of the same run, which goes on.
    Resume,
}

/// A run that is ready to start.
#[derive(Debug)]
pub struct Job {
    /// The model's shape.
    pub config: Config,
    /// How it is trained.
    pub settings: TrainSettings,
    /// Where it goes.
    pub paths: RunPaths,
    /// Where its batches come from.
    pub sampler: BatchSampler,
    /// What tells its data from others.
    pub data: DataIdentity,
    /// What made the token ids; it travels with the model.
    pub tokenizer: TokenizerRef,
    /// Updates done.
    pub step: u64,
    /// Lowest validation loss so far.
    pub best_val_loss: Option<f32>,
    /// Seconds of training so far.
    pub elapsed_s: f64,
    /// What is good to know before it starts, each a sentence.
    pub notes: Vec<String>,
}

/// The numbers that a run starts from.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[total]`, in the order of [`ParamList`].
    pub params: Vec<f32>,
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
    pub fn restore(self, engine: &mut dyn Engine) -> Result<(), Error> {
        engine.write(Slot::ExpAvg, &self.exp_avg)?;
        engine.write(Slot::ExpAvgSq, &self.exp_avg_sq)?;
        Ok(())
    }
}

impl Job {
    /// Settles a run, checks everything that can be checked, and reads or draws the weights it starts from. The only
    /// thing it writes are the folders that the run's files go to.
    ///
    /// # Errors
    /// [`Error::Usage`] for what was asked wrongly; the others for files that are not what they should be.
    pub fn prepare(request: Request) -> Result<(Self, Weights), Error> {
        let Request { variant, config_file, data: path, out, begin, settings: flags, shape: flag_shape } = request;
        let (file_settings, file_shape) = match &config_file {
            Some(file) => config_file::load(file)?,
            None => Default::default(),
        };
        let asked = flags.or(file_settings);
        let shape = flag_shape.or(file_shape);
        let paths = RunPaths::new(&out.map_or_else(|| default_out(variant, config_file.as_deref()), Ok)?)?;

        let file = TokenFile::open(&path)?;
        let start = match begin {
            Begin::Resume => Start::resume(&paths, variant, shape, asked)?,
            Begin::Fresh { init_from, overwrite } => {
                if !overwrite {
                    refuse_to_replace(&paths)?;
                }
                match init_from {
                    Some(from) => Start::init_from(&from, variant, shape, asked)?,
                    None => Start::fresh(variant, shape, asked, vocab_of(&file)?)?,
                }
            }
        };
        let Start { config, settings, params, moments, step, best_val_loss, elapsed_s, origin, notes } = start;

        let TrainSettings { batch_size, val_fraction, seed, .. } = settings;
        let sampler = BatchSampler::open(&path, config.block_size, batch_size, val_fraction, seed)?;
        sampler.check_vocab(config.vocab_size)?;
        let tokenizer = tokenizer_for(&config, &file)?;
        let data = identify(&sampler)?;
        match origin {
            Origin::Nothing => {}
            Origin::Checkpoint(from, trained_with) => check_tokenizers(&from, &trained_with, &path, &tokenizer)?,
            Origin::State(before) => check_data(&path, &before, &data)?,
        }
        memory::check(&config, batch_size)?;
        paths.prepare()?;
        let params = params.unwrap_or_else(|| ParamList::new(&config).init(seed));
        let weights = Weights { params, moments };
        let job = Self { config, settings, paths, sampler, data, tokenizer, step, best_val_loss, elapsed_s, notes };
        Ok((job, weights))
    }

    /// Whether no step is left to do.
    pub fn is_finished(&self) -> bool {
        self.step > 0 && self.step == self.settings.max_iters
    }

    /// Writes the model as it is after `step` updates.
    ///
    /// # Errors
    /// [`Error::Model`] if it cannot be written; the old file is then as it was.
    pub fn save_model(&self, params: &[f32], step: u64, best_val_loss: Option<f32>) -> Result<(), Error> {
        // By way of text, so that 3e-4 stays 0.0003 where f32 becomes f64.
        let json = serde_json::to_string(&self.settings).expect("numbers and names serialise");
        let mut training: Map<String, Value> = serde_json::from_str(&json).expect("what serialises is JSON");
        training.insert("data".into(), self.describe_data());
        let best_val_loss = best_val_loss.map(f64::from);
        let (tokenizer, chat) = (self.tokenizer.clone(), None);
        let meta = CheckpointMeta { iter_num: step, best_val_loss, tokenizer, chat, training };
        Ok(checkpoint::save(&self.paths.model, &self.config, params, &meta)?)
    }

    /// What the model remembers of its data: where the text came from, how much it is, and its hash.
    fn describe_data(&self) -> Value {
        let file = self.sampler.data();
        // Of a bare file only its name: where it lay is nobody's business who gets the model.
        let name = || vec![file.path().file_name().unwrap_or_default().to_string_lossy().into_owned()];
        let source = file.meta().map_or_else(name, |meta| meta.source.clone());
        let DataIdentity { train_tokens, val_tokens, sha256 } = &self.data;
        json!({ "source": source, "train_tokens": train_tokens, "val_tokens": val_tokens, "sha256": sha256 })
    }
}

/// The name that a run's model has if nobody says.
fn default_out(variant: Option<&Variant>, config_file: Option<&Path>) -> Result<PathBuf, Error> {
    let name = match (variant, config_file.and_then(Path::file_stem)) {
        (Some(variant), _) => variant.name.into(),
        (None, Some(stem)) => stem.to_string_lossy(),
        (None, None) => {
            let what = "which model? Name a --variant, a shape in a --config file, or the file with --out";
            return Err(Error::Usage(what.into()));
        }
    };
    Ok(format!("{name}_model.pt").into())
}

/// A model is hours of work: it is not replaced because somebody typed the same command again.
fn refuse_to_replace(paths: &RunPaths) -> Result<(), Error> {
    for path in [&paths.model, &paths.state] {
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

/// Whether nothing says which tokenizer made a file: it may be nanoGPT's, of characters or of GPT-2's tokens.
fn is_bare(file: &TokenFile) -> bool {
    file.meta().is_none() && !file.path().with_file_name("tokenizer.json").exists()
}

/// The vocabulary that a model needs for a file, if it is not told another.
fn vocab_of(file: &TokenFile) -> Result<usize, Error> {
    match file.meta() {
        Some(meta) => Ok(meta.vocab_size),
        None => Ok(file.tokenizer()?.vocab_size()),
    }
}

/// The tokenizer that travels with the model: the data's.
fn tokenizer_for(config: &Config, file: &TokenFile) -> Result<TokenizerRef, Error> {
    let needed = vocab_of(file)?;
    if config.vocab_size < needed {
        // Every token of a bare file fits the model, so GPT-2's tokenizer, its default, is not what made it.
        if is_bare(file) {
            return Ok(TokenizerRef::Unknown);
        }
        return Err(Error::Usage(format!(
            "the model's vocabulary of {} is smaller than the {needed} tokens of {}",
            config.vocab_size,
            file.path().display()
        )));
    }
    let tokenizer = file.tokenizer()?;
    Ok(if tokenizer.name() == "gpt2" { TokenizerRef::Gpt2 } else { TokenizerRef::Json(tokenizer.to_json()) })
}

/// What tells the data of this run from others.
fn identify(sampler: &BatchSampler) -> Result<DataIdentity, Error> {
    let file = sampler.data();
    file.verify()?;
    let described = file.path().file_name().is_some_and(|name| name == "data.bin");
    let sha256 = match file.meta().filter(|_| described) {
        Some(meta) => meta.sha256.clone(),
        None => sha256(file.path())?,
    };
    Ok(DataIdentity { train_tokens: sampler.train_len() as u64, val_tokens: sampler.val_len() as u64, sha256 })
}

fn sha256(path: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut bytes).map_err(Error::io("read", path))?;
        if read == 0 {
            break;
        }
        hash.update(&bytes[..read]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn check_tokenizers(from: &Path, ours: &TokenizerRef, data: &Path, theirs: &TokenizerRef) -> Result<(), Error> {
    if ours == theirs || [ours, theirs].contains(&&TokenizerRef::Unknown) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} was trained with another tokenizer than the one that made {}: the same ids stand for other text",
        from.display(),
        data.display()
    )))
}

fn check_data(path: &Path, before: &DataIdentity, now: &DataIdentity) -> Result<(), Error> {
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
             data, start a run with --init_from",
            path.display(),
            &now.sha256.get(..8).unwrap_or_default(),
            &before.sha256.get(..8).unwrap_or_default()
        )
    };
    Err(Error::Usage(what))
}
