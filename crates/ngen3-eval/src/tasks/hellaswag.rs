//! HellaSwag: the right ending of a scene's description (Zellers et al. 2019).

use crate::tasks::python::{capitalize, strip};
use crate::{Choices, FewshotSampler, Metric, Question, RecordView, Task, TaskSource};

pub(super) struct HellaSwag;

impl Task for HellaSwag {
    fn name(&self) -> String {
        "hellaswag".into()
    }

    fn version(&self) -> f64 {
        1.0
    }

    fn source(&self) -> TaskSource {
        TaskSource {
            dataset: "Rowan/hellaswag",
            config: None,
            separate_configs: false,
            split: "validation",
            fewshot_sampler: FewshotSampler::Random("train"),
        }
    }

    fn metrics(&self) -> &'static [Metric] {
        Metric::NORMALISED
    }

    fn question(&self, record: RecordView) -> Result<Question, String> {
        let context = format!("{} {}", record.text("ctx_a")?, capitalize(record.text("ctx_b")?));
        let context = clean(&format!("{}: {context}", record.text("activity_label")?));
        let continuations: Vec<_> = record.texts("endings")?.into_iter().map(clean).collect();
        if continuations.is_empty() {
            return Err("endings is empty".into());
        }
        Ok(Question {
            gold: record.label("label", 0, continuations.len())?,
            choices: Choices::Continuations { context, continuations },
        })
    }
}

/// Removes WikiHow's markup: titles, other brackets, and then double spaces.
fn clean(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    let (mut plain, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        // A bracket closes on its own line, or is plain text.
        let end = after.find([']', '\n']).filter(|&end| after[end..].starts_with(']'));
        rest = match end {
            Some(end) => &after[end + 1..],
            None => {
                plain.push('[');
                after
            }
        };
    }
    plain.push_str(rest);
    plain.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Results of the harness's `preprocess` on the same texts.
    #[test]
    fn brackets_and_double_spaces_go() {
        assert_eq!(clean(" a [title] B [step] c  d "), "a. B c d");
        assert_eq!(clean("[header] How to [substeps] x"), " How to x");
        assert_eq!(clean("a [b\n] c [d"), "a [b\n] c [d");
        assert_eq!(clean("a [[b] c] d"), "a c] d");
        assert_eq!(clean("a   b    c"), "a  b  c");
    }

    proptest! {
        #[test]
        fn any_text_can_be_cleaned(text in "[\\[\\] \n\tΣßǆé a-cİ]{0,20}") {
            prop_assert!(clean(&text).len() <= text.len());
            prop_assert!(capitalize(&text).chars().count() >= text.chars().count());
        }
    }
}
