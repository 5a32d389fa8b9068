//! Record of a run: its description in the state, and the part that cannot change on resume.
//!
//! [`RunRecord`] is written as JSON into `X_model.state/state.safetensors` (`state.rs`). Fields added since the first version are
//! optional, so that old states can be read.

use ngen3_engine::{Divergence, Quant};
use ngen3_model::{ChatFormat, Config, Lora, LoraList, ParamList};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::objective::ValLoss;
use crate::run_files::metrics::StepMetrics;
use crate::{Error, TrainSettings};

/// Kind of a run; a run is resumed as the same kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// Training on a token file.
    #[default]
    Train,
    /// Distillation from a teacher, on a token file.
    Distill,
    /// Fine-tuning on conversations or a token file.
    Finetune,
}

impl RunKind {
    /// Name of the command.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Distill => "distill",
            Self::Finetune => "finetune",
        }
    }

    /// Flag for the model's variant.
    pub(crate) fn variant_flag(self) -> &'static str {
        if self == Self::Distill { "--student_variant" } else { "--variant" }
    }

    /// Flag for the initial weights.
    pub(crate) fn init_flag(self) -> &'static str {
        match self {
            Self::Train => "--init_from",
            Self::Distill => "--init_student",
            Self::Finetune => "--model_checkpoint",
        }
    }

    /// Prefix of the default model name.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Train => "",
            Self::Distill => "distilled_",
            Self::Finetune => "finetuned_",
        }
    }
}

/// Record of a run in its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Kind of the run, whose command resumes it.
    #[serde(default)]
    pub kind: RunKind,
    /// The model's shape.
    pub config: Config,
    /// Training settings.
    pub settings: TrainSettings,
    /// Progress so far.
    #[serde(flatten, rename = "reached")]
    pub progress: TrainProgress,
    /// Identity of the data.
    pub data: DataIdentity,
    /// The objective.
    #[serde(default, rename = "lesson")]
    pub objective: ObjectiveRecord,
    /// LoRA adapters, if only they are trained.
    #[serde(default, rename = "adapting", skip_serializing_if = "Option::is_none")]
    pub adapters: Option<AdapterRecord>,
    /// Chat format of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatFormat>,
}

impl RunRecord {
    /// Length of each array of the state: the number of trained parameters.
    ///
    /// # Errors
    /// A message if the adapters do not fit the model.
    pub(crate) fn total(&self) -> Result<usize, String> {
        match &self.adapters {
            None => Ok(ParamList::new(&self.config).total()),
            Some(AdapterRecord { lora, .. }) => {
                LoraList::new(&self.config, lora).map(|list| list.total()).map_err(|error| error.to_string())
            }
        }
    }
}

/// LoRA adapters and their base model, which is not trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterRecord {
    /// Rank, alpha and targets.
    pub lora: Lora,
    /// Path of the base model.
    pub base: String,
    /// SHA-256 of its parameters in `X_model.state/base.safetensors`, in hexadecimal.
    pub base_sha256: String,
}

/// Progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainProgress {
    /// Updates done.
    pub step: u64,
    /// Lowest validation loss so far, in nats per token.
    pub best_val_loss: Option<f32>,
    /// The same evaluation in bits per byte, if the tokenizer is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_val_bpb: Option<f32>,
    /// Step of the lowest validation loss.
    #[serde(default)]
    pub best_step: u64,
    /// Evaluations since then, all without improvement.
    #[serde(default)]
    pub evals_since_best: u64,
    /// Seconds of training since step 0.
    pub elapsed_s: f64,
    /// Metrics of the last update, if the evaluation after it was interrupted; on resume it is done and logged with these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unevaluated: Option<StepMetrics>,
}

impl TrainProgress {
    /// Records an evaluation; returns `true` if it is the best so far.
    pub(crate) fn evaluated(&mut self, val: ValLoss) -> bool {
        let best = self.best_val_loss.is_none_or(|best| val.nats < best);
        if best {
            (self.best_val_loss, self.best_val_bpb) = (Some(val.nats), val.bits_per_byte);
            (self.best_step, self.evals_since_best) = (self.step, 0);
        } else {
            self.evals_since_best += 1;
        }
        best
    }

    /// Returns the lowest validation loss so far.
    pub fn best(&self) -> Option<ValLoss> {
        Some(ValLoss { nats: self.best_val_loss?, bits_per_byte: self.best_val_bpb })
    }

    /// Returns `true` after `patience` evaluations without improvement; 0 disables it.
    pub(crate) fn is_stale(&self, patience: u64) -> bool {
        patience > 0 && self.evals_since_best >= patience
    }
}

