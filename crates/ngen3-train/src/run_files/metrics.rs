//! Measurements of a run: the lines of `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`: measured when `step` updates were done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// Updates done.
    pub step: u64,
    /// Metrics of the last update; `None` before the first one.
    #[serde(flatten)]
    pub train: Option<StepMetrics>,
    /// Seconds of training since step 0, those before a resumption counted in.
    pub elapsed_s: f64,
    /// Mean loss over the validation batches, in nats per token, at steps with an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f32>,
}

/// Metrics of one update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Loss of the update's batch before the update, in nats per token.
    pub train_loss: f32,
    /// The terms of that loss, each a key of its own, if the run tells it apart.
    #[serde(flatten)]
    pub parts: BTreeMap<String, f32>,
    /// Its learning rate.
    pub lr: f32,
    /// Global norm of its gradient before clipping.
    pub grad_norm: f32,
    /// Mean duration of an update since the line before.
    pub ms_per_step: f64,
    /// Tokens trained on in a second, over the same time.
    pub tokens_per_s: f64,
}
