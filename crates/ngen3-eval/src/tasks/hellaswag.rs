//! HellaSwag: how a description of a scene goes on (Zellers et al. 2019).

use crate::python::{capitalize, strip};
use crate::{Ask, Item, Metric, Row, Shots, Source, Task};

pub(super) struct HellaSwag;

impl Task for HellaSwag {
    fn name(&self) -> String {
        "hellaswag".into()
    }

    fn version(&self) -> f64 {
        1.0
    }

    fn source(&self) -> Source {
        Source {
            dataset: "Rowan/hellaswag",
            config: None,
            apart: false,
            split: "validation",
            shots: Shots::Random("train"),
        }
    }

    fn metrics(&self) -> &'static [Metric] {
        Metric::NORMALISED
    }

    fn item(&self, row: Row) -> Result<Item, String> {
        let context = format!("{} {}", row.text("ctx_a")?, capitalize(row.text("ctx_b")?));
        let prompt = clean(&format!("{}: {context}", row.text("activity_label")?));
        let endings: Vec<_> = row.texts("endings")?.into_iter().map(clean).collect();
        if endings.is_empty() {
            return Err("it has no endings".into());
        }
        Ok(Item { gold: row.label("label", 0, endings.len())?, ask: Ask::Endings { prompt, endings } })
    }
}

/// Takes out what was left by WikiHow: titles, other things in brackets, and then double spaces.
fn clean(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    let (mut plain, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        // A bracket ends on its own line, or is none.
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

    /// What the harness's `preprocess` makes of the same texts.
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
