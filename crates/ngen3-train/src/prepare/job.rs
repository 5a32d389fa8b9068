//! A run that is ready to start: what was resolved, checked against the data.
//!
//! Everything that can be wrong is found before this, in seconds and before any file changes: settings out of range, shapes that
//! contradict each other, other data than before, a model that does not fit in memory, a folder that cannot be written to.

use std::path::{Path, PathBuf};

use ngen3_engine::{Device, Quant, Slot, Trainer, Workload};
use ngen3_model::hf::write_adapter;
use ngen3_model::{ChatFormat, Checkpoint, CheckpointMeta, Config, ParamList, TokenizerRef, checkpoint};
use serde_json::{Map, Value, json};

use crate::prepare::memory;
use crate::prepare::resolve::{Moments, Origin, Resolved};
use crate::run_files::record::{AdapterRecord, DataIdentity, ObjectiveRecord, RunKind, RunRecord, TrainProgress};
use crate::{Error, RunLock, RunPaths, TrainSettings};

/// The data of a run, as far as its files and messages know it.
#[derive(Clone, Debug, PartialEq)]
pub struct DataInfo {
    /// The file, for messages.
    pub path: PathBuf,
    /// What tells it from others.
    pub identity: DataIdentity,
    /// The tokenizer that made the token ids; it travels with the model.
    pub tokenizer: TokenizerRef,
    /// How conversations become text, if it holds any; it travels with the model, which else keeps its own.
    pub chat: Option<ChatFormat>,
    /// Where the text came from.
    pub source: Vec<String>,
}

/// A run that is ready to start.
#[derive(Debug)]
pub struct Job {
    /// The command.
    pub kind: RunKind,
    /// The model's shape.
    pub config: Config,
    /// How it is trained.
    pub settings: TrainSettings,
    /// Bytes of memory that it takes, about.
    pub bytes: u64,
    /// Its files.
    pub paths: RunPaths,
    /// Keeps other runs from these files.
    pub lock: RunLock,
    /// The data that it trains on.
    pub data: DataInfo,
    /// Everything else that decides what it learns: the same for the whole run.
    pub objective: ObjectiveRecord,
    /// The adapters, if only they learn.
    pub adapters: Option<AdapterRecord>,
    /// Its progress.
    pub progress: TrainProgress,
    /// What is good to know before it starts, each a sentence.
    pub notes: Vec<String>,
}

/// The numbers that a run starts from.
#[derive(Clone, Debug)]
pub struct InitialWeights {
    /// `[total]`, in the order of [`ParamList`].
    pub params: Vec<f32>,
    /// In the order of [`ngen3_model::LoraList`], if only adapters learn.
    pub adapter: Option<Vec<f32>>,
    /// AdamW's moments, of a run that goes on.
    pub moments: Option<Moments>,
}

impl Resolved {
    /// Checks the run against its data and its objective, and draws the weights if they are to be drawn. `teacher` is the shape of
    /// the model that it learns from, and what that is rounded to. This writes only the folders that the run's files go to, and the
    /// model that its adapters learn beside.
    ///
    /// # Errors
    /// [`Error::Usage`] when the data or the objective is not the run's or does not fit in memory; [`Error::Io`] for a folder
    /// that cannot be written to.
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
            progress,
            origin,
            mut notes,
        } = self;
        match &origin {
            Origin::Scratch => {}
            Origin::Checkpoint(from, trained_with, chat) => {
                check_tokenizers(from, trained_with, &data.path, &data.tokenizer)?;
                data.chat = data.chat.or_else(|| chat.clone());
            }
            Origin::State(before) => {
                // The objective first: the number of tokens that it learns depends on it.
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
        let (bytes, note) = memory::check(device, &config, workload, &settings, held)?;
        notes.extend(note);
        if data.identity.val_tokens == 0 && settings.patience > 0 {
            notes.push("nothing is held out, so there is no validation loss for --patience to wait for".into());
        }
        let lock = paths.prepare()?;
        let params = params.unwrap_or_else(|| ParamList::new(&config).init(settings.seed));
        if adapters.is_some() && !matches!(origin, Origin::State(_)) {
            // Kept beside the state, so that the run can go on whatever becomes of the file that it came from.
            checkpoint::save(&paths.base, &config, &params, &CheckpointMeta::default())?;
        }
        let weights = InitialWeights { params, adapter: adapter_params, moments };
        Ok((Job { kind, config, settings, bytes, paths, lock, data, objective, adapters, progress, notes }, weights))
    }
}

