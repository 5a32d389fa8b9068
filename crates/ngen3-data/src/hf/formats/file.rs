//! A data file, opened as each format needs it.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ngen3_model::words::count;

use crate::Error;
use crate::catch_panic::catch_panic;
use crate::hf::column::{Column, no_usual_column};
use crate::hf::format::Format;
use crate::hf::record::Record;
use crate::source::TextOptions;
use crate::source::bytes::limited::read_line;
use crate::source::bytes::open::open_file;
use crate::source::bytes::read_error::read_error;
use crate::source::text::encoding::open_text;

pub(super) const BUFFER: usize = 1 << 18;
/// Characters shown of an error, which may quote the file.
const MAX_REASON: usize = 300;
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
    pub(in crate::hf) options: RecordOptions,
    /// Receives notes about the file.
    pub(in crate::hf) report: &'a RecordReport,
}

/// Options for reading records, most of them for text formats: JSON, CSV and plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordOptions {
    /// Encoding of text formats, and what to do with invalid bytes in the column.
    pub text: TextOptions,
    /// Separator of CSV fields; `None` for the README's, or else one that fits the header.
    pub csv_separator: Option<u8>,
    /// True to skip and count bad records; otherwise the first one is an error.
    pub skip_bad: bool,
}

/// Notes for the user about files that were read.
#[derive(Debug, Default)]
pub(in crate::hf) struct RecordReport {
    notes: RefCell<Vec<String>>,
    /// Number of notes already taken.
    taken: Cell<usize>,
    bad: Cell<u64>,
    /// The first bad record that was skipped, and its error.
    first_bad: RefCell<Option<String>>,
    replaced: Cell<u64>,
    /// The same of each file whose encoding is converted.
    converted: RefCell<Vec<Rc<Cell<u64>>>>,
}

impl RecordReport {
    /// Adds a note, once.
    pub(super) fn note(&self, note: String) {
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// Counts invalid sequences that were replaced by U+FFFD.
    pub(super) fn replaced(&self, n: u64) {
        self.replaced.set(self.replaced.get() + n);
    }

    /// Returns the notes that are new.
    pub(in crate::hf) fn take_notes(&self) -> Vec<String> {
        let notes = self.notes.borrow();
        notes[self.taken.replace(notes.len())..].to_vec()
    }

    /// Returns notes about all that was read.
    pub(in crate::hf) fn summary(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let replaced = self.replaced.get() + self.converted.borrow().iter().map(|count| count.get()).sum::<u64>();
        if replaced > 0 {
            notes.push(format!("replaced {} by U+FFFD", count(replaced, "invalid sequence")));
        }
        if let Some(first) = &*self.first_bad.borrow() {
            notes.push(format!("skipped {}; the first: {first}", count(self.bad.get(), "bad record")));
        }
        notes
    }
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
    /// `None` for a bad record that is skipped.
    pub(in crate::hf) columns: Option<Record>,
    pub(in crate::hf) bytes_read: u64,
}

/// Receives records until it has enough.
pub(in crate::hf) type FileRecordFn<'a> = dyn FnMut(FileRecord) -> Result<ControlFlow<()>, Error> + 'a;

impl DataFileReader<'_> {
    pub(super) fn failed(&self, reason: impl std::fmt::Display) -> Error {
        Error::read(self.name, reason)
    }

    /// Returns `None` for a bad record if such are skipped, which counts it.
    ///
    /// # Errors
    /// The error itself if bad records are not skipped.
    pub(in crate::hf) fn skip_bad<T>(&self, error: Error) -> Result<Option<T>, Error> {
        if self.options.skip_bad {
            let report = self.report;
            report.bad.set(report.bad.get() + 1);
            report.first_bad.borrow_mut().get_or_insert_with(|| shortened(&error.to_string()));
            return Ok(None);
        }
        Err(match error {
            // Benchmarks, which read whole records, skip none.
            Error::Read { name, reason } if !matches!(self.wanted, Wanted::Everything) => {
                Error::Read { name, reason: format!("{reason} (use --skip_bad to skip such records)") }
            }
            error => error,
        })
    }

    /// Returns bytes of the column as text; invalid ones are replaced if they may be. `place` names them in the error.
    pub(super) fn text<'b>(&self, bytes: &'b [u8], place: impl FnOnce() -> String) -> Result<Cow<'b, str>, Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.into()),
            Err(_) if self.options.text.lossy => {
                let broken = bytes.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count();
                self.report.replaced(broken as u64);
                Ok(String::from_utf8_lossy(bytes))
            }
            Err(error) => {
                let (place, at) = (place(), error.valid_up_to());
                // Text in tables has no other encoding.
                let advice = match self.format {
                    Format::Parquet | Format::Arrow => "pass --lossy (hf_tokenize)",
                    _ => "convert the file, or pass --encoding (such as cp1252) or --lossy (hf_tokenize)",
                };
                Err(self.failed(format!("{place}: invalid UTF-8 at byte {at}; {advice}")))
            }
        }
    }

    /// Opens the file as a stream of text, decompressed and converted to UTF-8, of which nothing is checked.
    pub(super) fn stream(&self) -> Result<RecordStream, Error> {
        let source = open_text(self.name, open_file(self.name, self.path)?, self.options.text)?;
        source.note.into_iter().for_each(|note| self.report.note(note));
        // What is only counted is read again.
        if !matches!(self.wanted, Wanted::Nothing) {
            self.report.converted.borrow_mut().push(source.replaced);
        }
        Ok(RecordStream {
            bytes: BufReader::with_capacity(BUFFER, source.bytes),
            compressed: source.compressed,
            bytes_read: source.bytes_read,
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

/// Returns a message without control characters, shortened.
fn shortened(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MAX_REASON).collect()
}

/// A data file as a stream of bytes.
pub(super) struct RecordStream {
    pub(super) bytes: BufReader<Box<dyn Read>>,
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
