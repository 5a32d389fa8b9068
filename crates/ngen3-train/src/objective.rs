//! Objective of a run: the loss that is minimised, and the evaluation.
//!
//! [`crate::train`], the loop of every run, depends only on this trait. Objectives are [`crate::TokenObjective`] (next-token
//! prediction), [`crate::ChatObjective`] (the assistant's turns) and [`crate::objectives::distill::DistillObjective`]
//! (distillation).

use std::sync::atomic::AtomicBool;

use ngen3_cluster::World;
use ngen3_engine::{Backward, Trainer};

use crate::Error;

/// A micro-batch of a step, whose gradients are accumulated.
#[derive(Clone, Copy, Debug)]
pub struct Micro<'a> {
    /// Updates done before this step.
    pub step: u64,
    /// Index of the micro-batch within the step, from 0.
    pub index: u64,
    /// Options of the backward pass; no two micro-batches of a run share a seed.
    pub backward: Backward<'a>,
}

/// The result of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// Loss whose gradient was added, in nats per token.
    pub loss: f32,
    /// Terms of the loss to log, if any: a name, used as a key in `metrics.jsonl`, and a value each. The names are the same in
    /// every step.
    pub parts: Vec<(&'static str, f32)>,
    /// Number of tokens processed.
    pub tokens: u64,
}

/// Mean loss on held-out data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValLoss {
    /// In nats per token.
    pub nats: f32,
    /// In bits per byte of text, comparable between vocabularies; `None` if the tokenizer is unknown.
    pub bits_per_byte: Option<f32>,
}

/// Result of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evaluation {
    /// Mean loss on the held-out data.
    Loss(ValLoss),
    /// Nothing is held out.
    NothingHeldOut,
    /// Stopped before its end; partial results are dropped.
    Stopped,
}

/// Objective of a run. A step must depend only on its number, so that a resumed run equals an uninterrupted one.
pub trait Objective {
    /// Number of targets of a micro-batch that are not ignored, the weight of its gradient: a step's loss is the mean over
    /// all of its targets. By default all micro-batches weigh the same.
    fn num_target_tokens(&mut self, step: u64, index: u64) -> u64 {
        let _ = (step, index);
        1
    }

    /// Runs the forward and backward pass of a micro-batch; adds its gradient to the trainer's.
    ///
    /// # Errors
    /// Errors of the engine, and of files that cannot be read.
    fn training_step(&mut self, trainer: &mut dyn Trainer, micro: &Micro) -> Result<StepOutput, Error>;

    /// Evaluates the model on the held-out data, always on the same tokens, of which each rank takes a part. Checks `stop` before each
    /// batch. All ranks return the same.
    ///
    /// # Errors
    /// As [`Objective::training_step`].
    fn evaluate(
        &mut self,
        trainer: &mut dyn Trainer,
        world: &dyn World,
        stop: &AtomicBool,
    ) -> Result<Evaluation, Error>;

    /// Returns the loss of one batch, held out if possible, to check that the weights are still finite.
    ///
    /// # Errors
    /// As [`Objective::training_step`].
    fn probe(&mut self, trainer: &mut dyn Trainer) -> Result<f32, Error>;
}
