//! The objective of a run: what a step learns, and what the model is judged by.
//!
//! [`crate::train`] is the loop of every run and knows only this. Objectives are [`crate::TokenObjective`] (predict the next
//! token), [`crate::ChatObjective`] (the assistant's turns) and [`crate::objectives::distill::DistillObjective`] (a teacher's probabilities too).

use std::sync::atomic::AtomicBool;

use ngen3_engine::{Backward, Trainer};

use crate::Error;

/// One micro-batch of a step, whose gradients add up to the step's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Micro {
    /// Updates done before.
    pub step: u64,
    /// Which of the step's micro-batches it is, from 0.
    pub index: u64,
    /// How its gradient is taken; no two micro-batches of a run share a seed.
    pub backward: Backward,
}

/// The result of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// The loss whose gradient was added, in nats per token.
    pub loss: f32,
    /// The terms of the loss, if they are worth telling apart: a name (a word, as a key in `metrics.jsonl`) and a
    /// value for each, the same names in every step.
    pub parts: Vec<(&'static str, f32)>,
    /// Tokens it went through.
    pub tokens: u64,
}

/// How an evaluation ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evaluation {
    /// With the mean loss on what is held out, in nats per token.
    Loss(f32),
    /// At once: nothing is held out.
    NothingHeldOut,
    /// Before its end, since it was asked to. What it had by then is dropped.
    Stopped,
}

/// The objective of a run. A step must follow from its number alone: that is why a run that stops and goes on is the run
/// that never stopped.
pub trait Objective {
    /// Number of targets of a micro-batch that are not ignored, so that a step's loss is the mean over all of its targets, however they are
    /// shared out. By default all micro-batches count alike.
    fn num_target_tokens(&mut self, step: u64, index: u64) -> u64 {
        let _ = (step, index);
        1
    }

    /// Adds the gradient of a micro-batch to the trainer's.
    ///
    /// # Errors
    /// Those of the engine, or of a file that cannot be read.
    fn training_step(&mut self, trainer: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error>;

    /// Judges the model by what is held out, always by the same tokens. Looks at `stop` before each batch.
    ///
    /// # Errors
    /// As [`Objective::training_step`].
    fn evaluate(&mut self, trainer: &mut dyn Trainer, stop: &AtomicBool) -> Result<Evaluation, Error>;

    /// Loss of any one batch, held out if possible: enough to see whether the weights are still numbers.
    ///
    /// # Errors
    /// As [`Objective::training_step`].
    fn probe(&mut self, trainer: &mut dyn Trainer) -> Result<f32, Error>;
}
