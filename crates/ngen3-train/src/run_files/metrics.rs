//! Metrics of a run: the lines of `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A line of `metrics.jsonl`, measured after `step` updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// Updates done.
    pub step: u64,
    /// Metrics of the last update; `None` before the first one.
    #[serde(flatten)]
    pub train: Option<StepMetrics>,
    /// Seconds of training since step 0, including those before a resume.
    pub elapsed_s: f64,
    /// Mean validation loss in nats per token, at steps with an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f32>,
    /// The same in bits per byte of text, if the tokenizer is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bpb: Option<f32>,
    /// Resident memory of the process in GiB, if the system reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gib: Option<f32>,
}

/// Metrics of one update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Training loss before the update, in nats per token.
    pub train_loss: f32,
    /// Terms of the training loss by name, if the objective has several.
    #[serde(flatten)]
    pub parts: BTreeMap<String, f32>,
    /// Learning rate.
    pub lr: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Mean duration of an update since the previous line, in milliseconds.
    pub ms_per_step: f64,
    /// Training tokens per second since the previous line.
    pub tokens_per_s: f64,
}
