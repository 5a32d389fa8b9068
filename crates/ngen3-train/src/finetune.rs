//! Conversations as a lesson: predict what the assistant says, from what was said before.
//!
//! [`Conversations`] is fine-tuning's own lesson; a file of plain tokens is fine-tuned on as [`crate::TokenObjective`] trains on it.
//! [`Reference`] tells how much of what a model knew before it has lost.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_data::Tokenizer;
use ngen3_data::chat::{ChatSampler, ChatSampling, Chats, TrainOn, UNCOUNTED};
use ngen3_data::source::shakespeare;
use ngen3_engine::{Batch, Device, IGNORE, Trainer};
use ngen3_model::ChatFormat;
use ngen3_model::files::write_atomic;
use ngen3_model::words::count;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::job::{Data, Job, Request, Weights};
use crate::objective::{Evaluation, Micro, Objective, StepOutput};
use crate::state::DataIdentity;
use crate::{Error, Overrides, RunPaths, TrainSettings};

// Targets of the one go to the engine as they are.
const _: () = assert!(UNCOUNTED == IGNORE);

/// Conversations to train on, and those that are held out.
#[derive(Debug)]
pub struct Conversations {
    sampler: ChatSampler,
    /// Micro-batches in a step.
    accumulation: u64,
    eval_iters: usize,
    /// A step and its micro-batches: the latest that was asked for.
    step: Option<u64>,
    micro: Vec<Batch>,
    /// The latest held-out batch.
    held_out: Batch,
}

impl Conversations {
    /// Settles a run of `ngen3 finetune` on conversations. `own` is the format that the model has.
    ///
    /// # Errors
    /// As [`Request::start`], [`ChatSampler::new`] and [`crate::Start::with`].
    pub fn prepare(
        device: &dyn Device,
        request: Request,
        chats: Chats,
        train_on: TrainOn,
        skip_bad: bool,
        own: Option<&ChatFormat>,
    ) -> Result<(Job, Self, Weights), Error> {
        let vocab_size = chats.tokenizer().vocab_size();
        let start = request.start(|| Ok(vocab_size))?;
        let TrainSettings { batch_size, val_fraction, seed, eval_iters, gradient_accumulation, .. } = start.settings;
        chats.check_vocab(start.config.vocab_size)?;
        let block_size = start.config.block_size;
        let sampling = ChatSampling { block_size, batch_size, val_fraction, train_on, skip_bad, seed };
        let sampler = ChatSampler::new(chats, &sampling)?;
        let chats = sampler.chats();
        let (train_tokens, val_tokens) = sampler.learned();
        let data = Data {
            path: PathBuf::from(chats.name()),
            identity: DataIdentity {
                train_tokens: train_tokens as u64,
                val_tokens: val_tokens as u64,
                sha256: chats.sha256().into(),
            },
            tokenizer: chats.tokenizer().reference(),
            chat: chats.have_turns().then(|| chats.format().clone()),
            source: chats.source().to_vec(),
        };
        let mut notes = vec![described(&sampler, train_on)];
        if data.chat.is_some() && own.is_some_and(|own| Some(own) != data.chat.as_ref()) {
            notes.push("the conversations have another chat template than the model; the model gets theirs".into());
        }
        let learned = if train_on == TrainOn::All { "all" } else { "assistant" };
        let lesson = Map::from_iter([("train_on".to_owned(), Value::from(learned))]);
        let (mut job, weights) = start.with(device, data, lesson, None)?;
        job.notes.splice(0..0, notes);
        let lesson = Self {
            sampler,
            accumulation: gradient_accumulation,
            eval_iters: usize::try_from(eval_iters).unwrap_or(usize::MAX),
            step: None,
            micro: Vec::new(),
            held_out: Batch::default(),
        };
        Ok((job, lesson, weights))
    }

    /// A micro-batch of a step, which are all drawn together: their shares are known before the first one is learned.
    fn micro_batch(&mut self, step: u64, index: u64) -> &Batch {
        if self.step != Some(step) {
            self.micro.resize_with(self.accumulation as usize, Batch::default);
            for (number, batch) in (step * self.accumulation..).zip(&mut self.micro) {
                batch.clear();
                self.sampler.train_batch(number, &mut |inputs, targets| batch.push(inputs, targets));
            }
            self.step = Some(step);
        }
        &self.micro[index as usize]
    }

    /// Held-out batch `index`.
    fn val_batch(&mut self, index: usize) -> &Batch {
        let batch = &mut self.held_out;
        batch.clear();
        self.sampler.val_batch(index, &mut |inputs, targets| batch.push(inputs, targets));
        batch
    }
}

impl Objective for Conversations {
    fn num_target_tokens(&mut self, step: u64, index: u64) -> u64 {
        self.micro_batch(step, index).num_target_tokens() as u64
    }

