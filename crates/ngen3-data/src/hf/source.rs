//! Finds and reads a dataset that the user named.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::column::{Column, USUAL};
use super::documents::{DocumentGatherer, RecordReader, SourceRecord, SplitFiles};
use super::format::Format;
use super::formats::{DataFileReader, RecordOptions, RecordReport, Wanted};
use super::record::Record;
use super::repository::Repository;
use super::{layout, split};
use crate::Error;
use crate::hub::{Hub, ProgressFn, is_local};
use crate::source::bytes::kind::is_archive_name;
use crate::source::{DocumentReader, DocumentSender};

/// A dataset of text records, as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfSource {
    /// `OWNER/NAME` on the hub, or a local folder, file or archive.
    pub dataset: String,
    /// Configuration, if the dataset has several.
    pub config: Option<String>,
    /// A split, as the `datasets` library writes it: `train`, `train[:10%]`, `train[1000:2000]+test`.
    pub split: String,
    /// The column that holds the text; `a.b` is the field `b` within it. `None` for one of the usual ones.
    pub column: Option<String>,
    /// Branch, tag or commit; by default the main branch.
    pub revision: Option<String>,
    /// Separator between the turns of a conversation, for records that hold a list of texts.
    pub separator: String,
    /// Options for reading the files, among them for bad records.
    pub options: RecordOptions,
}

impl HfSource {
    /// Returns the columns that may hold the text, best first.
    fn columns(&self) -> Result<Vec<Column>, Error> {
        match &self.column {
            Some(name) => Ok(vec![Column::parse(name, &self.separator)?]),
            None => USUAL.into_iter().map(|name| Column::parse(name, &self.separator)).collect(),
        }
    }
}

/// The files of a source, in reading order.
#[derive(Debug)]
pub(crate) struct ResolvedDataset {
    source: HfSource,
    repository: Repository,
    parts: Vec<SplitFiles>,
}

/// Finds a source's files; on the hub, lists them without downloading any.
///
/// # Errors
/// [`Error::Input`] for an invalid split or column, [`Error::Hub`] and [`Error::Read`] for missing files.
pub(crate) fn resolve(source: &HfSource, progress: &mut ProgressFn) -> Result<ResolvedDataset, Error> {
    let slices = split::parse(&source.split)?;
    source.columns()?;
    let repository = open(&source.dataset, source.revision.as_deref(), progress)?;
    let (repository, layout) = layout::find(repository, source.config.as_deref(), progress)?;
    let parts = slices
        .into_iter()
        .map(|slice| Ok(SplitFiles { files: layout.files(&slice.split, &repository, progress)?, slice }))
        .collect::<Result<_, Error>>()?;
    Ok(ResolvedDataset { source: source.clone(), repository, parts })
}

/// True for a name that can only be meant as a path: one of a data file or an archive, or one that is no `OWNER/NAME`.
fn looks_local(dataset: &str) -> bool {
    let file = Format::of(dataset).is_some() || is_archive_name(dataset);
    file || dataset.starts_with(['.', '/', '~']) || dataset.split('/').filter(|part| !part.is_empty()).count() > 2
}

/// Opens `dataset`, locally or on the hub.
fn open(dataset: &str, revision: Option<&str>, progress: &mut ProgressFn) -> Result<Repository, Error> {
    let local = is_local(dataset) || looks_local(dataset);
    match revision {
        Some(revision) if local => Err(Error::Input(format!("{dataset}: a local path has no revision {revision}"))),
        _ if local => Repository::local(Path::new(dataset), progress),
        _ => Repository::on_hub(&Hub::from_env()?, dataset, revision, progress),
    }
}

