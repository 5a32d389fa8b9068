//! WinoGrande: which of two names a pronoun stands for (Sakaguchi et al. 2019), by partial scoring: the model reads the
//! sentence with either name in the blank, and what counts is how likely it finds the rest.

use crate::python::strip;
use crate::{Ask, Item, Metric, Row, Shots, Source, Task};

const BLANK: char = '_';

pub(super) struct WinoGrande;

impl Task for WinoGrande {
    fn name(&self) -> String {
        "winogrande".into()
    }

    fn version(&self) -> f64 {
        1.0
    }

    fn source(&self) -> Source {
        Source {
            dataset: "allenai/winogrande",
            config: Some("winogrande_xl"),
            apart: false,
            split: "validation",
            shots: Shots::Random("train"),
        }
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Acc]
    }

    fn item(&self, row: Row) -> Result<Item, String> {
        let sentence = row.text("sentence")?;
        let (before, after) = sentence.split_once(BLANK).ok_or("its sentence has no blank, _")?;
        let opening = |option| Ok::<_, String>(format!("{before}{}", row.text(option)?));
        let openings = vec![opening("option1")?, opening("option2")?];
        Ok(Item { gold: row.label("answer", 1, 2)?, ask: Ask::Openings { openings, ending: strip(after).into() } })
    }
}
