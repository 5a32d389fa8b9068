//! What a task is: where its records are, how a record becomes a question, and what is measured.
//!
//! A question is a choice between texts, and the model's answer the text that it finds the likeliest. A task is one small
//! file in `tasks/` with this trait on a struct, and a line in `tasks/mod.rs`.

use ngen3_data::Record;
use serde_json::Value;

use crate::Metric;

/// What stands between a prompt and an answer.
pub(crate) const DELIMITER: &str = " ";
/// What stands after an example.
pub(crate) const AFTER_EXAMPLE: &str = "\n\n";

/// A benchmark of questions with given answers.
pub trait Task: Send + Sync {
    /// Its name, as the harness calls it.
    fn name(&self) -> String;

    /// Its short name, for tables in which its group stands above it.
    fn alias(&self) -> String {
        self.name()
    }

    /// The version of the harness's definition that this one equals.
    fn version(&self) -> f64;

    /// Its records' place.
    fn source(&self) -> TaskSource;

    /// What stands before the examples and the question.
    fn description(&self) -> String {
        String::new()
    }

    /// The measure.
    fn metrics(&self) -> &'static [Metric];

    /// The question that a record asks.
    ///
    /// # Errors
    /// What is wrong with the record.
    fn question(&self, record: RecordView) -> Result<Question, String>;

    /// The column that the original publication keeps in a file of its own, `…labels.lst`, a line for each record.
    fn labels_column(&self) -> Option<&'static str> {
        None
    }
}

/// Place of a task's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSource {
    /// The dataset on the hub.
    pub dataset: &'static str,
    /// Which of its configurations.
    pub config: Option<&'static str>,
    /// True if each configuration has questions of its own, so that a local folder must have one for each.
    pub separate_configs: bool,
    /// The split with the questions.
    pub split: &'static str,
    /// Where examples come from.
    pub fewshot_sampler: FewshotSampler,
}

impl TaskSource {
    /// What a local folder of its data is called: the part of the dataset's name after the slash.
    pub(crate) fn folder(&self) -> &'static str {
        self.dataset.rsplit('/').next().unwrap_or(self.dataset)
    }
}

/// How examples are chosen, from a split of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FewshotSampler {
    /// At random, others for each question.
    Random(&'static str),
    /// The first ones.
    FirstN(&'static str),
}

impl FewshotSampler {
    /// The split.
    pub fn split(self) -> &'static str {
        match self {
            Self::Random(split) | Self::FirstN(split) => split,
        }
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What is compared.
    pub choices: Choices,
    /// Which one is right.
    pub gold: usize,
}

/// The texts that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choices {
    /// Endings of one prompt: each ending is scored.
    Continuations {
        /// What they all follow.
        context: String,
        /// The answers.
        continuations: Vec<String>,
    },
    /// Openings of one ending: the ending is scored, after each opening (the partial scoring of Trinh & Le 2018).
    Contexts {
        /// The answers.
        contexts: Vec<String>,
        /// What follows them all.
        continuation: String,
    },
}

impl Question {
    /// The answers' own texts.
    pub fn answers(&self) -> &[String] {
        match &self.choices {
            Choices::Continuations { continuations: answers, .. } | Choices::Contexts { contexts: answers, .. } => {
                answers
            }
        }
    }

    /// For each answer: the text that is given, and the text after it that is scored.
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

    /// The question with its answer, as an example for others.
    pub fn example(&self) -> String {
        let (given, scored) = self.pairs().swap_remove(self.gold);
        format!("{given}{scored}{AFTER_EXAMPLE}")
    }
}

/// A record, read by the names of its columns.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a>(pub &'a Record);

impl RecordView<'_> {
    fn column(&self, name: &str) -> Result<&Value, String> {
        self.0.get(name).ok_or_else(|| {
            let names: Vec<_> = self.0.keys().map(String::as_str).collect();
            format!("it has no column {name:?}; its columns are: {}", names.join(", "))
        })
    }

    /// A text.
    ///
    /// # Errors
    /// That there is no such column, or that it holds something else.
    pub fn text(&self, name: &str) -> Result<&str, String> {
        let value = self.column(name)?;
        value.as_str().ok_or_else(|| format!("its {name} is {}, not a text", shown(value)))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// As [`RecordView::text`].
    pub fn texts(&self, name: &str) -> Result<Vec<&str>, String> {
        let value = self.column(name)?;
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| format!("its {name} is {}, not a list of texts", shown(value)))
    }

    /// Which of `count` answers is right, where the column counts them from `first`; a number, or one in a text.
    ///
    /// # Errors
    /// As [`RecordView::text`]; that there is no answer of this number.
    pub fn label(&self, name: &str, first: usize, count: usize) -> Result<usize, String> {
        let value = self.column(name)?;
        let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
        let index = number.and_then(|number| usize::try_from(number).ok()?.checked_sub(first));
        index.filter(|&index| index < count).ok_or_else(|| {
            let last = first + count - 1;
            format!("its {name} is {}, not one of {first} to {last} (a split without answers?)", shown(value))
        })
    }
}

/// A value for a message: its beginning.
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
        assert_eq!(
            record.text("sol1").unwrap_err(),
            "it has no column \"sol1\"; its columns are: goal, label, n, list"
        );
        assert_eq!(record.text("n").unwrap_err(), "its n is 1, not a text");
        assert_eq!(record.texts("list").unwrap_err(), "its list is [\"a\",3], not a list of texts");
        assert_eq!((record.label("label", 1, 2), record.label("n", 0, 2)), (Ok(1), Ok(1)));
        assert_eq!(
            record.label("label", 0, 2).unwrap_err(),
            "its label is \"2\", not one of 0 to 1 (a split without answers?)"
        );
        assert!(record.label("n", 2, 2).is_err());
    }
}
