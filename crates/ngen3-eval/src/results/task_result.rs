//! Results of one model.

use ngen3_model::words::count;

use crate::Metric;
use crate::tasks::task::{Question, TaskSource};

/// Value of a metric, with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetricValue {
    /// The metric.
    pub metric: Metric,
    /// Its value.
    pub value: f64,
    /// Its standard error, if defined.
    pub error: Option<f64>,
}

/// Results of a task, a group or a text.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    /// Name in the harness.
    pub name: String,
    /// Short name, for the line below its group.
    pub alias: String,
    /// Version of the harness's definition.
    pub version: f64,
    /// Number of groups it is nested in.
    pub depth: usize,
    /// Few-shot examples before each question.
    pub num_fewshot: usize,
    /// Questions or windows in total.
    pub original: usize,
    /// Questions or windows evaluated.
    pub effective: usize,
    /// Values of its metrics.
    pub values: Vec<MetricValue>,
    /// Questions truncated to the model's block.
    pub truncated: usize,
    /// Questions with an answer longer than the block, which was scored in parts.
    pub scored_in_parts: usize,
    pub(crate) details: ResultDetails,
}

/// The subject of a [`TaskResult`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ResultDetails {
    Task { source: TaskSource, samples: Vec<Sample> },
    Group { members: &'static [&'static str], dataset: Option<&'static str> },
    Text { title: String, stride: usize, tokens: usize, bytes: Option<usize> },
}

/// Scores of one question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// ln p of each answer.
    pub loglikelihoods: Vec<f64>,
}

impl Sample {
    /// Returns whether the metric chooses the right answer.
    pub fn is_right(&self, metric: Metric, item: &Question) -> bool {
        metric.choose(item.answers(), &self.loglikelihoods) == item.gold
    }
}

/// Results of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Tasks, groups and texts in the order requested; a group precedes its members.
    pub measured: Vec<TaskResult>,
    /// Notes on the texts, one line each: characters that the vocabulary lacks, and doubts on a token file.
    pub(crate) text_notes: Vec<String>,
}

impl Report {
    /// Notes for the user, one line each: those on the texts, truncated questions, and answers scored in parts.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.text_notes.clone();
        for one in self.measured.iter().filter(|one| one.depth == 0) {
            let of = format!("of {}", count(one.effective, "question"));
            if one.truncated > 0 {
                let truncated = one.truncated;
                notes.push(format!(
                    "{}: {truncated} {of} exceeded the model's context and lost their beginning",
                    one.name
                ));
            }
            if one.scored_in_parts > 0 {
                let scored_in_parts = one.scored_in_parts;
                notes.push(format!(
                    "{}: {scored_in_parts} {of} have an answer longer than the model's context, which was scored in parts",
                    one.name
                ));
            }
        }
        notes
    }

    /// Number of questions and windows evaluated, each counted once.
    pub fn items(&self) -> usize {
        let tasks = self.measured.iter().filter(|one| !matches!(one.details, ResultDetails::Group { .. }));
        tasks.map(|one| one.effective).sum()
    }
}
