//! A run that is ready to start: the resolved specification, checked against the data.
//!
//! All user errors are found by now, within seconds and before any file changes: settings out of range, contradictory shapes,
//! changed data, a model that does not fit in memory, a folder that is not writable.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ngen3_cluster::World;
use ngen3_engine::{ComputeInfo, Device, Quant, Slot, Trainer, Workload};
use ngen3_model::hf::write_adapter;
use ngen3_model::{ChatFormat, Checkpoint, CheckpointMeta, Config, LoraList, ParamList, TokenizerRef, checkpoint};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::hash::sha256_of;
use crate::prepare::memory;
use crate::prepare::resolve::{Moments, Origin, Resolved};
use crate::run_files::record::{AdapterRecord, DataIdentity, ObjectiveRecord, RunKind, RunRecord, TrainProgress};
use crate::{Error, OptimizerKind, RunLock, RunPaths, TrainSettings, ranks};

/// Description of a run's data, for files and messages.
#[derive(Clone, Debug, PartialEq)]
pub struct DataInfo {
    /// Path or name of the data, for messages.
    pub path: PathBuf,
    /// Token counts and SHA-256, compared on resume.
    pub identity: DataIdentity,
    /// Tokenizer of the token ids; saved with the model.
    pub tokenizer: TokenizerRef,
    /// Chat format of conversations; saved with the model. `None` keeps the model's own.
    pub chat: Option<ChatFormat>,
    /// Origin of the text, for the model's metadata.
    pub source: Vec<String>,
}

/// A run that is ready to start.
#[derive(Debug)]
pub struct Job {
    /// The command.
    pub kind: RunKind,
    /// The model's shape.
    pub config: Config,
    /// Training settings.
    pub settings: TrainSettings,
    /// Estimated memory in bytes.
    pub bytes: u64,
    /// Paths of its files.
    pub paths: RunPaths,
    /// Lock that keeps other runs from these files.
    pub lock: RunLock,
    /// The data.
    pub data: DataInfo,
    /// The objective; cannot change on resume.
    pub objective: ObjectiveRecord,
    /// LoRA adapters, if only they are trained.
    pub adapters: Option<AdapterRecord>,
    /// Progress so far.
    pub progress: TrainProgress,
    /// Notes to show before it starts, one line each.
    pub notes: Vec<String>,
    /// Ranks that train together.
    pub world: Arc<dyn World>,
    /// Share of the parameters that each rank updates.
    pub shares: Vec<Range<usize>>,
    /// Outer momentum of this rank's share, `[share]`, if ranks exchange what they learned every few steps only.
    pub outer_momentum: Vec<f32>,
}

/// Initial parameters and optimizer state.
#[derive(Clone, Debug)]
pub struct InitialWeights {
    /// Model parameters, `[total]`, in the order of [`ParamList`].
    pub params: Vec<f32>,
    /// LoRA parameters in the order of [`ngen3_model::LoraList`], if only adapters are trained.
    pub adapter: Option<Vec<f32>>,
    /// AdamW's moments of a resumed run.
    pub moments: Option<Moments>,
}