    fn training_step(&mut self, engine: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error> {
        let batch = self.micro_batch(micro.step, micro.index);
        let loss = engine.forward_backward(batch, micro.backward)?;
        Ok(StepOutput { loss, parts: Vec::new(), tokens: batch.inputs.len() as u64 })
    }

    fn evaluate(&mut self, engine: &mut dyn Trainer, stop: &AtomicBool) -> Result<Evaluation, Error> {
        let (mut sum, mut counted) = (0.0, 0);
        for index in 0..self.sampler.val_batches().min(self.eval_iters) {
            if stop.load(Ordering::Relaxed) {
                return Ok(Evaluation::Stopped);
            }
            let batch = self.val_batch(index);
            let tokens = batch.num_target_tokens();
            sum += f64::from(engine.loss(batch)?) * tokens as f64;
            counted += tokens;
        }
        Ok(if counted > 0 { Evaluation::Loss((sum / counted as f64) as f32) } else { Evaluation::NothingHeldOut })
    }

    fn probe(&mut self, engine: &mut dyn Trainer) -> Result<f32, Error> {
        // With nothing held out a training batch has to do.
        let batch = if self.sampler.val_batches() > 0 {
            self.val_batch(0)
        } else {
            self.micro_batch(self.step.unwrap_or_default(), 0)
        };
        Ok(engine.loss(batch)?)
    }
}

/// What there is to learn from, in a sentence.
fn described(sampler: &ChatSampler, train_on: TrainOn) -> String {
    let (chats, (train, val), cuts) = (sampler.chats(), sampler.counts(), sampler.cuts());
    let (what, whose) = match (chats.have_turns(), train_on) {
        (false, _) => ("text", "every token is learned"),
        (true, TrainOn::All) => ("conversation", "every turn is learned"),
        (true, TrainOn::Assistant) => ("conversation", "the assistant's turns are learned"),
    };
    let mut text = format!("{} to train on, {val} held out; {whose}", count(train, what));
    if cuts.long > 0 {
        let were = if cuts.long == 1 { "was" } else { "were" };
        text += &format!("; {} longer than the block {were} cut into {}", cuts.long, cuts.pieces);
    }
    let left_out = [
        (chats.skipped(), "bad"),
        (cuts.too_long as u64, "with a message longer than the block"),
        (cuts.unlearned as u64, "with nothing to learn"),
    ];
    for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("; {count} {why} left out");
    }
    text
}

/// The settings of fine-tuning where nobody says otherwise: it starts from what is good already, so it learns more slowly,
/// looks more often, and keeps the best. Adapters start from nothing, and learn as fast as a model does from scratch.
/// `recipe_lr` is the variant's learning rate.
pub(crate) fn finetune_defaults(asked: Overrides, recipe_lr: f32, adapters: bool) -> Overrides {
    let max_iters = asked.max_iters.unwrap_or(1_000);
    let defaults = Overrides {
        max_iters: Some(max_iters),
        learning_rate: Some(if adapters { recipe_lr } else { recipe_lr / 3.0 }),
        eval_interval: Some((max_iters / 20).max(1)),
        keep_best: Some(true),
        ..Overrides::default()
    };
    asked.or(defaults)
}

/// A text that a model could predict before: what it has lost shows in its perplexity there.
#[derive(Clone, Debug)]
pub struct Reference {
    name: String,
    ids: Vec<u32>,
}

/// Tokens of a reference text that are looked at: enough for two digits of its perplexity.
const REFERENCE_TOKENS: usize = 16_384;
/// Tokens in a pass over it.
const REFERENCE_PASS: usize = 2_048;

impl Reference {
    /// Takes the first tokens of a text. `None` if it has fewer than two.
    ///
    /// # Errors
    /// [`Error::Data`] if the tokenizer fails on it.
    pub fn new(name: &str, text: &str, tokenizer: &Tokenizer) -> Result<Option<Self>, Error> {
        let mut ids = tokenizer.encode(text).map_err(ngen3_data::Error::from)?;
        ids.truncate(REFERENCE_TOKENS + 1);
        Ok((ids.len() >= 2).then(|| Self { name: name.into(), ids }))
    }

    /// What it is called, and its length.
    pub fn title(&self) -> String {
        format!("{}, {}", self.name, count(self.ids.len() - 1, "token"))
    }

    /// exp of the mean loss: of how many tokens, all as likely, the model would have to guess each. `None` if `stop`, which is
    /// looked at before each pass, is set before the end.
    ///
    /// # Errors
    /// [`Error::Engine`] for what the engine could not do.
    pub fn perplexity(&self, engine: &mut dyn Trainer, stop: &AtomicBool) -> Result<Option<f64>, Error> {
        let block_size = engine.config().block_size;
        let (inputs, targets) = (&self.ids[..self.ids.len() - 1], &self.ids[1..]);
        let rows = inputs.len().div_ceil(block_size);
        let (mut sum, mut pass) = (0.0, Batch::default());
        for (index, (inputs, targets)) in inputs.chunks(block_size).zip(targets.chunks(block_size)).enumerate() {
            pass.push(inputs, targets);
            if pass.inputs.len() >= REFERENCE_PASS || index + 1 == rows {
                debug_assert!(!pass.targets.contains(&IGNORE));
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                sum += f64::from(engine.loss(&pass)?) * pass.targets.len() as f64;
                pass.clear();
            }
        }
        Ok(Some((sum / targets.len() as f64).exp()))
    }
}

