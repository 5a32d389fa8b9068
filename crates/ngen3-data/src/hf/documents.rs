//! Turns the records of a source into documents, on the reading thread.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use super::column::{Column, USUAL};
use super::format::{DataFile, Format};
use super::formats::{DataFileReader, RecordOptions, RecordReport, Wanted};
use super::record::Record;
use super::repository::Repository;
use super::split::Slice;
use crate::Error;
use crate::hub::ProgressFn;
use crate::source::{DocumentSender, Event, TextChunk};

/// Bytes of text at which gathered documents are sent.
const BATCH_BYTES: usize = 1 << 18;
/// Bytes of a chunk of a long document, unless the text cannot be split.
const CHUNK_BYTES: usize = 1 << 20;

/// The files of one split, and the records of it to read.
#[derive(Debug)]
pub(super) struct SplitFiles {
    pub(super) slice: Slice,
    pub(super) files: Vec<DataFile>,
}

/// A file on disk.
struct LocalFile<'a> {
    name: String,
    path: PathBuf,
    format: Format,
    scratch: &'a Path,
    options: RecordOptions,
    report: &'a RecordReport,
}

impl LocalFile<'_> {
    fn reader<'b>(&'b self, wanted: Wanted<'b>, skip: u64) -> DataFileReader<'b> {
        let Self { name, path, format, scratch, options, report } = self;
        DataFileReader { name, path, format: *format, wanted, skip, scratch, options: *options, report }
    }
}

/// A record with its origin.
pub(crate) struct SourceRecord<'a> {
    /// Name of its file.
    pub(crate) name: &'a str,
    /// Number of the record in the file, from 1.
    pub(crate) number: u64,
    /// Its wanted columns.
    pub(crate) columns: Record,
    /// True if it is from a table, whose records all have the same fields.
    pub(crate) is_of_table: bool,
    /// Bytes read so far of all files.
    pub(crate) done: u64,
}

/// Receives a record.
pub(super) type RecordFn<'a> = dyn FnMut(SourceRecord) -> Result<(), RecordError> + 'a;

/// Reason why a record was not taken.
pub(super) enum RecordError {
    /// The record is bad, so it may be skipped; the reason alone.
    Bad(String),
    /// Anything else.
    Other(Error),
}

impl From<Error> for RecordError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Reads the records of a source.
pub(super) struct RecordReader<'a> {
    pub(super) repository: &'a Repository,
    pub(super) wanted: Wanted<'a>,
    /// Folder for temporary files.
    pub(super) scratch: &'a Path,
    pub(super) options: RecordOptions,
    pub(super) report: &'a RecordReport,
    /// Receives the events of downloads.
    pub(super) progress: &'a mut ProgressFn<'a>,
}

impl<'a> RecordReader<'a> {
    /// Passes the records of all parts to `take`, in order; returns the bytes of their files.
    pub(super) fn each(&mut self, parts: &[SplitFiles], take: &mut RecordFn) -> Result<u64, Error> {
        let mut before = 0;
        for part in parts {
            let records = match part.slice.known_range() {
                Some(records) => records,
                None => self.count_records(part)?,
            };
            self.part(part, records, &mut before, take)?;
        }
        self.notes(self.report.summary())?;
        Ok(before)
    }

    /// Sends notes.
    fn notes(&mut self, notes: Vec<String>) -> Result<(), Error> {
        match notes.into_iter().all(|note| (self.progress)(Event::Note(note))) {
            true => Ok(()),
            false => Err(Error::Interrupted),
        }
    }

    /// Counts a split's records to resolve a slice.
    fn count_records(&mut self, part: &SplitFiles) -> Result<Range<u64>, Error> {
        let mut count: u64 = 0;
        for file in &part.files {
            count = count.saturating_add(self.open(file)?.reader(Wanted::Nothing, 0).count()?);
        }
        part.slice.range_of(count)
    }

