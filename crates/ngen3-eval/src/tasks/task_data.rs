//! Records of a task: from the hub, or from a folder laid out like it.
//!
//! Below the folder of `--data_dir` a task has one called as its dataset (`piqa`, `hellaswag`, `winogrande`, `mmlu`), with a
//! folder for each configuration in it where configurations hold different questions (`mmlu/anatomy`); a folder of the
//! task's own data may be given itself. Which file is which split, their names tell, as everywhere (`validation.jsonl`,
//! `test-00000-of-00001.parquet`). PIQA's answers may be in a file of their own, as its authors publish it.

use std::fs;
use std::path::{Path, PathBuf};

use ngen3_data::hub::ProgressFn;
use ngen3_data::{Record, read_records};
use ngen3_model::words::count;

use crate::tasks::task::{Task, TaskSource};
use crate::{Error, tasks};

/// What names of files call a split.
const SPLIT_WORDS: [(&str, &[&str]); 2] = [("validation", &["valid", "val", "dev"]), ("train", &["train"])];

/// Rows of a split.
#[derive(Debug)]
pub(crate) struct TaskData {
    /// Where they are from.
    pub title: String,
    /// The records, at least one.
    pub records: Vec<Record>,
}

/// Reads one split of a task's data.
///
/// # Errors
/// [`Error::TaskData`] naming the task and what is missing or wrong.
pub(crate) fn read(
    task: &dyn Task,
    split: &str,
    data_dir: Option<&Path>,
    progress: &mut ProgressFn,
) -> Result<TaskData, Error> {
    let source = task.source();
    let place = data_dir.map(|folder| locate(&source, folder)).transpose();
    let place = place.map_err(|reason| task_error(task, reason))?;
    let read = match &place {
        Some((folder, config)) => {
            let folder =
                folder.to_str().ok_or_else(|| task_error(task, format!("{} is not UTF-8", folder.display())))?;
            read_records(folder, *config, split, progress)
        }
        None => read_records(source.dataset, source.config, split, progress),
    };
    let (title, mut records) = read.map_err(|error| match error {
        ngen3_data::Error::Interrupted => Error::Interrupted,
        error if data_dir.is_none() => {
            task_error(task, format!("{error} (a folder of its data can be given with --data_dir)"))
        }
        error => task_error(task, error.to_string()),
    })?;
    if records.is_empty() {
        return Err(task_error(task, format!("{title} has no rows")));
    }
    if let (Some(column), Some((folder, _))) = (task.labels_column(), &place) {
        add_labels(column, folder, split, &mut records).map_err(|reason| task_error(task, reason))?;
    }
    Ok(TaskData { title, records })
}

/// A complaint about a task's data.
pub(crate) fn task_error(task: &dyn Task, reason: String) -> Error {
    Error::TaskData { task: task.name(), reason }
}

/// The folder with a task's data below the one that was given, and the configuration to choose in it.
fn locate(source: &TaskSource, folder: &Path) -> Result<(PathBuf, Option<&'static str>), String> {
    if !folder.is_dir() {
        return Err(format!("there is no folder {}", folder.display()));
    }
    let own = folder.join(source.folder());
    let folder = if own.is_dir() {
        own
    } else if tasks::dataset_folders().iter().any(|name| folder.join(name).is_dir()) {
        // Of other tasks, whose questions are not to be taken for this one's.
        return Err(format!("there is no folder {}", own.display()));
    } else {
        folder.into()
    };
    let Some(config) = source.config else { return Ok((folder, None)) };
    let inner = folder.join(config);
    if folder.join("README.md").is_file() {
        // As it is on the hub: the README says which files are which configuration's.
        Ok((folder, Some(config)))
    } else if inner.is_dir() {
        Ok((inner, None))
    } else if source.separate_configs {
        Err(format!("there is no folder {}", inner.display()))
    } else {
        Ok((folder, None))
    }
}

/// Adds the answers that stand in a file of their own, a line for each record, if the records lack them and there is such a file.
fn add_labels(column: &str, folder: &Path, split: &str, records: &mut [Record]) -> Result<(), String> {
    let words = SPLIT_WORDS.iter().find(|(name, _)| *name == split).map_or(&[][..], |(_, words)| words);
    let is_labels = |name: &str| name.ends_with("labels.lst") && words.iter().any(|word| name.contains(word));
    if records.iter().any(|record| record.contains_key(column)) {
        return Ok(());
    }
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        files.extend(path.file_name().and_then(|name| name.to_str()).is_some_and(is_labels).then_some(path));
    }
    let Some(file) = files.into_iter().min() else { return Ok(()) };
    let shown = file.display();
    let text = fs::read_to_string(&file).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let labels: Vec<_> = text.lines().collect();
    if labels.len() != records.len() {
        return Err(format!("{shown} has {} for {}", count(labels.len(), "line"), count(records.len(), "row")));
    }
    for (record, label) in records.iter_mut().zip(labels) {
        record.insert(column.into(), label.trim().into());
    }
    Ok(())
}