impl Job {
    /// Opens the model on a device: its weights, its adapters, and the moments of a run that goes on.
    ///
    /// # Errors
    /// [`Error::Engine`] when the device cannot hold it.
    pub fn open(&self, device: &dyn Device, weights: InitialWeights) -> Result<Box<dyn Trainer>, Error> {
        let InitialWeights { params, adapter, moments } = weights;
        let mut trainer = device.open(self.config.clone(), params, self.settings.options())?;
        if let (Some(adapters), Some(adapter)) = (&self.adapters, adapter) {
            trainer.adapt(&adapters.lora, adapter)?;
        }
        if let Some(Moments { exp_avg, exp_avg_sq }) = moments {
            trainer.write(Slot::ExpAvg, &exp_avg)?;
            trainer.write(Slot::ExpAvgSq, &exp_avg_sq)?;
        }
        Ok(trainer)
    }

    /// True if nothing is left to do: all steps are done and evaluated, or the run stopped early.
    pub fn is_finished(&self) -> bool {
        let TrainProgress { step, unevaluated, .. } = &self.progress;
        let ended = *step == self.settings.max_iters || self.progress.is_stale(self.settings.patience);
        *step > 0 && unevaluated.is_none() && ended
    }

    /// The record of the run when it has come so far.
    pub(crate) fn record(&self, progress: &TrainProgress) -> RunRecord {
        RunRecord {
            kind: self.kind,
            config: self.config.clone(),
            settings: self.settings.clone(),
            progress: progress.clone(),
            data: self.data.identity.clone(),
            objective: self.objective.clone(),
            adapters: self.adapters.clone(),
            chat: self.data.chat.clone(),
        }
    }

    /// Writes the model of a finished run again if the last save was cut off between the state and the model. One that is whole stays as
    /// it is, with what was measured on it since.
    ///
    /// # Errors
    /// As [`Job::save_model`].
    pub fn complete(&self, trainer: &dyn Trainer) -> Result<(), Error> {
        // The best model was written before the state that knows of it.
        let keeps_best = self.settings.keep_best && self.progress.best_val_loss.is_some();
        let whole = || Checkpoint::load(&self.paths.model).is_ok_and(|model| model.meta.iter_num == self.progress.step);
        if keeps_best || whole() { Ok(()) } else { self.save_model(trainer, &self.progress) }
    }

    /// Writes the model as it is after `progress.step` updates, adapters merged; and these themselves, if there are any.
    ///
    /// # Errors
    /// [`Error::Model`] if it cannot be written; the old file is then as it was.
    pub fn save_model(&self, trainer: &dyn Trainer, progress: &TrainProgress) -> Result<(), Error> {
        // By way of text, so that 3e-4 stays 0.0003 where f32 becomes f64.
        let json = serde_json::to_string(&self.settings).expect("numbers and names serialise");
        let mut training: Map<String, Value> = serde_json::from_str(&json).expect("what serialises is JSON");
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
        };
        if let Some(AdapterRecord { lora, base, .. }) = &self.adapters {
            write_adapter(&self.paths.adapter, &self.config, lora, &trainer.read(Slot::Params), base)?;
        }
        Ok(checkpoint::save(&self.paths.model, &self.config, &trainer.merged(), &meta)?)
    }
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