impl Resolved {
    /// Checks the run against its data, its objective and the memory, and initialises the weights of a run from scratch.
    /// `teacher` is the shape and the quantisation of the teacher, if any. Writes only the run's folders, and the base model of
    /// its adapters.
    ///
    /// # Errors
    /// [`Error::Usage`] if the data or the objective of a resumed run changed, or the run does not fit in memory; [`Error::Io`]
    /// for a folder that is not writable.
    pub fn into_job(
        self,
        device: &dyn Device,
        mut data: DataInfo,
        objective: ObjectiveRecord,
        teacher: Option<(&Config, Quant)>,
    ) -> Result<(Job, InitialWeights), Error> {
        let Self {
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
            mut notes,
            world,
        } = self;
        match &origin {
            Origin::Scratch => {}
            Origin::Checkpoint(from, trained_with, chat) => {
                check_tokenizers(from, trained_with, &data.path, &data.tokenizer)?;
                data.chat = data.chat.or_else(|| chat.clone());
            }
            Origin::State(before) => {
                // The objective first: the number of training tokens depends on it.
                objective.check_unchanged(&before.objective)?;
                check_data(kind, &before.data, &data)?;
                data.chat = data.chat.or_else(|| before.chat.clone());
            }
        }
        let moments_held = moments.as_ref().map_or(0, |moments| 2 * moments.exp_avg.len());
        let teachers = teacher.map_or(0, |(teacher, _)| ParamList::new(teacher).total());
        let held = 4 * (params.as_ref().map_or(0, Vec::len) + moments_held + teachers) as u64;
        let batch_size = settings.batch_size;
        let workload = match (&adapters, teacher) {
            (Some(adapters), _) => Workload::Adapt { batch_size, lora: &adapters.lora },
            (None, Some((teacher, quant))) => Workload::Distill { batch_size, teacher, quant },
            (None, None) => Workload::Train { batch_size },
        };
        let muon = settings.optimizer == OptimizerKind::Muon;
        let shares = match &adapters {
            None => ranks::shares(&*world, ParamList::new(&config).iter(), muon),
            Some(adapters) => ranks::shares(&*world, LoraList::new(&config, &adapters.lora)?.iter(), false),
        };
        let extra = ranks::extra_bytes(&*world, &shares, &settings);
        let (bytes, note) = memory::check(device, &config, workload, &settings, held, extra)?;
        notes.extend(note);
        if data.identity.val_tokens == 0 && settings.patience > 0 {
            notes.push("--patience has no effect: nothing is held out for validation".into());
        }
        notes.extend(settings.notes());
        if adapters.is_some() && settings.optimizer == OptimizerKind::Muon {
            notes.push("adapters are updated by adamw: muon is for whole matrices".into());
        }
        let facts = [
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("model", text_of(&config)),
            ("settings", text_of(&TrainSettings { threads: 0, ..settings.clone() })),
            ("data", text_of(&data.identity)),
            ("objective", text_of(&objective.to_json())),
            ("step", progress.step.to_string()),
        ];
        // Before the first file changes, and after all ranks have read those that are there.
        ranks::check_same(&*world, &facts)?;
        let lock = if world.is_root() { paths.prepare()? } else { RunLock::default() };
        let params = params.unwrap_or_else(|| ParamList::new(&config).init(settings.seed));
        if world.is_root() && adapters.is_some() && !matches!(origin, Origin::State(_)) {
            // Saved beside the state, so that resuming does not depend on the original file.
            checkpoint::save(&paths.base, &config, &params, &CheckpointMeta::default())?;
        }
        let weights = InitialWeights { params, adapter: adapter_params, moments };
        let share = shares[world.rank()].clone();
        let outer_momentum = match (settings.sync_every, outer_momentum) {
            (1, _) => Vec::new(),
            (_, Some(all)) => all[share].to_vec(),
            (_, None) => vec![0.0; share.len()],
        };
        let job = Job {
            kind,
            config,
            settings,
            bytes,
            paths,
            lock,
            data,
            objective,
            adapters,
            progress,
            notes,
            world,
            shares,
            outer_momentum,
        };
        Ok((job, weights))
    }
}

impl Job {
    /// Loads the model on a device: its weights, its adapters, and the moments of a resumed run.
    ///
    /// # Errors
    /// [`Error::Engine`] if the device cannot hold it.
    pub fn open(&self, device: &dyn Device, weights: InitialWeights) -> Result<Box<dyn Trainer>, Error> {
        let InitialWeights { params, adapter, moments } = weights;
        let mut trainer = device.open(self.config.clone(), params, self.settings.options())?;
        if let (Some(adapters), Some(adapter)) = (&self.adapters, adapter) {
            trainer.adapt(&adapters.lora, adapter)?;
        }
        if self.world.size() > 1 {
            let ComputeInfo { dtype, kernels, .. } = trainer.info();
            let mut facts = vec![("dtype", dtype.to_string()), ("weights", sha256_of(&trainer.read(Slot::Params)))];
            if self.settings.sync_every == 1 {
                facts.push(("processor", kernels.to_owned()));
                trainer.set_share(self.updated())?;
            }
            ranks::check_same(&*self.world, &facts)?;
        }
        if let Some(Moments { exp_avg, exp_avg_sq }) = moments {
            trainer.write(Slot::ExpAvg, &exp_avg[self.updated()])?;
            trainer.write(Slot::ExpAvgSq, &exp_avg_sq[self.updated()])?;
        }
        Ok(trainer)
    }

    /// Returns the parameters that this rank updates: its share, or all, if it trains some steps by itself.
    pub(crate) fn updated(&self) -> Range<usize> {
        let total = self.shares.last().map_or(0, |last| last.end);
        if self.settings.sync_every > 1 { 0..total } else { self.shares[self.world.rank()].clone() }
    }

    /// Returns `true` if nothing is left to do: all steps are done and evaluated, or the run stopped early.
    pub fn is_finished(&self) -> bool {
        let TrainProgress { step, unevaluated, .. } = &self.progress;
        let ended = *step == self.settings.max_iters || self.progress.is_stale(self.settings.patience);
        *step > 0 && unevaluated.is_none() && ended
    }

