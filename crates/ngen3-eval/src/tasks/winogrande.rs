//! WinoGrande: the right one of two names for a blank (Sakaguchi et al. 2019), by partial scoring: the score of a name is the
//! log-likelihood of the rest of the sentence after it.

use crate::tasks::python::strip;
use crate::{Choices, FewshotSampler, Metric, Question, RecordView, Task, TaskSource};

const BLANK: char = '_';

pub(super) struct WinoGrande;

impl Task for WinoGrande {
    fn name(&self) -> String {
        "winogrande".into()
    }

    fn version(&self) -> f64 {
        1.0
    }

    fn source(&self) -> TaskSource {
        TaskSource {
            dataset: "allenai/winogrande",
            config: Some("winogrande_xl"),
            separate_configs: false,
            split: "validation",
            fewshot_sampler: FewshotSampler::Random("train"),
        }
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc]
    }

    fn question(&self, record: RecordView) -> Result<Question, String> {
        let sentence = record.text("sentence")?;
        let (before, after) = sentence.split_once(BLANK).ok_or("sentence has no blank (_)")?;
        let opening = |option| Ok::<_, String>(format!("{before}{}", record.text(option)?));
        let contexts = vec![opening("option1")?, opening("option2")?];
        Ok(Question {
            gold: record.label("answer", 1, 2)?,
            choices: Choices::Contexts { contexts, continuation: strip(after).into() },
        })
    }
}
