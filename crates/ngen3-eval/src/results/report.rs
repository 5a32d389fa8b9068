//! Results as JSON: in the harness's format, and as the record that a checkpoint keeps for its model card.

use serde_json::{Map, Value as Json, json};

use crate::evaluate::Evaluation;
use crate::results::task_result::{Report, ResultDetails, TaskResult};

/// Name of the harness's filter for answers: none.
const FILTER: &str = "none";

impl Report {
    /// Results in the harness's format. `config` describes the model and the run.
    pub fn json(&self, evaluation: &Evaluation, config: Json) -> Json {
        let of = |value: &dyn Fn(&TaskResult) -> Json| -> Map<String, Json> {
            self.measured.iter().map(|one| (one.name.clone(), value(one))).collect()
        };
        let is_group = |one: &&TaskResult| matches!(one.details, ResultDetails::Group { .. });
        let only = |groups: bool, value: &dyn Fn(&TaskResult) -> Json| -> Map<String, Json> {
            let chosen = self.measured.iter().filter(|one| is_group(one) == groups);
            chosen.map(|one| (one.name.clone(), value(one))).collect()
        };
        json!({
            "results": of(&results),
            "groups": only(true, &results),
            "group_subtasks": only(true, &|one| match &one.details {
                ResultDetails::Group { members, .. } => json!(members),
                _ => Json::Null,
            }),
            "configs": only(false, &|one| self.config_of(one, evaluation)),
            "versions": of(&|one| one.version.into()),
            "n-shot": of(&|one| one.num_fewshot.into()),
            "higher_is_better": of(&|one| {
                one.values.iter().map(|value| {
                    (value.metric.name().to_owned(), Json::from(value.metric.higher_is_better()))
                }).collect::<Map<_, _>>().into()
            }),
            "n-samples": only(false, &|one| json!({ "original": one.original, "effective": one.effective })),
            "config": config,
        })
    }

    fn config_of(&self, one: &TaskResult, evaluation: &Evaluation) -> Json {
        match &one.details {
            ResultDetails::Task { source, .. } => {
                let description = evaluation.tasks.iter().find(|prepared| prepared.task.name() == one.name);
                json!({
                    "task": one.name,
                    "dataset_path": source.dataset,
                    "dataset_name": source.config,
                    "split": source.split,
                    "fewshot_split": source.fewshot_sampler.split(),
                    "description": description.map_or_else(String::new, |prepared| prepared.task.description()),
                    "output_type": "multiple_choice",
                    "num_fewshot": one.num_fewshot,
                    "metric_list": one.values.iter().map(|value| json!({
                        "metric": value.metric.name(),
                        "aggregation": "mean",
                        "higher_is_better": value.metric.higher_is_better(),
                    })).collect::<Vec<_>>(),
                    "truncated": one.truncated,
                    "scored_in_parts": one.scored_in_parts,
                    "metadata": { "version": one.version },
                })
            }
            ResultDetails::Text { title, stride, tokens, bytes } => json!({
                "task": one.name,
                "text": title,
                "output_type": "loglikelihood_rolling",
                "stride": stride,
                "tokens": tokens,
                "bytes": bytes,
                "metadata": { "version": one.version },
            }),
            ResultDetails::Group { .. } => Json::Null,
        }
    }

    /// Record for a checkpoint: the tasks requested by name, each with the fields that a model card shows.
    pub fn record(&self) -> Map<String, Json> {
        let asked = self.measured.iter().filter(|one| one.depth == 0);
        let record = asked.map(|one| {
            let dataset = match &one.details {
                ResultDetails::Task { source, .. } => {
                    json!({ "type": source.dataset, "config": source.config, "split": source.split })
                }
                ResultDetails::Group { dataset, .. } => json!({ "type": dataset, "split": "test" }),
                ResultDetails::Text { title, stride, .. } => json!({ "type": "text", "name": title, "stride": stride }),
            };
            let mut kept = json!({
                "version": one.version,
                "n-shot": one.num_fewshot,
                "n-samples": one.effective,
                "dataset": dataset,
            });
            let values: Map<_, _> = one
                .values
                .iter()
                .map(|value| (value.metric.name().to_owned(), json!({ "value": value.value, "stderr": value.error })))
                .collect();
            kept["metrics"] = values.into();
            (one.name.clone(), kept)
        });
        record.collect()
    }
}

/// Values of one task under the harness's keys, such as `acc,none` and `acc_stderr,none`.
fn results(one: &TaskResult) -> Json {
    let mut results = json!({ "name": one.name, "alias": one.alias, "sample_len": one.effective });
    for value in &one.values {
        let name = value.metric.name();
        results[format!("{name},{FILTER}")] = value.value.into();
        results[format!("{name}_stderr,{FILTER}")] = value.error.map_or_else(|| "N/A".into(), Json::from);
    }
    results
}
