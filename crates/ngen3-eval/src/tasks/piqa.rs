//! PIQA: which of two ways reaches a goal (Bisk et al. 2020).

use crate::{Ask, Item, Metric, Row, Shots, Source, Task};

pub(super) struct Piqa;

impl Task for Piqa {
    fn name(&self) -> String {
        "piqa".into()
    }

    fn version(&self) -> f64 {
        1.0
    }

    fn source(&self) -> Source {
        Source { dataset: "baber/piqa", config: None, apart: false, split: "validation", shots: Shots::Random("train") }
    }

    fn metrics(&self) -> &'static [Metric] {
        Metric::NORMALISED
    }

    fn item(&self, row: Row) -> Result<Item, String> {
        let prompt = format!("Question: {}\nAnswer:", row.text("goal")?);
        let endings = vec![row.text("sol1")?.into(), row.text("sol2")?.into()];
        Ok(Item { gold: row.label("label", 0, 2)?, ask: Ask::Endings { prompt, endings } })
    }

    fn labels(&self) -> Option<&'static str> {
        Some("label")
    }
}