    fn part(
        &mut self,
        part: &SplitFiles,
        wanted: Range<u64>,
        before: &mut u64,
        take: &mut RecordFn,
    ) -> Result<(), Error> {
        // Records of the split before the current file.
        let mut passed = 0;
        for file in &part.files {
            if passed >= wanted.end || wanted.is_empty() {
                break;
            }
            let mut skip = wanted.start.saturating_sub(passed);
            if skip > 0 {
                let count = self.open(file)?.reader(Wanted::Nothing, 0).count()?;
                if count <= skip {
                    passed += count;
                    continue;
                }
                skip = skip.min(count);
            }
            passed += skip;
            let local = self.open(file)?;
            let mut number = skip;
            let is_of_table = matches!(file.format, Format::Parquet | Format::Arrow);
            let reader = local.reader(self.wanted, skip);
            reader.read(&mut |record| {
                passed += 1;
                number += 1;
                let done = *before + record.bytes_read;
                if let Some(columns) = record.columns {
                    let record = SourceRecord { name: &local.name, number, columns, is_of_table, done };
                    take(record).or_else(|error| match error {
                        RecordError::Bad(reason) => {
                            let error = Error::read(&local.name, format!("record {number}: {reason}"));
                            reader.skip_bad::<()>(error).map(drop)
                        }
                        RecordError::Other(error) => Err(error),
                    })?;
                }
                Ok(if passed == wanted.end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            self.notes(self.report.take_notes())?;
            *before += file.size.unwrap_or(0);
        }
        Ok(())
    }

    /// Fetches a file.
    fn open(&mut self, file: &DataFile) -> Result<LocalFile<'a>, Error> {
        let path = self.repository.fetch(&file.path, &mut *self.progress)?;
        let (name, scratch) = (self.repository.name_of(&file.path), self.scratch);
        Ok(LocalFile { name, path, format: file.format, scratch, options: self.options, report: self.report })
    }
}

/// State of the reading thread.
pub(super) struct DocumentGatherer<'a, C> {
    sender: DocumentSender,
    cut: &'a C,
    /// Whole documents that were not sent yet.
    text: String,
    ends: Vec<usize>,
    /// Records without text, and all records.
    empty: u64,
    records: u64,
    /// Bytes of all files, if they are read whole.
    total: Option<u64>,
    /// Columns that may hold the text, and the one that does, as soon as it is known.
    columns: &'a [Column],
    column: Option<&'a Column>,
    /// Text of the current record.
    record: String,
}

impl<'a, C: Fn(&str) -> Option<usize>> DocumentGatherer<'a, C> {
    /// Makes a gatherer of the text in the first of these columns that there is.
    pub(super) fn new(sender: DocumentSender, cut: &'a C, columns: &'a [Column]) -> Self {
        Self {
            sender,
            cut,
            text: String::new(),
            ends: Vec::new(),
            empty: 0,
            records: 0,
            total: None,
            columns,
            column: if let [only] = columns { Some(only) } else { None },
            record: String::new(),
        }
    }

    /// Reads all parts in order.
    pub(super) fn read(
        mut self,
        repository: &Repository,
        scratch: &Path,
        options: RecordOptions,
        parts: &[SplitFiles],
    ) -> Result<(), Error> {
        let sizes = parts.iter().flat_map(|part| &part.files).map(|file| file.size);
        self.total = sizes.sum::<Option<u64>>().filter(|_| parts.iter().all(|part| part.slice.is_whole()));
        let sender = self.sender.clone();
        let mut progress = move |event| sender.event(event).is_ok();
        let names: Vec<_> = self.columns.iter().map(|column| column.full.clone()).collect();
        let wanted = self.column.map_or(Wanted::AnyOf(&names), Wanted::Column);
        let report = &RecordReport::default();
        let mut reader = RecordReader { repository, wanted, scratch, options, report, progress: &mut progress };
        let done = reader.each(parts, &mut |record| self.take(&record))?;
        self.flush(done)?;
        if self.empty > 0 {
            let note = format!("skipped {} of {} records: they have no text", self.empty, self.records);
            self.sender.event(Event::Note(note))?;
        }
        Ok(())
    }

    fn take(&mut self, record: &SourceRecord) -> Result<(), RecordError> {
        self.records += 1;
        let done = record.done;
        let mut text = std::mem::take(&mut self.record);
        text.clear();
        let has = match self.column(record)? {
            Some(column) => column.text(&record.columns, &mut text),
            None => Ok(false),
        };
        let has = has.map_err(RecordError::Bad)?;
        if !has || text.is_empty() {
            self.empty += 1;
        } else if text.len() > CHUNK_BYTES {
            self.flush(done)?;
            self.send_long(&text, done)?;
        } else {
            self.text.push_str(&text);
            self.ends.push(self.text.len());
            if self.text.len() >= BATCH_BYTES {
                self.flush(done)?;
            }
        }
        self.record = text;
        Ok(())
    }

    /// Returns the column of the text; `None` as long as no record has any of them.
    fn column(&mut self, record: &SourceRecord) -> Result<Option<&'a Column>, Error> {
        if self.column.is_none() {
            self.column = self.columns.iter().find(|column| record.columns.contains_key(&column.full));
            if let Some(column) = self.column.filter(|column| column.full != USUAL[0]) {
                let note = format!("reading the column {}; choose another with --hf_text_column", column.full);
                self.sender.event(Event::Note(note))?;
            }
        }
        Ok(self.column)
    }

    /// Sends the gathered documents.
    fn flush(&mut self, done: u64) -> Result<(), Error> {
        if !self.ends.is_empty() {
            let (text, ends) = (std::mem::take(&mut self.text), std::mem::take(&mut self.ends));
            self.sender.chunk(TextChunk::Documents { text, ends })?;
        }
        self.sender.event(Event::Reading { done, total: self.total })
    }

    /// Sends one long document in chunks.
    fn send_long(&mut self, mut text: &str, done: u64) -> Result<(), Error> {
        let mut wanted = CHUNK_BYTES;
        while text.len() > wanted {
            let start = &text[..text.floor_char_boundary(wanted)];
            match (self.cut)(start).filter(|&at| at > 0) {
                Some(at) => {
                    self.sender.chunk(TextChunk::Text(text[..at].to_owned()))?;
                    (text, wanted) = (&text[at..], CHUNK_BYTES);
                }
                None => wanted *= 2,
            }
        }
        self.sender.chunk(TextChunk::Text(text.to_owned()))?;
        self.sender.chunk(TextChunk::EndOfDocument)?;
        self.sender.event(Event::Reading { done, total: self.total })
    }
}
