//! Datasets of the Hugging Face hub, or laid out like them: which files make a split, and their rows as documents.
//!
//! [`HfSource`] is what a user names; [`find`] settles it to files; [`Found::feed`] reads these in order, on a thread of its
//! own. Read `repository.rs` (a folder or the hub), `layout.rs` (which files make which split, with `card.rs` and `glob.rs`),
//! `split.rs` (`train[:10%]+test`), `column.rs` (a row becomes text), `rows/` (one file for each format), `reading.rs`.

mod card;
mod column;
mod format;
mod glob;
mod layout;
mod reading;
mod repository;
mod rows;
mod split;

use std::path::PathBuf;

use crate::Error;
use crate::hub::{Hub, Tell, is_local};
use crate::source::Feed;
use column::Column;
use reading::Reading;
use repository::Repository;
use split::Slice;

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
    /// What stands between the turns of a conversation, where a row holds a list of texts.
    pub separator: String,
}

/// The files of a source, in reading order.
#[derive(Debug)]
pub(crate) struct Found {
    source: HfSource,
    repository: Repository,
    parts: Vec<Part>,
}

/// The rows of one split.
#[derive(Debug)]
struct Part {
    slice: Slice,
    files: Vec<format::DataFile>,
}

/// Finds a source's files; on the hub, their list but not yet the files.
///
/// # Errors
/// [`Error::Input`] for a split or column that cannot be meant, [`Error::Hub`] and [`Error::Read`] for what is not there.
pub(crate) fn find(source: &HfSource, tell: &mut Tell) -> Result<Found, Error> {
    let slices = split::parse(&source.split)?;
    Column::parse(&source.column, &source.separator)?;
    let repository = if is_local(&source.dataset) {
        if let Some(revision) = &source.revision {
            let reason = format!("{} is a folder or file here, so it has no revision {revision}", source.dataset);
            return Err(Error::Input(reason));
        }
        Repository::local(&PathBuf::from(&source.dataset))?
    } else {
        Repository::on_hub(&Hub::from_env()?, &source.dataset, source.revision.as_deref(), tell)?
    };
    let (repository, layout) = layout::find(repository, source.config.as_deref(), tell)?;
    let parts = slices
        .into_iter()
        .map(|slice| Ok(Part { files: layout.files(&slice.split, &repository, tell)?, slice }))
        .collect::<Result<_, Error>>()?;
    Ok(Found { source: source.clone(), repository, parts })
}

impl Found {
    /// What the rows are, in one line.
    pub(crate) fn title(&self) -> String {
        format!("{}, split {}, column {}", self.repository.title(), self.source.split, self.source.column)
    }

    /// Begins to read. `scratch` is a folder for temporary files; `cut` is as for [`Feed::start`].
    ///
    /// # Errors
    /// As [`Feed::start`]; [`Error::Input`] for a column that cannot be meant.
    pub(crate) fn feed(
        self,
        scratch: PathBuf,
        cut: impl Fn(&str) -> Option<usize> + Send + 'static,
    ) -> Result<Feed, Error> {
        let column = Column::parse(&self.source.column, &self.source.separator)?;
        let Self { repository, parts, .. } = self;
        Feed::run(move |sink| Reading::new(&repository, &column, &scratch, sink, &cut).read(&parts))
    }
}
