//! Finds and reads a dataset that the user named.

use std::path::{Path, PathBuf};

use super::column::Column;
use super::documents::{DocumentGatherer, RecordFn, RecordReader, SplitFiles};
use super::format::Format;
use super::formats::{DataFileReader, Record, RecordOptions, RecordReport, Wanted};
use super::repository::Repository;
use super::{layout, split};
use crate::Error;
use crate::hub::{Hub, ProgressFn, is_local};
use crate::source::DocumentReader;
use crate::source::kind::is_archive_name;

/// A dataset of text records, as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfSource {
    /// `OWNER/NAME` on the hub, or a local folder, file or archive.
    pub dataset: String,
    /// Configuration, if the dataset has several.
    pub config: Option<String>,
    /// A split, as the `datasets` library writes it: `train`, `train[:10%]`, `train[1000:2000]+test`.
    pub split: String,
    /// The column that holds the text; `a.b` is the field `b` within it.
    pub column: String,
    /// Branch, tag or commit; by default the main branch.
    pub revision: Option<String>,
    /// Separator between the turns of a conversation, for records that hold a list of texts.
    pub separator: String,
    /// How to read the files, and what to do with bad records.
    pub options: RecordOptions,
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
    Column::parse(&source.column, &source.separator)?;
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
        format!("{}, split {}, column {}", self.repository.title(), self.source.split, self.source.column)
    }

    /// Starts reading. `scratch` is a folder for temporary files; `cut` is as for [`DocumentReader::start`].
    ///
    /// # Errors
    /// As [`DocumentReader::start`]; [`Error::Input`] for an invalid column.
    pub(crate) fn documents(
        self,
        scratch: PathBuf,
        cut: impl Fn(&str) -> Option<usize> + Send + 'static,
    ) -> Result<DocumentReader, Error> {
        let column = Column::parse(&self.source.column, &self.source.separator)?;
        let Self { mut repository, parts, source } = self;
        let folder = repository.take_folder();
        let reader = DocumentReader::spawn(move |sink| {
            DocumentGatherer::new(sink, &cut).read(&repository, &column, &scratch, source.options, &parts)
        })?;
        Ok(reader.with_folder(folder))
    }

    /// Passes each record to `take`, strings verbatim and lists of turns as JSON.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that is damaged or lacks the column; any error of `take`.
    pub(crate) fn conversations(&self, progress: &mut ProgressFn, take: &mut RecordFn) -> Result<(), Error> {
        let column = Column::parse(&self.source.column, &self.source.separator)?.of_conversations();
        let scratch = std::env::temp_dir();
        let (repository, options) = (&self.repository, self.source.options);
        let report = &RecordReport::default();
        let mut reader = RecordReader { repository, column: &column, scratch: &scratch, options, report, progress };
        reader.each(&self.parts, take).map(drop)
    }
}
