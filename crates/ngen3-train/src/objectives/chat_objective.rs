//! Fine-tuning on conversations: predict the assistant's turns from those before them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_cluster::World;
use ngen3_data::chat::{ChatSampler, IGNORE_INDEX, TrainOn};
use ngen3_engine::{Batch, IGNORE, Trainer};
use ngen3_model::words::count;

use crate::objective::{Evaluation, Micro, Objective, StepOutput};
use crate::objectives::held_out::{HeldOutText, ValSums};
use crate::prepare::job::DataInfo;
use crate::ranks::dealt;
use crate::run_files::record::DataIdentity;
use crate::{Error, TrainSettings};

// The sampler's targets are passed to the engine unchanged.
const _: () = assert!(IGNORE_INDEX == IGNORE);

/// Next-token prediction on conversations, and evaluation on those held out.
#[derive(Debug)]
pub struct ChatObjective {
    sampler: ChatSampler,
    /// Held-out text that is learned.
    text: HeldOutText,
    /// Micro-batches per step.
    accumulation: u64,
    eval_iters: usize,
    /// The latest step, whose micro-batches are in `micro`.
    step: Option<u64>,
    micro: Vec<Batch>,
    /// The latest held-out batch.
    held_out: Batch,
}

impl ChatObjective {
    /// Creates the objective; evaluations use at most `eval_iters` held-out batches.
    pub(crate) fn new(sampler: ChatSampler, settings: &TrainSettings) -> Self {
        let text = HeldOutText::new(sampler.chats().tokenizer(), |counter| sampler.val_text_size(counter));
        Self {
            sampler,
            text,
            accumulation: settings.gradient_accumulation,
            eval_iters: usize::try_from(settings.eval_iters).unwrap_or(usize::MAX),
            step: None,
            micro: Vec::new(),
            held_out: Batch::default(),
        }
    }

    /// Describes the data for the run's record.
    pub(crate) fn describe(&self) -> DataInfo {
        let chats = self.sampler.chats();
        let (train_tokens, val_tokens) = self.sampler.num_target_tokens();
        DataInfo {
            path: PathBuf::from(chats.name()),
            identity: DataIdentity {
                train_tokens: train_tokens as u64,
                val_tokens: val_tokens as u64,
                sha256: chats.sha256().into(),
            },
            tokenizer: chats.tokenizer().reference(),
            chat: chats.have_turns().then(|| chats.format().clone()),
            source: chats.source().to_vec(),
        }
    }

    /// Describes the conversations on one line, for a note.
    pub(crate) fn note(&self, train_on: TrainOn) -> String {
        described(&self.sampler, train_on)
    }

    /// Micro-batch `index` of a step. All micro-batches of a step are drawn together, since their weights must be known first.
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

    /// Held-out batch `index`, and the text of all of them.
    fn val_batch(&mut self, index: usize) -> (&Batch, &HeldOutText) {
        let batch = &mut self.held_out;
        batch.clear();
        self.sampler.val_batch(index, &mut |inputs, targets| batch.push(inputs, targets));
        (batch, &self.text)
    }
}

impl Objective for ChatObjective {
    fn num_target_tokens(&mut self, step: u64, index: u64) -> u64 {
        self.micro_batch(step, index).num_target_tokens() as u64
    }

    fn training_step(&mut self, trainer: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error> {
        let batch = self.micro_batch(micro.step, micro.index);
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
        for index in dealt(world, self.sampler.val_batches().min(self.eval_iters) as u64) {
            if stop.load(Ordering::Relaxed) {
                sums.stop();
                break;
            }
            let (batch, text) = self.val_batch(index as usize);
            sums.add(trainer, batch, batch.num_target_tokens() as f64, Some(text))?;
        }
        Ok(sums.evaluation(world, Some(&self.text)))
    }

    fn probe(&mut self, trainer: &mut dyn Trainer) -> Result<f32, Error> {
        // Without held-out data, a training batch is used.
        let batch = if self.sampler.val_batches() > 0 {
            self.val_batch(0).0
        } else {
            self.micro_batch(self.step.unwrap_or_default(), 0)
        };
        Ok(trainer.loss(batch)?)
    }
}

/// Describes the conversations on one line.
fn described(sampler: &ChatSampler, train_on: TrainOn) -> String {
    let (chats, (train, val), cuts) = (sampler.chats(), sampler.counts(), sampler.split_stats());
    let (what, whose) = match (chats.have_turns(), train_on) {
        (false, _) => ("text", "loss on every token"),
        (true, TrainOn::All) => ("conversation", "loss on every turn"),
        (true, TrainOn::Assistant) => ("conversation", "loss on the assistant's turns"),
    };
    let mut text = format!("{} for training, {val} held out; {whose}", count(train, what));
    if cuts.long > 0 {
        let were = if cuts.long == 1 { "was" } else { "were" };
        text += &format!("; {} longer than the context length {were} split into {}", cuts.long, cuts.pieces);
    }
    if cuts.cut > 0 {
        let tokens = count(cuts.cut_tokens as u64, "token");
        text += &format!("; {} longer than the context length cut by {tokens} in all", cuts.cut);
    }
    let left_out = [
        (chats.skipped(), "invalid"),
        (cuts.too_long as u64, "longer than the context length"),
        (cuts.without_targets as u64, "without targets"),
    ];
    for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("; {count} {why} skipped");
    }
    text
}