    /// Returns the record of the run at `progress`, with its `settings` by then.
    pub(crate) fn record(&self, settings: &TrainSettings, progress: &TrainProgress) -> RunRecord {
        RunRecord {
            kind: self.kind,
            config: self.config.clone(),
            settings: settings.clone(),
            progress: progress.clone(),
            data: self.data.identity.clone(),
            objective: self.objective.clone(),
            adapters: self.adapters.clone(),
            chat: self.data.chat.clone(),
        }
    }

    /// Rewrites the model of a finished run if the last save was interrupted between the state and the model. An intact model is
    /// left unchanged, with the evaluations recorded in it since.
    ///
    /// # Errors
    /// As [`Job::save_model`].
    pub fn complete(&self, trainer: &dyn Trainer) -> Result<(), Error> {
        if !self.world.is_root() {
            return Ok(());
        }
        // The best model is written before the state that records it.
        let keeps_best = self.settings.keep_best && self.progress.best_val_loss.is_some();
        let whole = || Checkpoint::load(&self.paths.model).is_ok_and(|model| model.meta.iter_num == self.progress.step);
        if keeps_best || whole() { Ok(()) } else { self.save_model(trainer, &self.settings, &self.progress) }
    }

    /// Writes the model after `progress.step` updates with these settings, with adapters merged, and the adapters, if any; on rank 0
    /// only.
    ///
    /// # Errors
    /// [`Error::Model`] if it cannot be written; the old file is then unchanged.
    pub fn save_model(
        &self,
        trainer: &dyn Trainer,
        settings: &TrainSettings,
        progress: &TrainProgress,
    ) -> Result<(), Error> {
        if !self.world.is_root() {
            return Ok(());
        }
        // Converted through text, so that 3e-4 stays 0.0003 when f32 becomes f64.
        let mut training: Map<String, Value> =
            serde_json::from_str(&text_of(settings)).expect("what serialises is JSON");
        let DataInfo { identity, tokenizer, chat, source, .. } = self.data.clone();
        let DataIdentity { train_tokens, val_tokens, sha256 } = identity;
        let data =
            json!({ "source": source, "train_tokens": train_tokens, "val_tokens": val_tokens, "sha256": sha256 });
        training.insert("data".into(), data);
        if self.kind != RunKind::Train {
            training.insert(self.kind.name().into(), self.objective.to_json().into());
        }
        if let Some(AdapterRecord { lora, .. }) = &self.adapters {
            training.insert("lora".into(), serde_json::to_value(lora).expect("names and numbers serialise"));
        }
        let best_val_loss = progress.best_val_loss.map(f64::from);
        let meta = CheckpointMeta {
            iter_num: progress.step,
            best_val_loss,
            tokenizer,
            chat,
            training,
            evaluations: Map::new(),
            notes: Vec::new(),
        };
        let save_adapter = || match &self.adapters {
            Some(AdapterRecord { lora, base, .. }) => {
                write_adapter(&self.paths.adapter, &self.config, lora, &trainer.read(Slot::Params), base)
            }
            None => Ok(()),
        };
        // A model of step 0 tells that the run was not begun; the model of another step that the adapters beside it are no older.
        let is_first = progress.step == 0;
        if !is_first {
            save_adapter()?;
        }
        checkpoint::save(&self.paths.model, &self.config, &trainer.merged(), &meta)?;
        if is_first {
            save_adapter()?;
        }
        Ok(())
    }
}

/// Formats as JSON.
fn text_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names and numbers serialise")
}

/// Fails if the tokenizers of a model and of the data are known and differ.
pub(crate) fn check_tokenizers(from: &Path, ours: &TokenizerRef, data: &Path, its: &TokenizerRef) -> Result<(), Error> {
    if ours.agrees_with(its) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} was trained with another tokenizer than the one that made {}; tokenize the data with the model's",
        from.display(),
        data.display()
    )))
}

fn check_data(
    kind: RunKind,
    before: &DataIdentity,
    DataInfo { path, identity: now, .. }: &DataInfo,
) -> Result<(), Error> {
    if before == now {
        return Ok(());
    }
    let what = if before.sha256 == now.sha256 {
        format!(
            "{}: expected {} training and {} validation tokens, as before, got {} and {}; keep --val_fraction and \
             val.bin unchanged",
            path.display(),
            before.train_tokens,
            before.val_tokens,
            now.train_tokens,
            now.val_tokens
        )
    } else {
        format!(
            "{}: expected the data of the resumed run (SHA-256 {}…), got {}…; to train on other data, start a new run \
             with {}",
            path.display(),
            &before.sha256.get(..8).unwrap_or_default(),
            &now.sha256.get(..8).unwrap_or_default(),
            kind.init_flag()
        )
    };
    Err(Error::Usage(what))
}
