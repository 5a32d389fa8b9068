//! Next-token prediction on a token file, at places drawn at random.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_data::{BatchSampler, TokenFile};
use ngen3_engine::{Batch, Sequence, Trainer};
use ngen3_model::{Checkpoint, Config, TokenizerRef};

use crate::hash::sha256;
use crate::objective::{Evaluation, Micro, Objective, StepOutput};
use crate::prepare::job::{DataInfo, check_tokenizers};
use crate::run_files::record::DataIdentity;
use crate::{Error, TrainSettings};

/// A token file to train on, with the part of it that is held out.
#[derive(Debug)]
pub struct TokenObjective {
    sampler: BatchSampler,
    eval_iters: u64,
    sequence: Sequence,
    /// The latest batch.
    batch: Batch,
}

impl TokenObjective {
    /// Batches of a token file for a model that is to learn from it.
    ///
    /// # Errors
    /// As [`BatchSampler::new`]; [`Error::Data`] for a token outside the model's vocabulary.
    pub fn new(data: TokenFile, config: &Config, settings: &TrainSettings) -> Result<Self, Error> {
        let TrainSettings { batch_size, val_fraction, seed, eval_iters, .. } = *settings;
        let sampler = BatchSampler::new(data, config.block_size, batch_size, val_fraction, seed)?;
        sampler.check_vocab(config.vocab_size)?;
        let sequence = Sequence { len: config.block_size, continues: false };
        Ok(Self { sampler, eval_iters, sequence, batch: Batch::default() })
    }

    /// Where the batches come from.
    pub fn sampler(&self) -> &BatchSampler {
        &self.sampler
    }

    /// The data as a run records it.
    ///
    /// # Errors
    /// [`Error::Usage`] when the model's vocabulary is smaller than the tokenizer's; the others for files that are damaged.
    pub fn describe(&self, config: &Config) -> Result<DataInfo, Error> {
        let file = self.sampler.data();
        let tokenizer = tokenizer_for(config, file)?;
        file.verify()?;
        let described = file.path().file_name().is_some_and(|name| name == "data.bin");
        let sha256 = match file.meta().filter(|_| described) {
            Some(meta) => meta.sha256.clone(),
            None => sha256(file.path())?,
        };
        // Of a bare file only its name: where it lay is nobody's business who gets the model.
        let name = || vec![file.path().file_name().unwrap_or_default().to_string_lossy().into_owned()];
        let source = file.meta().map_or_else(name, |meta| meta.source.clone());
        let (train_tokens, val_tokens) = (self.sampler.train_len() as u64, self.sampler.val_len() as u64);
        let identity = DataIdentity { train_tokens, val_tokens, sha256 };
        let chat = file.meta().and_then(|meta| meta.chat.as_ref()).map(|chat| chat.format.clone());
        Ok(DataInfo { path: file.path().into(), identity, tokenizer, chat, source })
    }

    /// The micro-batch that the seed, the step and the index within it decide.
    pub fn train_batch(&mut self, step: u64, index: u64) -> &Batch {
        let Self { sampler, sequence, batch, .. } = self;
        sampler.train_batch(step, index, &mut batch.inputs, &mut batch.targets);
        batch.sequences.resize(batch.inputs.len() / sequence.len, *sequence);
        batch
    }

    /// A batch of these windows of the training part; see [`BatchSampler::windows`].
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

    fn evaluate(&mut self, trainer: &mut dyn Trainer, stop: &AtomicBool) -> Result<Evaluation, Error> {
        let mut sum = 0.0;
        for index in 0..self.eval_iters {
            let Some(batch) = self.val_batch(index) else { return Ok(Evaluation::NothingHeldOut) };
            if stop.load(Ordering::Relaxed) {
                return Ok(Evaluation::Stopped);
            }
            sum += f64::from(trainer.loss(batch)?);
        }
        Ok(Evaluation::Loss((sum / self.eval_iters as f64) as f32))
    }

    fn probe(&mut self, trainer: &mut dyn Trainer) -> Result<f32, Error> {
        // With nothing held out the latest training batch has to do.
        self.val_batch(0);
        Ok(trainer.loss(&self.batch)?)
    }
}

/// True if nothing says which tokenizer made a file: it may be nanoGPT's, of characters or of GPT-2's tokens.
fn is_bare(file: &TokenFile) -> bool {
    file.meta().is_none() && !file.path().with_file_name("tokenizer.json").exists()
}

/// Checks that a token file can be read by the model that came from `from`: its vocabulary is large enough, and its tokenizer
/// the one that made the tokens, as far as both are known.
///
/// # Errors
/// [`Error::Usage`] saying which of them it is; [`Error::Data`] for a tokenizer that is damaged.
pub fn check_reads(from: &Path, model: &Checkpoint, file: &TokenFile) -> Result<(), Error> {
    check_tokenizers(from, &model.meta.tokenizer, file.path(), &tokenizer_for(&model.config, file)?)
}

/// The tokenizer that travels with the model: the data's.
fn tokenizer_for(config: &Config, file: &TokenFile) -> Result<TokenizerRef, Error> {
    let needed = file.vocab_size()?;
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
    Ok(file.tokenizer()?.reference())
}
