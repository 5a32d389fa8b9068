//! A data file, opened as each format needs it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::catch_panic::catch_panic;
use crate::hf::column::{Column, no_usual_column};
use crate::hf::format::Format;
use crate::hf::record::Record;
use crate::source::limited::read_line;
use crate::source::open::{ByteSource, open_file};
use crate::source::utf8::read_error;

pub(super) const BUFFER: usize = 1 << 18;
/// Records after which a column that none of them had is reported as missing.
pub(super) const MAX_RECORDS_WITHOUT_COLUMN: u64 = 1000;

/// A data file, and the records of it to read.
pub(in crate::hf) struct DataFileReader<'a> {
    /// Name for messages.
    pub(in crate::hf) name: &'a str,
    /// Path on disk.
    pub(in crate::hf) path: &'a Path,
    pub(in crate::hf) format: Format,
    pub(in crate::hf) wanted: Wanted<'a>,
    /// Records to skip at the start.
    pub(in crate::hf) skip: u64,
    /// Folder for temporary files.
    pub(in crate::hf) scratch: &'a Path,
}

/// Top-level columns to read.
#[derive(Clone, Copy)]
pub(in crate::hf) enum Wanted<'a> {
    /// None: records are only counted.
    Nothing,
    /// All of them.
    Everything,
    /// Those that the column may be in.
    Column(&'a Column),
    /// Those of these names that there are.
    AnyOf(&'a [String]),
    /// Those that the column may be in, and those of these names that there are.
    ColumnAnd(&'a Column, &'a [String]),
}

impl Wanted<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Column(column) => column.is_in(name),
            Self::AnyOf(names) => names.iter().any(|wanted| wanted == name),
            Self::ColumnAnd(column, names) => column.is_in(name) || names.iter().any(|wanted| wanted == name),
        }
    }

    /// Describes the error of a file with these columns only; `None` if they will do.
    pub(super) fn missing<'a>(&self, names: impl IntoIterator<Item = &'a String> + Clone) -> Option<String> {
        let all = || names.clone().into_iter().cloned().collect::<Vec<_>>();
        match self {
            Self::Nothing | Self::Everything => None,
            Self::Column(column) | Self::ColumnAnd(column, _) => {
                let has = names.clone().into_iter().any(|name| column.is_in(name));
                (!has).then(|| column.missing(&all()))
            }
            Self::AnyOf(wanted) => {
                let has = names.clone().into_iter().any(|name| wanted.contains(name));
                (!has).then(|| no_usual_column(&all()))
            }
        }
    }

    /// Returns the indices of the wanted columns among all those of a file.
    ///
    /// # Errors
    /// A message that names the columns, if none of them is wanted.
    pub(super) fn among(&self, names: &[String]) -> Result<Vec<usize>, String> {
        match self.missing(names) {
            Some(reason) => Err(reason),
            None => Ok((0..names.len()).filter(|&index| self.has(&names[index])).collect()),
        }
    }
}

/// A record with its wanted columns, and the bytes of the file read so far.
pub(in crate::hf) struct FileRecord {
    pub(in crate::hf) columns: Record,
    pub(in crate::hf) bytes_read: u64,
}

/// Receives records until it has enough.
pub(in crate::hf) type FileRecordFn<'a> = dyn FnMut(FileRecord) -> Result<ControlFlow<()>, Error> + 'a;

impl DataFileReader<'_> {
    pub(super) fn failed(&self, reason: impl std::fmt::Display) -> Error {
        Error::read(self.name, reason)
    }

    /// Opens the file as a stream, decompressed.
    pub(super) fn stream(&self) -> Result<RecordStream, Error> {
        let ByteSource { bytes, compressed, bytes_read } = open_file(self.name, self.path)?;
        Ok(RecordStream {
            bytes: BufReader::with_capacity(BUFFER, bytes),
            compressed,
            bytes_read,
            name: self.name.into(),
        })
    }

    /// Opens the file for random access; a compressed one is decompressed into an unnamed temporary file.
    pub(super) fn file(&self) -> Result<File, Error> {
        let mut opened = open_file(self.name, self.path)?;
        if !opened.compressed {
            return File::open(self.path).map_err(|error| self.failed(error));
        }
        let mut file = tempfile::tempfile_in(self.scratch).map_err(|error| self.failed(error))?;
        io::copy(&mut opened.bytes, &mut file)
            .and_then(|_| file.rewind())
            .map_err(|error| read_error(self.name, true, &error))?;
        Ok(file)
    }

    /// Runs a library that may panic on a malformed file, and returns a panic as an error.
    pub(super) fn catch_panic<T>(&self, library: &str, run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        catch_panic(library, run).map_err(|reason| self.failed(reason)).flatten()
    }
}

/// A data file as a stream of bytes.
pub(super) struct RecordStream {
    pub(super) bytes: BufReader<Box<dyn Read + Send>>,
    pub(super) compressed: bool,
    pub(super) bytes_read: Arc<AtomicU64>,
    pub(super) name: String,
}

impl RecordStream {
    /// Stored bytes read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// As [`read_line`].
    pub(super) fn read_line(&mut self, line: &mut Vec<u8>, number: &mut u64) -> Result<bool, Error> {
        read_line(&self.name, self.compressed, &mut self.bytes, line, number)
    }

    pub(super) fn failed(&self, error: &io::Error) -> Error {
        read_error(&self.name, self.compressed, error)
    }
}
