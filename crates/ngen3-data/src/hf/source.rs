//! A dataset that a user named, found and read.

use std::path::{Path, PathBuf};

use super::column::Column;
use super::documents::{DocumentGatherer, RecordFn, RecordReader, SplitFiles};
use super::formats::{DataFileReader, Record};
use super::repository::Repository;
use super::{layout, split};
use crate::Error;
use crate::hub::{Hub, ProgressFn, is_local};
use crate::source::DocumentReader;

/// Something that a user named as rows of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfSource {
    /// `OWNER/NAME` on the hub, or a folder or file here.
    pub dataset: String,
    /// Which of its configurations, if it has several.
    pub config: Option<String>,
    /// A split, as the `datasets` library writes it: `train`, `train[:10%]`, `train[1000:2000]+test`.
    pub split: String,
    /// The column that holds the text; `a.b` is the field `b` within it.
    pub column: String,
    /// The branch, tag or commit; the main branch without it.
    pub revision: Option<String>,
    /// Separator between the turns of a conversation, where a row holds a list of texts.
    pub separator: String,
}

/// The files of a source, in reading order.
#[derive(Debug)]
pub(crate) struct ResolvedDataset {
    source: HfSource,
    repository: Repository,
    parts: Vec<SplitFiles>,
}

/// Finds a source's files; on the hub, their list but not yet the files.
///
/// # Errors
/// [`Error::Input`] for a split or column that cannot be meant, [`Error::Hub`] and [`Error::Read`] for what is not there.
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

/// The files of `dataset`, here or on the hub.
fn open(dataset: &str, revision: Option<&str>, progress: &mut ProgressFn) -> Result<Repository, Error> {
    match revision {
        Some(revision) if is_local(dataset) => {
            Err(Error::Input(format!("{dataset} is a folder or file here, so it has no revision {revision}")))
        }
        _ if is_local(dataset) => Repository::local(Path::new(dataset)),
        _ => Repository::on_hub(&Hub::from_env()?, dataset, revision, progress),
    }
}

/// The rows of one split, whole, in order; and what they are, in one line. For benchmarks, which are small: all rows are
/// held at once. Files are found as by `hf_tokenize`; but in a folder here without a README, files that are called as the
/// split come first.
///
/// # Errors
/// As of `hf_tokenize`: [`Error::Input`] for a configuration or split that is not there, [`Error::Hub`] and [`Error::Read`]
/// for files that cannot be had or are damaged.
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
        let file =
            DataFileReader { name: &name, path: &path, format: file.format, column: None, skip: 0, scratch: &scratch };
        records.append(&mut file.records()?);
    }
    Ok((title, records))
}

impl ResolvedDataset {
    /// The rows, in one line.
    pub(crate) fn title(&self) -> String {
        format!("{}, split {}, column {}", self.repository.title(), self.source.split, self.source.column)
    }

    /// Begins to read. `scratch` is a folder for temporary files; `cut` is as for [`DocumentReader::start`].
    ///
    /// # Errors
    /// As [`DocumentReader::start`]; [`Error::Input`] for a column that cannot be meant.
    pub(crate) fn documents(
        self,
        scratch: PathBuf,
        cut: impl Fn(&str) -> Option<usize> + Send + 'static,
    ) -> Result<DocumentReader, Error> {
        let column = Column::parse(&self.source.column, &self.source.separator)?;
        let Self { repository, parts, .. } = self;
        DocumentReader::spawn(move |sink| {
            DocumentGatherer::new(sink, &cut).read(&repository, &column, &scratch, &parts)
        })
    }

    /// Gives each row to `take`, with a text that is a string as it is, or a list of turns as JSON.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that is damaged, or lacks the column; whatever `take` returns.
    pub(crate) fn conversations(&self, progress: &mut ProgressFn, take: &mut RecordFn) -> Result<(), Error> {
        let column = Column::parse(&self.source.column, &self.source.separator)?.of_conversations();
        let scratch = std::env::temp_dir();
        let mut reader = RecordReader { repository: &self.repository, column: &column, scratch: &scratch, progress };
        reader.each(&self.parts, take).map(drop)
    }
}
