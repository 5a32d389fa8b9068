//! Next-token prediction on a token file, at random positions.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_cluster::World;
use ngen3_data::{BatchSampler, TokenFile, Tokenizer};
use ngen3_engine::{Batch, Sequence, Trainer};
use ngen3_model::{Checkpoint, Config, TokenizerRef};

use crate::hash::sha256;
use crate::objective::{Evaluation, Micro, Objective, StepOutput};
use crate::objectives::held_out::{HeldOutText, ValSums};
use crate::prepare::job::{DataInfo, check_tokenizers};
use crate::ranks::dealt;
use crate::run_files::record::DataIdentity;
use crate::{Error, TrainSettings};

/// Next-token prediction on a token file, and evaluation on its held-out part.
#[derive(Debug)]
pub struct TokenObjective {
    sampler: BatchSampler,
    eval_iters: u64,
    sequence: Sequence,
    tokenizer: TokenizerRef,
    /// Held-out text, if the tokenizer is known.
    text: Option<HeldOutText>,
    /// The latest batch.
    batch: Batch,
}

impl TokenObjective {
    /// Creates the objective for a model of shape `config`.
    ///
    /// # Errors
    /// As [`BatchSampler::new`]; [`Error::Data`] for a token outside the model's vocabulary, or a damaged tokenizer;
    /// [`Error::Usage`] if the model's vocabulary is smaller than the tokenizer's.
    pub fn new(data: TokenFile, config: &Config, settings: &TrainSettings) -> Result<Self, Error> {
        let TrainSettings { batch_size, val_fraction, seed, eval_iters, .. } = *settings;
        let sampler = BatchSampler::new(data, config.block_size, batch_size, val_fraction, seed)?;
        sampler.check_vocab(config.vocab_size)?;
        let sequence = Sequence { len: config.block_size, continues: false };
        let tokenizer = tokenizer_for(config, sampler.data())?;
        let text = tokenizer.as_ref().filter(|_| sampler.has_validation());
        let text = text.map(|tokenizer| HeldOutText::new(tokenizer, |counter| sampler.val_text_size(counter)));
        let tokenizer = reference(tokenizer);
        Ok(Self { sampler, eval_iters, sequence, tokenizer, text, batch: Batch::default() })
    }

    /// Returns the sampler of the batches.
    pub fn sampler(&self) -> &BatchSampler {
        &self.sampler
    }

    /// Describes the data for the run's record.
    ///
    /// # Errors
    /// [`Error::Data`] for a damaged file.
    pub fn describe(&self) -> Result<DataInfo, Error> {
        let file = self.sampler.data();
        file.verify()?;
        let described = file.path().file_name().is_some_and(|name| name == "data.bin");
        let sha256 = match file.meta().filter(|_| described) {
            Some(meta) => meta.sha256.clone(),
            None => sha256(file.path())?,
        };
        // Only the name of a bare file: its path is private, and the model may be published.
        let name = || vec![file.path().file_name().unwrap_or_default().to_string_lossy().into_owned()];
        let source = file.meta().map_or_else(name, |meta| meta.source.clone());
        let (train_tokens, val_tokens) = (self.sampler.train_len() as u64, self.sampler.val_len() as u64);
        let identity = DataIdentity { train_tokens, val_tokens, sha256 };
        let chat = file.meta().and_then(|meta| meta.chat.as_ref()).map(|chat| chat.format.clone());
        Ok(DataInfo { path: file.path().into(), identity, tokenizer: self.tokenizer.clone(), chat, source })
    }

    /// Formats notes on the data, one line each: doubts on its tokenizer, and on the bytes of its held-out text.
    pub(crate) fn notes(&self) -> Vec<String> {
        let file = self.sampler.data();
        let doubt = if self.tokenizer == TokenizerRef::Gpt2 { file.doubt() } else { None };
        let bytes = match (self.sampler.has_validation(), &self.text) {
            (false, _) => None,
            (true, Some(_)) => file.missing_note(),
            (true, None) => Some(format!(
                "{}: its tokenizer is unknown, so the validation loss is not given in bits per byte",
                file.path().display()
            )),
        };
        doubt.into_iter().chain(bytes).collect()
    }

