//! Samples: every question with a model's scores, as JSON lines in the harness's format.

use std::io::Write;
use std::path::Path;

use ngen3_model::files::{create_folders, write_atomic};
use serde_json::{Map, json};

use crate::results::task_result::ResultDetails;
use crate::{Error, Evaluation, Report};

impl Report {
    /// Writes `samples_TASK.jsonl` for each task to a folder, creating it if needed.
    ///
    /// # Errors
    /// [`Error::Write`] with the file's path.
    pub fn write_samples(&self, evaluation: &Evaluation, folder: &Path) -> Result<(), Error> {
        create_folders(folder).map_err(|source| ngen3_model::Error::Write { path: folder.into(), source })?;
        for one in &self.measured {
            let ResultDetails::Task { samples, .. } = &one.details else { continue };
            let Some(prepared) = evaluation.tasks.iter().find(|prepared| prepared.task.name() == one.name) else {
                continue;
            };
            write_atomic(&folder.join(format!("samples_{}.jsonl", one.name)), |file| {
                for (record, (question, sample)) in prepared.questions.iter().zip(samples).enumerate() {
                    let arguments = question.pairs().enumerate().map(|(at, (given, scored))| {
                        (format!("gen_args_{at}"), json!({ "arg_0": given, "arg_1": scored }))
                    });
                    let arguments: Map<_, _> = arguments.collect();
                    let metrics = prepared.task.metrics();
                    let mut line = json!({
                        "doc_id": record,
                        "doc": prepared.task_data.records[record],
                        "target": question.question.gold,
                        "arguments": arguments,
                        "filtered_resps": sample.loglikelihoods,
                        "filter": "none",
                        "metrics": metrics.iter().map(|metric| metric.name()).collect::<Vec<_>>(),
                    });
                    for &metric in metrics {
                        line[metric.name()] = f64::from(u8::from(sample.is_right(metric, &question.question))).into();
                    }
                    writeln!(file, "{line}")?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