/// Reads all records of one split, in order; returns a one-line description and the records. For benchmarks, which fit in
/// memory. Files are found as by `hf_tokenize`, except that in a local folder without a README files named after the split
/// come first.
///
/// # Errors
/// As `hf_tokenize`: [`Error::Input`] for an unknown configuration or split, [`Error::Hub`] and [`Error::Read`] for files that
/// are missing or damaged.
pub fn read_records(
    dataset: &str,
    config: Option<&str>,
    split: &str,
    progress: &mut ProgressFn,
) -> Result<(String, Vec<Record>), Error> {
    let repository = open(dataset, None, progress)?;
    let (repository, layout) = match layout::by_split_name(&repository, split).filter(|_| config.is_none()) {
        Some(layout) => (repository, layout),
        None => layout::find(repository, config, progress)?,
    };
    let title = format!("{}, split {split}", repository.title());
    let mut records = Vec::new();
    for file in layout.files(split, &repository, progress)? {
        let (name, path) = (repository.name_of(&file.path), repository.fetch(&file.path, progress)?);
        let scratch = std::env::temp_dir();
        let file = DataFileReader {
            name: &name,
            path: &path,
            format: file.format,
            wanted: Wanted::Everything,
            skip: 0,
            scratch: &scratch,
            options: RecordOptions::default(),
            report: &RecordReport::default(),
        };
        records.append(&mut file.records()?);
    }
    Ok((title, records))
}

impl ResolvedDataset {
    /// Describes the records in one line, for meta.json.
    pub(crate) fn title(&self) -> String {
        let column = self.source.column.as_ref().map_or_else(String::new, |column| format!(", column {column}"));
        format!("{}, split {}{column}", self.repository.title(), self.source.split)
    }

    /// Starts reading. `scratch` is a folder for temporary files; `cut` is as for [`DocumentReader::start`].
    ///
    /// # Errors
    /// As [`DocumentReader::start`]; [`Error::Input`] for an invalid column.
    pub(crate) fn documents(
        mut self,
        scratch: PathBuf,
        cut: impl Fn(&str) -> Option<usize> + Send + 'static,
    ) -> Result<DocumentReader, Error> {
        let folder = self.repository.take_folder();
        let reader = DocumentReader::spawn(move |sender| self.send(sender, &scratch, &cut))?;
        Ok(reader.with_folder(folder))
    }

    /// Reads and sends all documents.
    ///
    /// # Errors
    /// [`Error::Input`] for an invalid column; [`Error::Read`] for a file that is damaged or lacks it.
    pub(crate) fn send(
        &self,
        sender: DocumentSender,
        scratch: &Path,
        cut: &impl Fn(&str) -> Option<usize>,
    ) -> Result<(), Error> {
        let columns = self.source.columns()?;
        DocumentGatherer::new(sender, cut, &columns).read(&self.repository, scratch, self.source.options, &self.parts)
    }

    /// Passes each record to `take`: the value of the column, if the user named one, and those of the columns `names` that there
    /// are.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that is damaged or lacks the columns; any error of `take`.
    pub(crate) fn conversations(
        &self,
        names: &[String],
        progress: &mut ProgressFn,
        take: &mut dyn FnMut(ConversationRecord) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let column = self.source.column.as_ref().map(|name| Column::parse(name, "")).transpose()?;
        let wanted = column.as_ref().map_or(Wanted::AnyOf(names), |column| Wanted::ColumnAnd(column, names));
        let scratch = std::env::temp_dir();
        let (repository, options) = (&self.repository, self.source.options);
        let report = &RecordReport::default();
        let mut reader = RecordReader { repository, wanted, scratch: &scratch, options, report, progress };
        let mut take = |record: SourceRecord| {
            let SourceRecord { name, number, mut columns, is_of_table, .. } = record;
            if is_of_table {
                // Every struct has all fields of the column's type, and null stands for those that are missing.
                columns.values_mut().for_each(drop_nulls);
            }
            let value = column.as_ref().map(|column| column.value(&columns).map_or(Value::Null, Cow::into_owned));
            Ok(take(ConversationRecord { name, number, value, columns })?)
        };
        reader.each(&self.parts, &mut take).map(drop)
    }
}

/// A record that may be a conversation.
pub(crate) struct ConversationRecord<'a> {
    /// Name of its file.
    pub(crate) name: &'a str,
    /// Number of the record in the file, from 1.
    pub(crate) number: u64,
    /// Value of the column that the user named, if any.
    pub(crate) value: Option<Value>,
    /// Values of other columns, by name.
    pub(crate) columns: Record,
}

/// Removes the fields that are null, at every depth.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        _ => {}
    }
}
