//! Reads a task's records from the hub or a local folder.
//!
//! `--data_dir` holds one folder per dataset (`piqa`, `hellaswag`, `winogrande`, `mmlu`), with one folder per configuration if
//! configurations hold different questions (`mmlu/anatomy`); or it is the folder of a single task. File names tell the split
//! (`validation.jsonl`, `test-00000-of-00001.parquet`). PIQA's answers may be in a separate file, as its authors publish
//! them.

use std::fs;
use std::path::{Path, PathBuf};

use ngen3_data::hub::ProgressFn;
use ngen3_data::{Record, read_records};
use ngen3_model::words::count;

use crate::tasks::task::{Task, TaskSource};
use crate::{Error, tasks};

/// Words for a split in the names of labels files.
const SPLIT_WORDS: [(&str, &[&str]); 2] = [("validation", &["valid", "val", "dev"]), ("train", &["train"])];

/// Records of one split.
#[derive(Debug)]
pub(crate) struct TaskData {
    /// Name of their source.
    pub title: String,
    /// The records, at least one.
    pub records: Vec<Record>,
}

/// Reads one split of a task's data.
///
/// # Errors
/// [`Error::TaskData`] for data that is missing, empty or damaged; [`Error::Interrupted`] when `progress` returns false.
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
        error if data_dir.is_none() => task_error(task, format!("{error} (--data_dir reads it from a local folder)")),
        error => task_error(task, error.to_string()),
    })?;
    if records.is_empty() {
        return Err(task_error(task, format!("{title}: no rows")));
    }
    if let (Some(column), Some((folder, _))) = (task.labels_column(), &place) {
        add_labels(column, folder, split, &mut records).map_err(|reason| task_error(task, reason))?;
    }
    Ok(TaskData { title, records })
}

/// Creates an error about a task's data.
pub(crate) fn task_error(task: &dyn Task, reason: String) -> Error {
    Error::TaskData { task: task.name(), reason }
}

/// Finds the folder with a task's data in `--data_dir`, and the configuration to select in it.
fn locate(source: &TaskSource, folder: &Path) -> Result<(PathBuf, Option<&'static str>), String> {
    if !folder.is_dir() {
        return Err(format!("no folder {}", folder.display()));
    }
    let own = folder.join(source.folder());
    let folder = if own.is_dir() {
        own
    } else if tasks::dataset_folders().iter().any(|name| folder.join(name).is_dir()) {
        // The folder holds other tasks, whose questions must not be mistaken for this one's.
        return Err(format!("no folder {}", own.display()));
    } else {
        folder.into()
    };
    let Some(config) = source.config else { return Ok((folder, None)) };
    let inner = folder.join(config);
    if folder.join("README.md").is_file() {
        // Laid out as on the hub: the README maps configurations to files.
        Ok((folder, Some(config)))
    } else if inner.is_dir() {
        Ok((inner, None))
    } else if source.separate_configs {
        Err(format!("no folder {}", inner.display()))
    } else {
        Ok((folder, None))
    }
}

/// Adds the answers from a labels file, one line per record, if the records lack them and the file exists.
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
        return Err(format!("{shown}: expected {}, got {}", count(records.len(), "line"), labels.len()));
    }
    for (record, label) in records.iter_mut().zip(labels) {
        record.insert(column.into(), label.trim().into());
    }
    Ok(())
}