/// Identity of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataIdentity {
    /// Number of training tokens.
    pub train_tokens: u64,
    /// Number of validation tokens.
    pub val_tokens: u64,
    /// SHA-256 of the data, in hexadecimal.
    pub sha256: String,
}

/// Objective of a run and its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ObjectiveRecord {
    /// Distillation.
    Distill(DistillRecord),
    /// Conversations.
    Chat(ChatRecord),
    /// Next-token prediction on a token file.
    Tokens {},
}

impl Default for ObjectiveRecord {
    fn default() -> Self {
        Self::Tokens {}
    }
}

/// Parameters of distillation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistillRecord {
    /// Temperature T.
    pub temperature: f32,
    /// Weight α of the divergence.
    pub alpha: f32,
    /// Divergence D.
    #[serde(default)]
    pub divergence: Divergence,
    /// Tokens per position in the teacher's cache; `None` without a cache.
    #[serde(default)]
    pub teacher_top_k: Option<usize>,
    /// SHA-256 of the teacher's shape and weights.
    #[serde(default)]
    pub teacher_sha256: Option<String>,
    /// Quantisation of the teacher; `None` if not quantised.
    #[serde(default)]
    pub teacher_quant: Option<Quant>,
}

/// Parameters of fine-tuning on conversations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatRecord {
    /// Turns in the loss: `assistant` or `all`.
    pub train_on: String,
    /// Treatment of conversations longer than the context length: `split`, `cut_left`, `cut_right`, `skip` or `error`.
    #[serde(default = "split", skip_serializing_if = "is_split")]
    pub too_long: String,
}

/// Returns the treatment of runs before there was a choice.
fn split() -> String {
    "split".into()
}

fn is_split(treatment: &str) -> bool {
    treatment == split()
}

impl ObjectiveRecord {
    /// Converts to JSON, as written to files.
    pub fn to_json(&self) -> Map<String, Value> {
        // Converted through text, so that 0.1 stays 0.1 when f32 becomes f64.
        let text = serde_json::to_string(self).expect("numbers and names serialise");
        serde_json::from_str(&text).expect("a record serialises to an object")
    }

    /// Checks that a resumed run has the same objective.
    ///
    /// # Errors
    /// [`Error::Usage`] naming what differs.
    pub(crate) fn check_unchanged(&self, before: &Self) -> Result<(), Error> {
        let (before, now) = (before.to_json(), self.to_json());
        let shown = |record: &Map<String, Value>, name: &str| match record.get(name) {
            None | Some(Value::Null) => "none".into(),
            // Hashes are shortened.
            Some(Value::String(text)) => text.chars().take(16).collect(),
            Some(value) => value.to_string(),
        };
        let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
        let value = |record: &Map<String, Value>, name: &String| record.get(name).cloned().unwrap_or_default();
        let differences: Vec<String> = names
            .filter(|name| value(&before, name) != value(&now, name))
            .map(|name| format!("{} was {}, now {}", flag_of(name), shown(&before, name), shown(&now, name)))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "the objective cannot change on --resume: {}; keep it, or start a new run with --out",
            differences.join("; ")
        )))
    }
}

/// Name of an objective's parameter in messages, with its flag if that differs.
fn flag_of(name: &str) -> &str {
    match name {
        "teacher_sha256" => "teacher_sha256 (of the weights of --teacher_model_path)",
        "teacher_top_k" => "teacher_top_k (of --teacher_cache)",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objectives_of_every_version_are_read_and_written_as_they_were() {
        for (json, again) in [
            (json!({}), json!({})),
            (json!({ "train_on": "all" }), json!({ "train_on": "all" })),
            (
                json!({ "temperature": 0.1, "alpha": 0.5, "divergence": "reverse_kl", "teacher_top_k": null,
                    "teacher_sha256": "ab", "teacher_quant": "int8" }),
                json!({ "temperature": 0.1, "alpha": 0.5, "divergence": "reverse_kl", "teacher_top_k": null,
                    "teacher_sha256": "ab", "teacher_quant": "int8" }),
            ),
            (
                json!({ "temperature": 2.0, "alpha": 1.0 }),
                json!({ "temperature": 2.0, "alpha": 1.0, "divergence": "forward_kl", "teacher_top_k": null,
                    "teacher_sha256": null, "teacher_quant": null }),
            ),
        ] {
            let record: ObjectiveRecord = serde_json::from_value(json).unwrap();
            assert_eq!(Value::from(record.to_json()).to_string(), again.to_string());
        }
    }
}
