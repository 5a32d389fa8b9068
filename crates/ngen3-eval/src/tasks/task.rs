//! The [`Task`] trait: source of the records, conversion of a record to a question, and metrics.
//!
//! A question is a choice between texts; the model's answer is the text with the highest log-likelihood. A task is one small
//! file in `tasks/` with this trait on a struct, and a line in `tasks/mod.rs`.

use ngen3_data::Record;
use serde_json::Value;

use crate::Metric;

/// Text between a prompt and an answer.
pub(crate) const DELIMITER: &str = " ";
/// Text after an example.
pub(crate) const AFTER_EXAMPLE: &str = "\n\n";

/// A multiple-choice benchmark.
pub trait Task: Send + Sync {
    /// Name in the harness.
    fn name(&self) -> String;

    /// Short name, for table lines below its group.
    fn alias(&self) -> String {
        self.name()
    }

    /// Version of the harness's definition that this one matches.
    fn version(&self) -> f64;

    /// Source of the records.
    fn source(&self) -> TaskSource;

    /// Text before the examples and the question.
    fn description(&self) -> String {
        String::new()
    }

    /// Metrics to report.
    fn metrics(&self) -> &'static [Metric];

    /// Converts a record to a question.
    ///
    /// # Errors
    /// The reason that the record is not in the task's format.
    fn question(&self, record: RecordView) -> Result<Question, String>;

    /// Column that the original publication keeps in a separate file, `…labels.lst`, one line per record.
    fn labels_column(&self) -> Option<&'static str> {
        None
    }
}

/// Source of a task's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSource {
    /// Dataset on the hub.
    pub dataset: &'static str,
    /// Configuration of the dataset.
    pub config: Option<&'static str>,
    /// True if configurations hold different questions, so that a local folder must have one folder for each.
    pub separate_configs: bool,
    /// Split with the questions.
    pub split: &'static str,
    /// Source of few-shot examples.
    pub fewshot_sampler: FewshotSampler,
}

impl TaskSource {
    /// Name of a local folder of the data: the dataset's name after the slash.
    pub(crate) fn folder(&self) -> &'static str {
        self.dataset.rsplit('/').next().unwrap_or(self.dataset)
    }
}

/// Method of choosing few-shot examples, with the split they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FewshotSampler {
    /// Drawn at random for each question.
    Random(&'static str),
    /// The first records of the split.
    FirstN(&'static str),
}

impl FewshotSampler {
    /// Split of the examples.
    pub fn split(self) -> &'static str {
        match self {
            Self::Random(split) | Self::FirstN(split) => split,
        }
    }
}

/// A multiple-choice question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The texts to compare.
    pub choices: Choices,
    /// Index of the right answer.
    pub gold: usize,
}

/// Texts of the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choices {
    /// Several continuations of one context; each continuation is scored.
    Continuations {
        /// The common context.
        context: String,
        /// The answers.
        continuations: Vec<String>,
    },
    /// Several contexts of one continuation, which is scored after each (partial scoring, Trinh & Le 2018).
    Contexts {
        /// The answers.
        contexts: Vec<String>,
        /// The common continuation.
        continuation: String,
    },
}

impl Question {
    /// Texts of the answers.
    pub fn answers(&self) -> &[String] {
        match &self.choices {
            Choices::Continuations { continuations: answers, .. } | Choices::Contexts { contexts: answers, .. } => {
                answers
            }
        }
    }

    /// Returns the context and the scored continuation of each answer.
    pub fn pairs(&self) -> Vec<(&str, String)> {
        match &self.choices {
            Choices::Continuations { context, continuations } => continuations
                .iter()
                .map(|continuation| (context.as_str(), format!("{DELIMITER}{continuation}")))
                .collect(),
            Choices::Contexts { contexts, continuation } => {
                contexts.iter().map(|opening| (opening.as_str(), format!("{DELIMITER}{continuation}"))).collect()
            }
        }
    }

    /// Formats the question with its right answer, as a few-shot example.
    pub fn example(&self) -> String {
        let (given, scored) = self.pairs().swap_remove(self.gold);
        format!("{given}{scored}{AFTER_EXAMPLE}")
    }
}

/// A record with typed access to its columns.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a>(pub &'a Record);

impl RecordView<'_> {
    fn column(&self, name: &str) -> Result<&Value, String> {
        self.0.get(name).ok_or_else(|| {
            let names: Vec<_> = self.0.keys().map(String::as_str).collect();
            format!("no column {name:?}: expected one of {}", names.join(", "))
        })
    }

    /// Returns a string column.
    ///
    /// # Errors
    /// If the column is missing or of another type.
    pub fn text(&self, name: &str) -> Result<&str, String> {
        let value = self.column(name)?;
        value.as_str().ok_or_else(|| format!("{name}: expected a string, got {}", shown(value)))
    }

    /// Returns a column with a list of strings.
    ///
    /// # Errors
    /// As [`RecordView::text`].
    pub fn texts(&self, name: &str) -> Result<Vec<&str>, String> {
        let value = self.column(name)?;
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| format!("{name}: expected a list of strings, got {}", shown(value)))
    }

    /// Returns the index of the right one of `count` answers from a column that counts from `first`; a number, or a string
    /// with one.
    ///
    /// # Errors
    /// As [`RecordView::text`]; if the number is out of range.
    pub fn label(&self, name: &str, first: usize, count: usize) -> Result<usize, String> {
        let value = self.column(name)?;
        let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
        let index = number.and_then(|number| usize::try_from(number).ok()?.checked_sub(first));
        index.filter(|&index| index < count).ok_or_else(|| {
            let last = first + count - 1;
            format!("{name}: expected {first} to {last}, got {} (a split without answers?)", shown(value))
        })
    }
}

/// Formats the beginning of a value for a message.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_that_are_missing_or_of_another_kind_are_named() {
        let record = json!({ "goal": "x", "label": "2", "n": 1, "list": ["a", 3] });
        let record = RecordView(record.as_object().unwrap());
        assert_eq!(record.text("sol1").unwrap_err(), "no column \"sol1\": expected one of goal, label, n, list");
        assert_eq!(record.text("n").unwrap_err(), "n: expected a string, got 1");
        assert_eq!(record.texts("list").unwrap_err(), "list: expected a list of strings, got [\"a\",3]");
        assert_eq!((record.label("label", 1, 2), record.label("n", 0, 2)), (Ok(1), Ok(1)));
        assert_eq!(
            record.label("label", 0, 2).unwrap_err(),
            "label: expected 0 to 1, got \"2\" (a split without answers?)"
        );
        assert!(record.label("n", 2, 2).is_err());
    }
}
