//! Results of one model.

use ngen3_model::words::count;

use crate::Metric;
use crate::tasks::task::{Question, TaskSource};

/// A number with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetricValue {
    /// The measure.
    pub metric: Metric,
    /// How much it is.
    pub value: f64,
    /// Its standard error, if there is one.
    pub error: Option<f64>,
}

/// Results of a task, a group or a text.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskResult {
    /// The harness's name for it.
    pub name: String,
    /// Its short name, below its group.
    pub alias: String,
    /// The version of the harness's definition.
    pub version: f64,
    /// Groups that it stands in.
    pub depth: usize,
    /// Examples before each question.
    pub num_fewshot: usize,
    /// Questions or windows that there are.
    pub original: usize,
    /// Those that were looked at.
    pub effective: usize,
    /// The numbers.
    pub values: Vec<MetricValue>,
    /// Questions of which the beginning did not fit into the model's block.
    pub truncated: usize,
    /// Questions with an answer longer than the block, which was scored a part at a time.
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

/// Answer of a model to one question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// ln p of each answer.
    pub loglikelihoods: Vec<f64>,
}

impl Sample {
    /// True if the answer that a metric chooses is the right one.
    pub fn is_right(&self, metric: Metric, item: &Question) -> bool {
        metric.choose(item.answers(), &self.loglikelihoods) == item.gold
    }
}

/// All that was measured of one model; a group stands before its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Tasks, groups and texts, in the order that they were asked for.
    pub measured: Vec<TaskResult>,
}

impl Report {
    /// Notes for the user, a line each: contexts that were cut, answers that were scored in parts.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for one in self.measured.iter().filter(|one| one.depth == 0) {
            let of = format!("of {}", count(one.effective, "question"));
            if one.truncated > 0 {
                let truncated = one.truncated;
                notes.push(format!(
                    "{}: {truncated} {of} did not fit into the model's block and lost their beginning",
                    one.name
                ));
            }
            if one.scored_in_parts > 0 {
                let scored_in_parts = one.scored_in_parts;
                notes.push(format!(
                    "{}: {scored_in_parts} {of} have an answer longer than the model's block, which was scored a part at a time",
                    one.name
                ));
            }
        }
        notes
    }

    /// Questions and windows that were looked at, each once, whatever groups they stand in.
    pub fn items(&self) -> usize {
        let tasks = self.measured.iter().filter(|one| !matches!(one.details, ResultDetails::Group { .. }));
        tasks.map(|one| one.effective).sum()
    }
}
