//! A data file, opened as each format needs it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::catch_panic::catch_panic;
use crate::hf::column::Column;
use crate::hf::format::Format;
use crate::source::limited::read_line;
use crate::source::open::{ByteSource, open_file};
use crate::source::utf8::read_error;

pub(super) const BUFFER: usize = 1 << 18;

/// A data file, and the records of it to read.
pub(in crate::hf) struct DataFileReader<'a> {
    /// Name for messages.
    pub(in crate::hf) name: &'a str,
    /// Path on disk.
    pub(in crate::hf) path: &'a Path,
    pub(in crate::hf) format: Format,
    /// Column of the text; without one, records are only counted.
    pub(in crate::hf) column: Option<&'a Column>,
    /// Records to skip at the start.
    pub(in crate::hf) skip: u64,
    /// Folder for temporary files.
    pub(in crate::hf) scratch: &'a Path,
}

/// A record: its text, if any, and the bytes of the file read so far.
pub(in crate::hf) struct TextRecord<'a> {
    pub(in crate::hf) text: Option<&'a str>,
    pub(in crate::hf) bytes_read: u64,
}

/// Receives records until it has enough.
pub(in crate::hf) type TextRecordFn<'a> = dyn FnMut(TextRecord) -> Result<ControlFlow<()>, Error> + 'a;

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