    /// Training micro-batch `index` of a step, drawn from the seed and both numbers.
    pub fn train_batch(&mut self, step: u64, index: u64) -> &Batch {
        let Self { sampler, sequence, batch, .. } = self;
        sampler.train_batch(step, index, &mut batch.inputs, &mut batch.targets);
        batch.sequences.resize(batch.inputs.len() / sequence.len, *sequence);
        batch
    }

    /// Batch of the given windows of the training part; see [`BatchSampler::windows`].
    pub fn window_batch(&mut self, windows: &[usize]) -> &Batch {
        let Self { sampler, sequence, batch, .. } = self;
        sampler.window_batch(windows, &mut batch.inputs, &mut batch.targets);
        batch.sequences.resize(windows.len(), *sequence);
        batch
    }

    /// Validation batch `index`, or `None` if nothing is held out.
    pub fn val_batch(&mut self, index: u64) -> Option<&Batch> {
        if !self.sampler.has_validation() {
            return None;
        }
        let Self { sampler, sequence, batch, .. } = self;
        sampler.val_batch(index, &mut batch.inputs, &mut batch.targets);
        batch.sequences.resize(batch.inputs.len() / sequence.len, *sequence);
        Some(batch)
    }
}

impl Objective for TokenObjective {
    fn training_step(&mut self, trainer: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error> {
        let batch = self.train_batch(micro.step, micro.index);
        let loss = trainer.forward_backward(batch, micro.backward)?;
        Ok(StepOutput { loss, parts: Vec::new(), tokens: batch.inputs.len() as u64 })
    }

    fn evaluate(
        &mut self,
        trainer: &mut dyn Trainer,
        world: &dyn World,
        stop: &AtomicBool,
    ) -> Result<Evaluation, Error> {
        let mut sums = ValSums::default();
        for index in dealt(world, self.eval_iters) {
            if self.val_batch(index).is_none() {
                break;
            }
            if stop.load(Ordering::Relaxed) {
                sums.stop();
                break;
            }
            sums.add(trainer, &self.batch, 1.0, self.text.as_ref())?;
        }
        Ok(sums.evaluation(world, self.text.as_ref()))
    }

    fn probe(&mut self, trainer: &mut dyn Trainer) -> Result<f32, Error> {
        // Without held-out data, `batch` is still the latest training batch.
        self.val_batch(0);
        Ok(trainer.loss(&self.batch)?)
    }
}

/// Checks that the model in `from` fits a token file: its vocabulary is large enough, and its tokenizer, if known, is that of
/// the file.
///
/// # Errors
/// [`Error::Usage`] naming the mismatch; [`Error::Data`] for a damaged tokenizer.
pub fn check_reads(from: &Path, model: &Checkpoint, file: &TokenFile) -> Result<(), Error> {
    check_tokenizers(from, &model.meta.tokenizer, file.path(), &reference(tokenizer_for(&model.config, file)?))
}

/// Returns the reference of a tokenizer that may be unknown.
fn reference(tokenizer: Option<Tokenizer>) -> TokenizerRef {
    tokenizer.map_or(TokenizerRef::Unknown, |tokenizer| tokenizer.reference())
}

/// Loads the data's tokenizer, which is saved with the model; `None` if it is unknown.
fn tokenizer_for(config: &Config, file: &TokenFile) -> Result<Option<Tokenizer>, Error> {
    let needed = file.vocab_size()?;
    if config.vocab_size < needed {
        // Every token of a bare file fits the model, so it was not made by GPT-2's tokenizer, the default.
        if file.is_assumed() {
            return Ok(None);
        }
        return Err(Error::Usage(format!(
            "{}: expected a vocabulary of at most {} tokens, the model's, got {needed}",
            file.path().display(),
            config.vocab_size
        )));
    }
    Ok(Some(file.tokenizer()?))
}
