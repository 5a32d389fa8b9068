//! The formats that rows come in, told by the ending of a file's name.

use std::path::Path;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, file or stream.
    Arrow,
    /// One JSON object a line, or one array of objects.
    Json,
    /// Fields with this between them; the first line names the columns.
    Csv {
        /// A comma or a tab, unless the README says otherwise.
        delimiter: u8,
    },
    /// Each line is a row, of the one column `text`.
    Text,
}

/// A file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    /// Its path in the repository.
    pub(super) path: String,
    /// Its size in bytes, if known.
    pub(super) size: Option<u64>,
    pub(super) format: Format,
}

/// Endings of files, best first: where there are equally many of two, the first is meant (as `datasets` has it).
const ENDINGS: [(&str, Format); 10] = [
    ("parquet", Format::Parquet),
    ("geoparquet", Format::Parquet),
    ("gpq", Format::Parquet),
    ("arrow", Format::Arrow),
    ("jsonl", Format::Json),
    ("json", Format::Json),
    ("ndjson", Format::Json),
    ("csv", Format::Csv { delimiter: b',' }),
    ("tsv", Format::Csv { delimiter: b'\t' }),
    ("txt", Format::Text),
];

/// Names of formats, for messages.
pub(super) const READABLE: &str =
    ".parquet, .arrow, .jsonl, .json, .csv, .tsv or .txt, perhaps with .gz or .zst after it";

impl Format {
    /// The format that a file's name tells, if it is one that can be read.
    pub(super) fn of(path: &str) -> Option<Self> {
        let name = Path::new(path).file_name()?.to_str()?.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
        let ending = name.rsplit_once('.')?.1;
        ENDINGS.into_iter().find(|(known, _)| *known == ending).map(|(_, format)| format)
    }

    /// Formats of one family are read as one set of files.
    pub(super) fn is_akin_to(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }

    /// Its place among formats of which there are equally many files.
    pub(super) fn rank(self) -> usize {
        ENDINGS.iter().position(|(_, format)| format.is_akin_to(self)).unwrap_or(ENDINGS.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_tells() {
        assert_eq!(Format::of("a/train-00000-of-00001.parquet"), Some(Format::Parquet));
        assert_eq!(Format::of("x.jsonl.gz"), Some(Format::Json));
        assert_eq!(Format::of("x.TSV.ZST"), Some(Format::Csv { delimiter: b'\t' }));
        for other in ["x.gz", "json", "x.zip", "x.csv/x", "", "x.", ".gz"] {
            assert_eq!(Format::of(other), None, "{other}");
        }
    }
}