/// `X_model.run/reference.json`: the perplexity on a reference text, in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferenceReport {
    /// What the text is called.
    pub text: String,
    /// Before fine-tuning.
    pub before: f64,
    /// That of the model that was kept; `None` while the run is under way.
    pub after: Option<f64>,
}

impl ReferenceReport {
    const FILE: &str = "reference.json";

    /// Reads that of a run; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::File`] if it is damaged.
    pub fn read(paths: &RunPaths) -> Result<Option<Self>, Error> {
        let path = paths.run.join(Self::FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::file(&path, error.to_string()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Removes that of an earlier run of this name.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be removed.
    pub fn remove(paths: &RunPaths) -> Result<(), Error> {
        let path = paths.run.join(Self::FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Writes it whole or not at all.
    ///
    /// # Errors
    /// [`Error::Model`] if it cannot be written.
    pub fn write(&self, paths: &RunPaths) -> Result<(), Error> {
        write_atomic(&paths.run.join(Self::FILE), |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })?;
        Ok(())
    }
}

/// What a perplexity is measured on where no text is named: what it is called, and the text.
pub fn default_reference() -> (&'static str, String) {
    ("the last tenth of builtin:shakespeare", last_tenth(&shakespeare()).to_owned())
}

/// The last tenth of a text, from a line's beginning: where a model that was trained on it was validated.
fn last_tenth(text: &str) -> &str {
    let tail = &text[text.floor_char_boundary(text.len() / 10 * 9)..];
    tail.split_once('\n').map_or(tail, |(_, rest)| rest)
}

/// Reads a reference text.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is not UTF-8.
pub fn read_reference(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    String::from_utf8(bytes)
        .map_err(|error| Error::file(path, format!("it is not UTF-8 at byte {}", error.utf8_error().valid_up_to())))
}

#[cfg(test)]
mod tests {
    use ngen3_engine::Slot;
    use ngen3_model::{Config, ParamList};

    use super::*;
    use crate::testing::FakeEngine;

    #[test]
    fn a_model_that_knows_nothing_guesses_among_the_whole_vocabulary() {
        let config = Config::new(1, 1, 2, 16, 50_257);
        let mut engine = FakeEngine::new(config.clone(), 1);
        engine.write(Slot::Params, &vec![0.0; ParamList::new(&config).total()]).unwrap();
        let tokenizer = Tokenizer::gpt2();
        // Several passes, the last of them short.
        for words in [2, 17, 3_000] {
            let text = "word ".repeat(words);
            let reference = Reference::new("a text", text.trim_end(), &tokenizer).unwrap().unwrap();
            assert_eq!(reference.title(), format!("a text, {}", count(words - 1, "token")));
            let perplexity = reference.perplexity(&mut engine, &AtomicBool::new(false)).unwrap().unwrap();
            assert!((perplexity / 50_257.0 - 1.0).abs() < 1e-3, "{perplexity}");
            assert_eq!(reference.perplexity(&mut engine, &AtomicBool::new(true)).unwrap(), None);
        }
        assert!(Reference::new("a text", "word", &tokenizer).unwrap().is_none());
        let long = Reference::new("a text", &"word ".repeat(30_000), &tokenizer).unwrap().unwrap();
        assert_eq!(long.title(), "a text, 16384 tokens");
    }

    #[test]
    fn what_nobody_asks_for_follows_from_the_run() {
        let asked = |max_iters, learning_rate| Overrides { max_iters, learning_rate, ..Overrides::default() };
        let found = finetune_defaults(asked(None, None), 3e-4, false);
        assert_eq!((found.max_iters, found.eval_interval, found.keep_best), (Some(1_000), Some(50), Some(true)));
        assert!((found.learning_rate.unwrap() - 1e-4).abs() < 1e-9);
        assert_eq!(finetune_defaults(asked(None, None), 3e-4, true).learning_rate, Some(3e-4));
        let found = finetune_defaults(asked(Some(7), Some(0.5)), 3e-4, false);
        assert_eq!((found.max_iters, found.eval_interval, found.learning_rate), (Some(7), Some(1), Some(0.5)));
    }

    #[test]
    fn the_last_tenth_begins_with_a_line() {
        assert_eq!(last_tenth(&format!("{}é\nlast", "line\n".repeat(10))), "é\nlast");
        assert_eq!(last_tenth("éééééx"), "éx");
        assert_eq!(last_tenth("short"), "short");
        assert_eq!(last_tenth(""), "");
    }
}
