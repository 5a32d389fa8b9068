//! Rows of a file, one after the other, whatever its format.

mod arrow;
mod csv;
mod json;
mod parquet;
pub(super) mod records;
mod text;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::column::Column;
use super::format::Format;
use crate::Error;
use crate::caught::caught;
use crate::source::line::read_line;
use crate::source::open::{Opened, open_file};
use crate::source::text::read_error;

const BUFFER: usize = 1 << 18;

/// A file whose rows are wanted.
pub(super) struct Rows<'a> {
    /// For messages.
    pub(super) name: &'a str,
    /// Where it is on disk.
    pub(super) path: &'a Path,
    pub(super) format: Format,
    /// The text's column; without one, rows are only counted.
    pub(super) column: Option<&'a Column>,
    /// Rows at the start that are not wanted.
    pub(super) skip: u64,
    /// A folder for temporary files.
    pub(super) scratch: &'a Path,
}

/// A row: its text, if it has any, and how many bytes of the file were read by then.
pub(super) struct Row<'a> {
    pub(super) text: Option<&'a str>,
    pub(super) consumed: u64,
}

/// Takes rows until it has enough.
pub(super) type Take<'a> = dyn FnMut(Row) -> Result<ControlFlow<()>, Error> + 'a;

impl Rows<'_> {
    /// Gives every row after the skipped ones to `take`.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that is damaged, lacks the column, or has in it what is no text; whatever `take` returns.
    pub(super) fn read(&self, take: &mut Take) -> Result<(), Error> {
        match self.format {
            Format::Parquet => self.caught("parquet", || parquet::read(self, take)),
            Format::Arrow => self.caught("arrow", || arrow::read(self, take)),
            Format::Json => json::read(self, take),
            Format::Csv { delimiter } => csv::read(self, delimiter, take),
            Format::Text => text::read(self, take),
        }
    }

    /// How many rows there are.
    ///
    /// # Errors
    /// As [`Rows::read`].
    pub(super) fn count(&self) -> Result<u64, Error> {
        if self.format == Format::Parquet {
            return self.caught("parquet", || parquet::count(self));
        }
        let mut count = 0;
        Rows { column: None, skip: 0, ..*self }.read(&mut |_| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(count)
    }

    fn failed(&self, reason: impl ToString) -> Error {
        Error::Read { name: self.name.into(), reason: reason.to_string() }
    }

    /// The file as a stream, unpacked if it is packed.
    fn stream(&self) -> Result<Stream, Error> {
        let Opened { bytes, unpacked, consumed } = open_file(self.name, self.path)?;
        Ok(Stream { bytes: BufReader::with_capacity(BUFFER, bytes), unpacked, consumed, name: self.name.into() })
    }

    /// The file as one that can be read here and there: unpacked into a nameless temporary file if it is packed.
    fn file(&self) -> Result<File, Error> {
        let mut opened = open_file(self.name, self.path)?;
        if !opened.unpacked {
            return File::open(self.path).map_err(|error| self.failed(error));
        }
        let mut file = tempfile::tempfile_in(self.scratch).map_err(|error| self.failed(error))?;
        io::copy(&mut opened.bytes, &mut file)
            .and_then(|_| file.rewind())
            .map_err(|error| read_error(self.name, true, &error))?;
        Ok(file)
    }

    /// Runs a library that may panic on a malformed file; that is an error here.
    fn caught<T>(&self, library: &str, run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        caught(library, run).map_err(|reason| self.failed(reason)).flatten()
    }
}

/// A file's bytes.
struct Stream {
    bytes: BufReader<Box<dyn Read + Send>>,
    unpacked: bool,
    consumed: Arc<AtomicU64>,
    name: String,
}

impl Stream {
    /// Bytes read so far of the file as it is stored.
    fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    /// As [`read_line`].
    fn read_line(&mut self, line: &mut Vec<u8>, number: &mut u64) -> Result<bool, Error> {
        read_line(&self.name, self.unpacked, &mut self.bytes, line, number)
    }

    fn failed(&self, error: &io::Error) -> Error {
        read_error(&self.name, self.unpacked, error)
    }
}
