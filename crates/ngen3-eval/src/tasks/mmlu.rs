//! MMLU: questions with four answers in 57 subjects (Hendrycks et al. 2020). The answer is a letter.

use super::group::TaskGroup;
use crate::tasks::python::strip;
use crate::{Choices, FewshotSampler, Metric, Question, RecordView, Task, TaskSource};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
const PREFIX: &str = "mmlu_";

/// The task of one subject, by its name.
struct Subject(&'static str);

/// Tasks of all subjects.
pub(super) fn subjects() -> impl Iterator<Item = Box<dyn Task>> {
    let fields = GROUPS.iter().filter(|group| group.name != "mmlu");
    fields.flat_map(|group| group.members).map(|name| Box::new(Subject(name)) as Box<dyn Task>)
}

impl Subject {
    /// Name in the dataset.
    fn subject(&self) -> &'static str {
        self.0.strip_prefix(PREFIX).unwrap_or(self.0)
    }
}

impl Task for Subject {
    fn name(&self) -> String {
        self.0.into()
    }

    fn alias(&self) -> String {
        self.subject().into()
    }

    fn version(&self) -> f64 {
        1.0
    }

    fn source(&self) -> TaskSource {
        TaskSource {
            dataset: "cais/mmlu",
            config: Some(self.subject()),
            separate_configs: true,
            split: "test",
            fewshot_sampler: FewshotSampler::FirstN("dev"),
        }
    }

    fn description(&self) -> String {
        let subject = self.subject().replace('_', " ");
        format!("The following are multiple choice questions (with answers) about {subject}.\n\n")
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc]
    }

    fn question(&self, record: RecordView) -> Result<Question, String> {
        let question = strip(record.text("question")?);
        let choices = record.texts("choices")?;
        let [a, b, c, d] = choices[..] else { return Err(format!("expected 4 choices, got {}", choices.len())) };
        let context = format!("{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:");
        let continuations = LETTERS.map(String::from).to_vec();
        Ok(Question { gold: record.label("answer", 0, 4)?, choices: Choices::Continuations { context, continuations } })
    }
}

/// The groups; the whole of MMLU last.
pub(super) const GROUPS: [TaskGroup; 5] = [
    field("mmlu_stem", "stem", &STEM),
    field("mmlu_other", "other", &OTHER),
    field("mmlu_social_sciences", "social sciences", &SOCIAL_SCIENCES),
    field("mmlu_humanities", "humanities", &HUMANITIES),
    field("mmlu", "mmlu", &["mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]),
];

const fn field(name: &'static str, alias: &'static str, members: &'static [&'static str]) -> TaskGroup {
    TaskGroup { name, alias, version: 2.0, members }
}

const STEM: [&str; 19] = [
    "mmlu_abstract_algebra",
    "mmlu_anatomy",
    "mmlu_astronomy",
    "mmlu_college_biology",
    "mmlu_college_chemistry",
    "mmlu_college_computer_science",
    "mmlu_college_mathematics",
    "mmlu_college_physics",
    "mmlu_computer_security",
    "mmlu_conceptual_physics",
    "mmlu_electrical_engineering",
    "mmlu_elementary_mathematics",
    "mmlu_high_school_biology",
    "mmlu_high_school_chemistry",
    "mmlu_high_school_computer_science",
    "mmlu_high_school_mathematics",
    "mmlu_high_school_physics",
    "mmlu_high_school_statistics",
    "mmlu_machine_learning",
];

const OTHER: [&str; 13] = [
    "mmlu_business_ethics",
    "mmlu_clinical_knowledge",
    "mmlu_college_medicine",
    "mmlu_global_facts",
    "mmlu_human_aging",
    "mmlu_management",
    "mmlu_marketing",
    "mmlu_medical_genetics",
    "mmlu_miscellaneous",
    "mmlu_nutrition",
    "mmlu_professional_accounting",
    "mmlu_professional_medicine",
    "mmlu_virology",
];

const SOCIAL_SCIENCES: [&str; 12] = [
    "mmlu_econometrics",
    "mmlu_high_school_geography",
    "mmlu_high_school_government_and_politics",
    "mmlu_high_school_macroeconomics",
    "mmlu_high_school_microeconomics",
    "mmlu_high_school_psychology",
    "mmlu_human_sexuality",
    "mmlu_professional_psychology",
    "mmlu_public_relations",
    "mmlu_security_studies",
    "mmlu_sociology",
    "mmlu_us_foreign_policy",
];

const HUMANITIES: [&str; 13] = [
    "mmlu_formal_logic",
    "mmlu_high_school_european_history",
    "mmlu_high_school_us_history",
    "mmlu_high_school_world_history",
    "mmlu_international_law",
    "mmlu_jurisprudence",
    "mmlu_logical_fallacies",
    "mmlu_moral_disputes",
    "mmlu_moral_scenarios",
    "mmlu_philosophy",
    "mmlu_prehistory",
    "mmlu_professional_law",
    "mmlu_world_religions",
];
