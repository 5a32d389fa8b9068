//! The rows of a source become documents, on the reading thread.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use super::column::Column;
use super::format::{DataFile, Format};
use super::repository::Repository;
use super::rows::Rows;
use super::split::Slice;
use crate::Error;
use crate::hub::ProgressFn;
use crate::source::{Event, Piece, Sink};

/// Bytes of text that documents are gathered to; longer ones go by themselves.
const GATHERED: usize = 1 << 18;
/// Bytes of a piece of a long document, unless there is no place to cut.
const PIECE: usize = 1 << 20;

/// The rows of one split.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) slice: Slice,
    pub(super) files: Vec<DataFile>,
}

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

/// A row on its way.
pub(crate) struct Passing<'a> {
    /// Its file.
    pub(crate) name: &'a str,
    /// Which row of the file it is, from 1.
    pub(crate) number: u64,
    /// Its text, if it has any.
    pub(crate) text: Option<&'a str>,
    /// Bytes of all files that are read by then.
    pub(crate) done: u64,
}

/// Takes a row.
pub(crate) type TakeRow<'a> = dyn FnMut(Passing) -> Result<(), Error> + 'a;

/// Goes through the rows of a source.
pub(super) struct Walk<'a> {
    pub(super) repository: &'a Repository,
    pub(super) column: &'a Column,
    /// A folder for temporary files.
    pub(super) scratch: &'a Path,
    /// Hears of downloads.
    pub(super) tell: &'a mut ProgressFn<'a>,
}

impl<'a> Walk<'a> {
    /// Gives the rows of all parts to `take`, in order; returns the bytes of their files.
    pub(super) fn each(&mut self, parts: &[Part], take: &mut TakeRow) -> Result<u64, Error> {
        let mut before = 0;
        for part in parts {
            let rows = match part.slice.rows() {
                Some(rows) => rows,
                None => self.count_rows(part)?,
            };
            self.part(part, rows, &mut before, take)?;
        }
        Ok(before)
    }

    /// Counts a split's rows to know which ones a slice means.
    fn count_rows(&mut self, part: &Part) -> Result<Range<u64>, Error> {
        let mut count: u64 = 0;
        for file in &part.files {
            count = count.saturating_add(self.open(file)?.rows(None, 0).count()?);
        }
        part.slice.rows_of(count)
    }

    fn part(&mut self, part: &Part, wanted: Range<u64>, before: &mut u64, take: &mut TakeRow) -> Result<(), Error> {
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
            let mut number = skip;
            opened.rows(Some(self.column), skip).read(&mut |row| {
                passed += 1;
                number += 1;
                take(Passing { name: &opened.name, number, text: row.text, done: *before + row.consumed })?;
                Ok(if passed == wanted.end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            *before += file.size.unwrap_or(0);
        }
        Ok(())
    }

    /// Has a file at hand.
    fn open(&mut self, file: &DataFile) -> Result<Opened<'a>, Error> {
        let path = self.repository.fetch(&file.path, &mut *self.tell)?;
        Ok(Opened { name: self.repository.name_of(&file.path), path, format: file.format, scratch: self.scratch })
    }
}

/// The reading thread's state.
pub(super) struct Reading<'a, C> {
    sink: Sink,
    cut: &'a C,
    /// Whole documents that have not been handed over.
    text: String,
    ends: Vec<usize>,
    /// Rows without text, and all.
    empty: u64,
    rows: u64,
    /// Bytes of all files, if the whole of them is read.
    total: Option<u64>,
}

impl<'a, C: Fn(&str) -> Option<usize>> Reading<'a, C> {
    pub(super) fn new(sink: Sink, cut: &'a C) -> Self {
        Self { sink, cut, text: String::new(), ends: Vec::new(), empty: 0, rows: 0, total: None }
    }

    /// Reads all parts in order.
    pub(super) fn read(
        mut self,
        repository: &Repository,
        column: &Column,
        scratch: &Path,
        parts: &[Part],
    ) -> Result<(), Error> {
        let sizes = parts.iter().flat_map(|part| &part.files).map(|file| file.size);
        self.total = sizes.sum::<Option<u64>>().filter(|_| parts.iter().all(|part| part.slice.is_whole()));
        let sink = self.sink.clone();
        let mut tell = move |event| sink.event(event).is_ok();
        let mut walk = Walk { repository, column, scratch, tell: &mut tell };
        let done = walk.each(parts, &mut |row| self.take(&row))?;
        self.hand_over(done)?;
        if self.empty > 0 {
            let note = format!("{} of {} rows have no text and were left out", self.empty, self.rows);
            self.sink.event(Event::Note(note))?;
        }
        Ok(())
    }

    fn take(&mut self, row: &Passing) -> Result<(), Error> {
        self.rows += 1;
        let done = row.done;
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
