//! The rows of a source become documents, on the reading thread.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use super::Part;
use super::column::Column;
use super::format::{DataFile, Format};
use super::repository::Repository;
use super::rows::{Row, Rows};
use crate::Error;
use crate::source::{Event, Piece, Sink};

/// Bytes of text that documents are gathered to; longer ones go by themselves.
const GATHERED: usize = 1 << 18;
/// Bytes of a piece of a long document, unless there is no place to cut.
const PIECE: usize = 1 << 20;

/// A file that is on disk.
struct Opened<'a> {
    name: String,
    path: PathBuf,
    format: Format,
    scratch: &'a Path,
}

impl Opened<'_> {
    fn rows<'b>(&'b self, column: Option<&'b Column>, skip: u64) -> Rows<'b> {
        Rows { name: &self.name, path: &self.path, format: self.format, column, skip, scratch: self.scratch }
    }
}

/// The reading thread's state.
pub(super) struct Reading<'a, C> {
    repository: &'a Repository,
    column: &'a Column,
    scratch: &'a Path,
    sink: Sink,
    cut: &'a C,
    /// Whole documents that have not been handed over.
    text: String,
    ends: Vec<usize>,
    /// Rows without text, and all.
    empty: u64,
    rows: u64,
    /// Bytes of the files before this one, and of all if the whole of them is read.
    before: u64,
    total: Option<u64>,
}

impl<'a, C: Fn(&str) -> Option<usize>> Reading<'a, C> {
    pub(super) fn new(
        repository: &'a Repository,
        column: &'a Column,
        scratch: &'a Path,
        sink: Sink,
        cut: &'a C,
    ) -> Self {
        let (text, ends) = (String::new(), Vec::new());
        Self { repository, column, scratch, sink, cut, text, ends, empty: 0, rows: 0, before: 0, total: None }
    }

    /// Reads all parts in order.
    pub(super) fn read(mut self, parts: &[Part]) -> Result<(), Error> {
        let sizes = parts.iter().flat_map(|part| &part.files).map(|file| file.size);
        self.total = sizes.sum::<Option<u64>>().filter(|_| parts.iter().all(|part| part.slice.is_whole()));
        for part in parts {
            let rows = match part.slice.rows() {
                Some(rows) => rows,
                None => self.count_rows(part)?,
            };
            self.read_part(part, rows)?;
        }
        self.hand_over(self.before)?;
        if self.empty > 0 {
            let note = format!("{} of {} rows have no text and were left out", self.empty, self.rows);
            self.sink.event(Event::Note(note))?;
        }
        Ok(())
    }

    /// Counts a split's rows to know which ones a slice means.
    fn count_rows(&self, part: &Part) -> Result<Range<u64>, Error> {
        let mut count: u64 = 0;
        for file in &part.files {
            count = count.saturating_add(self.open(file)?.rows(None, 0).count()?);
        }
        part.slice.rows_of(count)
    }

    fn read_part(&mut self, part: &Part, wanted: Range<u64>) -> Result<(), Error> {
        // Rows of the split before the current file.
        let mut passed = 0;
        for file in &part.files {
            if passed >= wanted.end || wanted.is_empty() {
                break;
            }
            let mut skip = wanted.start.saturating_sub(passed);
            if skip > 0 {
                let count = self.open(file)?.rows(None, 0).count()?;
                if count <= skip {
                    passed += count;
                    continue;
                }
                skip = skip.min(count);
            }
            passed += skip;
            let opened = self.open(file)?;
            opened.rows(Some(self.column), skip).read(&mut |row| {
                passed += 1;
                self.take(&row)?;
                Ok(if passed == wanted.end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            self.before += file.size.unwrap_or(0);
        }
        Ok(())
    }

    /// Has a file at hand.
    fn open(&self, file: &DataFile) -> Result<Opened<'a>, Error> {
        let path = self.repository.fetch(&file.path, &mut |event| self.sink.event(event).is_ok())?;
        Ok(Opened { name: self.repository.name_of(&file.path), path, format: file.format, scratch: self.scratch })
    }

    fn take(&mut self, row: &Row) -> Result<(), Error> {
        self.rows += 1;
        let done = self.before + row.consumed;
        let Some(text) = row.text.filter(|text| !text.is_empty()) else {
            self.empty += 1;
            return Ok(());
        };
        if text.len() > PIECE {
            self.hand_over(done)?;
            return self.long(text, done);
        }
        self.text.push_str(text);
        self.ends.push(self.text.len());
        if self.text.len() >= GATHERED { self.hand_over(done) } else { Ok(()) }
    }

    /// Hands over what has been gathered.
    fn hand_over(&mut self, done: u64) -> Result<(), Error> {
        if !self.ends.is_empty() {
            let (text, ends) = (std::mem::take(&mut self.text), std::mem::take(&mut self.ends));
            self.sink.piece(Piece::Documents { text, ends })?;
        }
        self.sink.event(Event::Reading { done, total: self.total })
    }

    /// Hands over one long document.
    fn long(&mut self, mut text: &str, done: u64) -> Result<(), Error> {
        let mut wanted = PIECE;
        while text.len() > wanted {
            let start = &text[..text.floor_char_boundary(wanted)];
            match (self.cut)(start).filter(|&at| at > 0) {
                Some(at) => {
                    self.sink.piece(Piece::Text(text[..at].to_owned()))?;
                    (text, wanted) = (&text[at..], PIECE);
                }
                None => wanted *= 2,
            }
        }
        self.sink.piece(Piece::Text(text.to_owned()))?;
        self.sink.piece(Piece::End)?;
        self.sink.event(Event::Reading { done, total: self.total })
    }
}
