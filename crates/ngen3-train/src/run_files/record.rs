//! The record of a run: what its files say of it, and what must be unchanged when it goes on.
//!
//! [`RunRecord`] is written as JSON into `X_model.state/state.safetensors` (`state.rs`). What came later than the first states is
//! optional, so that old ones are read too.

use ngen3_engine::{Divergence, Quant};
use ngen3_model::{ChatFormat, Config, Lora, LoraList, ParamList};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::run_files::metrics::StepMetrics;
use crate::{Error, TrainSettings};

/// The kind of a run: each goes on only as what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// From a token file.
    #[default]
    Train,
    /// From a token file and a teacher.
    Distill,
    /// From conversations or a token file, on the way to a use.
    Finetune,
}

impl RunKind {
    /// The name of the command.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Distill => "distill",
            Self::Finetune => "finetune",
        }
    }

    /// The flag that names the model's variant.
    pub(crate) fn variant_flag(self) -> &'static str {
        if self == Self::Distill { "--student_variant" } else { "--variant" }
    }

    /// The flag that names the weights to start from.
    pub(crate) fn init_flag(self) -> &'static str {
        match self {
            Self::Train => "--init_from",
            Self::Distill => "--init_student",
            Self::Finetune => "--model_checkpoint",
        }
    }

    /// Beginning of its models' names.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Train => "",
            Self::Distill => "distilled_",
            Self::Finetune => "finetuned_",
        }
    }
}

/// A run, as its state describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The command that it goes on with.
    #[serde(default)]
    pub kind: RunKind,
    /// The model's shape.
    pub config: Config,
    /// How the run is trained.
    pub settings: TrainSettings,
    /// Its progress.
    #[serde(flatten, rename = "reached")]
    pub progress: TrainProgress,
    /// The data that it trains on.
    pub data: DataIdentity,
    /// Everything else that decides what it learns.
    #[serde(default, rename = "lesson")]
    pub objective: ObjectiveRecord,
    /// The adapters, if only they learn.
    #[serde(default, rename = "adapting", skip_serializing_if = "Option::is_none")]
    pub adapters: Option<AdapterRecord>,
    /// How conversations become text for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatFormat>,
}

impl RunRecord {
    /// Numbers in each array of the state: as many as learn.
    ///
    /// # Errors
    /// The reason why the model cannot have the adapters.
    pub(crate) fn total(&self) -> Result<usize, String> {
        match &self.adapters {
            None => Ok(ParamList::new(&self.config).total()),
            Some(AdapterRecord { lora, .. }) => {
                LoraList::new(&self.config, lora).map(|list| list.total()).map_err(|error| error.to_string())
            }
        }
    }
}

/// Adapters that learn beside a model that stays as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterRecord {
    /// Their shape.
    pub lora: Lora,
    /// Source of the model, as it was named.
    pub base: String,
    /// SHA-256 of the model's parameters, in hexadecimal: `X_model.state/base.safetensors` has them.
    pub base_sha256: String,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainProgress {
    /// Updates done.
    pub step: u64,
    /// Lowest validation loss so far, in nats per token.
    pub best_val_loss: Option<f32>,
    /// Updates that were done when it was measured.
    #[serde(default)]
    pub best_step: u64,
    /// Evaluations since then, none of which was better.
    #[serde(default)]
    pub evals_since_best: u64,
    /// Seconds of training since step 0.
    pub elapsed_s: f64,
    /// Metrics of the last update, if the evaluation after it was stopped: it is made when the run goes on, and logged with these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unevaluated: Option<StepMetrics>,
}

impl TrainProgress {
    /// Takes note of an evaluation; returns true if it is the best so far.
    pub(crate) fn evaluated(&mut self, val_loss: f32) -> bool {
        let best = self.best_val_loss.is_none_or(|best| val_loss < best);
        if best {
            (self.best_val_loss, self.best_step, self.evals_since_best) = (Some(val_loss), self.step, 0);
        } else {
            self.evals_since_best += 1;
        }
        best
    }

    /// True if `patience` evaluations, unless that is 0, have brought nothing.
    pub(crate) fn is_stale(&self, patience: u64) -> bool {
        patience > 0 && self.evals_since_best >= patience
    }
}

/// Identity of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataIdentity {
    /// Tokens to train on.
    pub train_tokens: u64,
    /// Tokens to validate on.
    pub val_tokens: u64,
    /// SHA-256 of data.bin, in hexadecimal.
    pub sha256: String,
}

/// Everything that decides what a run learns, besides its data and settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ObjectiveRecord {
    /// A teacher's probabilities.
    Distill(DistillRecord),
    /// Conversations.
    Chat(ChatRecord),
    /// The next token.
    Tokens {},
}

impl Default for ObjectiveRecord {
    fn default() -> Self {
        Self::Tokens {}
    }
}

/// How a student learns from its teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistillRecord {
    /// T.
    pub temperature: f32,
    /// α, the teacher's share of the loss.
    pub alpha: f32,
    /// D.
    #[serde(default)]
    pub divergence: Divergence,
    /// Tokens that a cache of the teacher tells apart; `None` without a cache.
    #[serde(default)]
    pub teacher_top_k: Option<usize>,
    /// SHA-256 of the teacher's shape and weights.
    #[serde(default)]
    pub teacher_sha256: Option<String>,
    /// Precision that the teacher is rounded to; `None` if to nothing.
    #[serde(default)]
    pub teacher_quant: Option<Quant>,
}

/// Which turns of conversations are learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatRecord {
    /// `assistant` or `all`.
    pub train_on: String,
}

impl ObjectiveRecord {
    /// By name, as files have it.
    pub fn to_json(&self) -> Map<String, Value> {
        // By way of text, so that 0.1 stays 0.1 where f32 becomes f64.
        let text = serde_json::to_string(self).expect("numbers and names serialise");
        serde_json::from_str(&text).expect("a record serialises to an object")
    }

    /// Checks that a run which goes on learns what it learned before.
    ///
    /// # Errors
    /// [`Error::Usage`] naming what differs.
    pub(crate) fn check_unchanged(&self, before: &Self) -> Result<(), Error> {
        let (before, now) = (before.to_json(), self.to_json());
        let shown = |record: &Map<String, Value>, name: &str| match record.get(name) {
            None | Some(Value::Null) => "none".into(),
            // Of a hash the beginning is enough.
            Some(Value::String(text)) => text.chars().take(16).collect(),
            Some(value) => value.to_string(),
        };
        let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
        let value = |record: &Map<String, Value>, name: &String| record.get(name).cloned().unwrap_or_default();
        let differences: Vec<String> = names
            .filter(|name| value(&before, name) != value(&now, name))
            .map(|name| format!("{} is {} there, not {}", flag_of(name), shown(&before, name), shown(&now, name)))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "the run that is to go on learns something else: {}; leave it as it was, or start another run with --out",
            differences.join("; ")
        )))
    }
}

/// A part of an objective as messages name it: with the flag, where it has another name.
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
