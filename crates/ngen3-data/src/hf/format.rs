//! File formats of records, recognised by the file's extension.

use std::path::Path;

use crate::source::bytes::open::without_compression;

/// Format of a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, file or stream.
    Arrow,
    /// One JSON object per line, or one array of objects.
    Json,
    /// Delimited fields; the first line names the columns.
    Csv {
        /// The usual one by the extension, or the one that the README gives.
        delimiter: u8,
        /// True if the README gives it: then no other is tried.
        given: bool,
    },
    /// One record per line, in the only column `text`.
    Text,
}

/// A data file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    /// Path in the repository.
    pub(super) path: String,
    /// Size in bytes, if known.
    pub(super) size: Option<u64>,
    pub(super) format: Format,
}

/// Extensions in order of preference: of two with equally many files the first is used (as in `datasets`).
const ENDINGS: [(&str, Format); 10] = [
    ("parquet", Format::Parquet),
    ("geoparquet", Format::Parquet),
    ("gpq", Format::Parquet),
    ("arrow", Format::Arrow),
    ("jsonl", Format::Json),
    ("json", Format::Json),
    ("ndjson", Format::Json),
    ("csv", Format::Csv { delimiter: b',', given: false }),
    ("tsv", Format::Csv { delimiter: b'\t', given: false }),
    ("txt", Format::Text),
];

/// Supported extensions, for messages.
pub(super) const READABLE: &str =
    ".parquet, .arrow, .jsonl, .json, .csv, .tsv or .txt, optionally with .gz, .zst, .xz or .bz2 after it";

impl Format {
    /// Returns the format of a file by its extension, if it is supported.
    pub(super) fn of(path: &str) -> Option<Self> {
        let name = Path::new(path).file_name()?.to_str()?.to_ascii_lowercase();
        let ending = without_compression(&name).rsplit_once('.')?.1;
        ENDINGS.into_iter().find(|(known, _)| *known == ending).map(|(_, format)| format)
    }

    /// True if both are the same format, whatever the delimiter: such files are read together.
    pub(super) fn is_akin_to(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }

    /// Rank among formats with equally many files, best first.
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
        assert_eq!(Format::of("x.TSV.ZST"), Some(Format::Csv { delimiter: b'\t', given: false }));
        for other in ["x.gz", "json", "x.zip", "x.tar.gz", "x.csv/x", "", "x.", ".gz"] {
            assert_eq!(Format::of(other), None, "{other}");
        }
    }
}
