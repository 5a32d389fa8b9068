//! Evaluations in the model card, from the checkpoint: the Hub's `model-index` and a table. Entries that do not have the form
//! given in `CheckpointMeta` are skipped.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// Metric of ours on tasks of lm-evaluation-harness.
const OUR_METRIC: &str = "acc_bytes";

/// Record of one task.
struct Task<'a> {
    name: &'a str,
    record: &'a Value,
}

/// Metric of a task.
struct Metric<'a> {
    name: &'a str,
    value: f64,
    error: Option<f64>,
}

impl<'a> Task<'a> {
    fn all(evaluations: &'a Map<String, Value>) -> impl Iterator<Item = Self> {
        evaluations.iter().map(|(name, record)| Self { name, record })
    }

    fn metrics(&self) -> Vec<Metric<'a>> {
        let metrics = self.record["metrics"].as_object().into_iter().flatten();
        let metric = |(name, metric): (&'a String, &'a Value)| {
            Some(Metric { name, value: metric["value"].as_f64()?, error: metric["stderr"].as_f64() })
        };
        metrics.filter_map(metric).collect()
    }

    /// Returns true if lm-evaluation-harness defines the task, rather than a text of the user's.
    fn is_from_harness(&self) -> bool {
        self.record["dataset"]["type"] != "text"
    }

    fn number(&self, name: &str) -> String {
        self.record[name].as_f64().map_or_else(String::new, |number| number.to_string())
    }
}

/// Returns the items of `results` of a `model-index`, in YAML.
pub(super) fn index(evaluations: &Map<String, Value>) -> String {
    let mut yaml = String::new();
    for task in Task::all(evaluations).filter(|task| !task.metrics().is_empty()) {
        let dataset = &task.record["dataset"];
        let text = |name: &str| dataset[name].as_str().map(Value::from);
        let name = text("name").unwrap_or_else(|| task.name.into());
        let kind = text("type").unwrap_or_else(|| task.name.into());
        yaml += "  - task:\n      type: text-generation\n    dataset:\n";
        yaml += &format!("      name: {name}\n      type: {kind}\n");
        for part in ["config", "split"] {
            yaml += &text(part).map_or_else(String::new, |value| format!("      {part}: {value}\n"));
        }
        yaml += "    metrics:\n";
        for Metric { name, value, error } in task.metrics() {
            let title = match task.number("n-shot").as_str() {
                "" | "0" => name.to_owned(),
                "1" => format!("{name}, 1 example"),
                shots => format!("{name}, {shots} examples"),
            };
            let mut add = |kind: String, title: String, value: f64| {
                yaml += &format!("    - type: {}\n      name: {}\n      value: {value}\n", json!(kind), json!(title));
            };
            add(name.into(), title.clone(), value);
            if let Some(error) = error {
                add(format!("{name}_stderr"), format!("{title}: standard error"), error);
            }
        }
    }
    yaml
}

/// Returns the section of the card; empty if nothing was measured.
pub(super) fn section(evaluations: &Map<String, Value>, cell: impl Fn(&str) -> String) -> String {
    let (mut rows, mut names, mut has_ours) = (String::new(), Vec::new(), false);
    for task in Task::all(evaluations) {
        let metrics = task.metrics();
        if !metrics.is_empty() && task.is_from_harness() {
            names.push(cell(task.name));
            has_ours |= metrics.iter().any(|metric| metric.name == OUR_METRIC);
        }
        for Metric { name, value, error } in metrics {
            let error = error.map_or_else(String::new, |error| format!("{error:.4}"));
            let numbers = ["version", "n-shot", "n-samples"].map(|name| task.number(name)).join(" | ");
            writeln!(rows, "| {} | {numbers} | {} | {value:.4} | {error} |", cell(task.name), cell(name))
                .expect("writing to a String cannot fail");
        }
    }
    if rows.is_empty() {
        return rows;
    }
    let mut about = "Measured with `ngen3 eval`.".to_owned();
    if !names.is_empty() {
        about += &format!(
            " Tasks of EleutherAI's lm-evaluation-harness, in the version given: {}{}.",
            names.join(", "),
            if has_ours { format!(" ({OUR_METRIC} is NGen3's)") } else { String::new() }
        );
    }
    format!(
        "## Evaluation\n\n{about}\n\n| task | version | n-shot | items | metric | value | standard error |\n\
         |---|---|---|---|---|---|---|\n{rows}"
    )
}
