//! PIQA: the right one of two solutions for a goal (Bisk et al. 2020).

use crate::{Choices, FewshotSampler, Metric, Question, RecordView, Task, TaskSource};

pub(super) struct Piqa;

impl Task for Piqa {
    fn name(&self) -> String {
        "piqa".into()
    }

    fn version(&self) -> f64 {
        1.0
    }

    fn source(&self) -> TaskSource {
        TaskSource {
            dataset: "baber/piqa",
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
        let context = format!("Question: {}\nAnswer:", record.text("goal")?);
        let continuations = vec![record.text("sol1")?.into(), record.text("sol2")?.into()];
        Ok(Question { gold: record.label("label", 0, 2)?, choices: Choices::Continuations { context, continuations } })
    }

    fn labels_column(&self) -> Option<&'static str> {
        Some("label")
    }
}
