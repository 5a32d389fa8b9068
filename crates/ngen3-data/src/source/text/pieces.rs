//! Splits a stream of text into documents: at separators, and long ones into chunks.

use std::ops::Range;

use crate::Error;
use crate::source::channel::{DocumentSender, TextChunk};

/// Bytes of text in a chunk, unless the text cannot be split.
pub(in crate::source) const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of gathered short documents in a chunk.
const BATCH_BYTES: usize = 1 << 18;

/// Unit of text that becomes a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SplitBy {
    /// The whole text.
    #[default]
    Document,
    /// Text up to a blank line.
    Paragraph,
    /// A line.
    Line,
    /// Text up to this separator, which must not be empty.
    Separator(String),
}

/// A text being split. Documents without any text are dropped.
pub(in crate::source) struct Splitter<'a> {
    sender: &'a DocumentSender,
    /// Returns where text that may continue can be split.
    cut: &'a dyn Fn(&str) -> Option<usize>,
    by: &'a SplitBy,
    /// Text that separates documents whatever `by` is.
    marker: Option<&'a str>,
    /// Text not sent yet: the rest of the current document.
    text: String,
    /// Bytes of `text` in which there is no separator.
    searched: usize,
    /// Bytes of `text` at which a place to cut it is searched.
    wanted: usize,
    /// True if a part of the current document was sent.
    begun: bool,
    /// Whole documents not sent yet.
    batch: String,
    ends: Vec<usize>,
    /// Number of documents with text.
    pub(in crate::source) documents: u64,
    /// Number of documents dropped, except for an empty last one.
    pub(in crate::source) blank: u64,
}

impl<'a> Splitter<'a> {
    pub(in crate::source) fn new(
        sender: &'a DocumentSender,
        cut: &'a dyn Fn(&str) -> Option<usize>,
        by: &'a SplitBy,
        marker: Option<&'a str>,
    ) -> Self {
        Self {
            sender,
            cut,
            by,
            marker,
            text: String::new(),
            searched: 0,
            wanted: CHUNK_BYTES,
            begun: false,
            batch: String::new(),
            ends: Vec::new(),
            documents: 0,
            blank: 0,
        }
    }

    /// Returns the buffer to append text to, before [`Splitter::push`].
    pub(in crate::source) fn buffer(&mut self) -> &mut String {
        &mut self.text
    }

    /// True if documents may be separated.
    fn splits(&self) -> bool {
        *self.by != SplitBy::Document || self.marker.is_some()
    }

    /// Sends what can be sent of the text appended so far.
    pub(in crate::source) fn push(&mut self) -> Result<(), Error> {
        let text = std::mem::take(&mut self.text);
        let (start, hold) = self.end_documents(&text, false)?;
        self.searched = hold - start;
        let mut rest = start;
        if hold - start >= self.wanted {
            let piece = &text[start..hold];
            let piece = if self.begun { piece } else { self.without_blank_start(piece) };
            rest = hold - piece.len();
            if let Some(at) = (self.cut)(piece).filter(|&at| at > 0) {
                self.flush()?;
                self.sender.chunk(TextChunk::Text(piece[..at].to_owned()))?;
                (self.begun, self.wanted) = (true, CHUNK_BYTES);
                rest += at;
            } else {
                // Searching again after every buffer would take quadratic time.
                self.wanted = 2 * piece.len().max(CHUNK_BYTES / 2);
            }
            self.searched = hold - rest;
        }
        self.text = text;
        self.text.drain(..rest);
        Ok(())
    }

    /// Sends the rest.
    pub(in crate::source) fn finish(&mut self) -> Result<(), Error> {
        let text = std::mem::take(&mut self.text);
        let (start, _) = self.end_documents(&text, true)?;
        self.end(&text[start..], true)?;
        self.flush()
    }

    /// Ends the documents before each separator in `text`, which goes on unless it is the `last`. Returns the start of the rest, and
    /// the end of the part of it in which there is no separator, whatever follows.
    fn end_documents(&mut self, text: &str, last: bool) -> Result<(usize, usize), Error> {
        let (mut start, mut from) = (0, self.searched);
        loop {
            let (found, hold) = self.find(text, from);
            // Text from `hold` on may be the start of another separator.
            let Some(separator) = found.filter(|found| last || found.start < hold) else { return Ok((start, hold)) };
            self.end(&text[start..separator.start], false)?;
            (start, from) = (separator.end, separator.end);
        }
    }

    /// Ends a document whose last part is `piece`.
    fn end(&mut self, piece: &str, last: bool) -> Result<(), Error> {
        self.wanted = CHUNK_BYTES;
        let piece = match self.by {
            _ if !self.splits() => piece,
            SplitBy::Paragraph if !self.begun => without_line_break(self.without_blank_start(piece)),
            SplitBy::Paragraph | SplitBy::Line => without_line_break(piece),
            SplitBy::Document | SplitBy::Separator(_) => piece,
        };
        let blank = if self.splits() { piece.trim().is_empty() } else { piece.is_empty() };
        if blank && !self.begun {
            // Paragraphs are separated by any number of blank lines.
            self.blank += u64::from(!last && *self.by != SplitBy::Paragraph);
            return Ok(());
        }
        self.documents += 1;
        if self.begun || !self.splits() || piece.len() > BATCH_BYTES {
            self.flush()?;
            if !piece.is_empty() {
                self.sender.chunk(TextChunk::Text(piece.to_owned()))?;
            }
            self.begun = false;
            return self.sender.chunk(TextChunk::EndOfDocument);
        }
        self.batch.push_str(piece);
        self.ends.push(self.batch.len());
        if self.batch.len() >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Sends the gathered documents.
    fn flush(&mut self) -> Result<(), Error> {
        if self.ends.is_empty() {
            return Ok(());
        }
        let (text, ends) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.ends));
        self.sender.chunk(TextChunk::Documents { text, ends })
    }

    /// Returns the text without the blank lines that a paragraph may begin with.
    fn without_blank_start<'b>(&self, mut text: &'b str) -> &'b str {
        while *self.by == SplitBy::Paragraph
            && let Some((line, rest)) = text.split_once('\n')
            && line.trim().is_empty()
        {
            text = rest;
        }
        text
    }

    /// Returns the first separator at or after `from`, and the end of the text in which there is none, whatever follows.
    fn find(&self, text: &str, from: usize) -> (Option<Range<usize>>, usize) {
        let by = match self.by {
            SplitBy::Document => (None, text.len()),
            SplitBy::Line => find_line(text, from),
            SplitBy::Paragraph => find_paragraph(text, from),
            SplitBy::Separator(separator) => find_text(text, from, separator),
        };
        let marker = self.marker.map_or((None, text.len()), |marker| find_text(text, from, marker));
        let found = [by.0, marker.0].into_iter().flatten().min_by_key(|found| found.start);
        (found, by.1.min(marker.1))
    }
}

/// Finds a text. Its start may be at the end of what is known.
fn find_text(text: &str, from: usize, wanted: &str) -> (Option<Range<usize>>, usize) {
    if let Some(at) = text[from..].find(wanted) {
        return (Some(from + at..from + at + wanted.len()), text.len());
    }
    let lengths = (1..wanted.len().min(text.len() - from + 1)).rev();
    let begun = lengths.into_iter().find(|&n| wanted.is_char_boundary(n) && text[from..].ends_with(&wanted[..n]));
    (None, text.len() - begun.unwrap_or(0))
}

/// Finds a line break.
fn find_line(text: &str, from: usize) -> (Option<Range<usize>>, usize) {
    match text[from..].find('\n') {
        Some(at) => (Some(from + at..from + at + 1), text.len()),
        // The carriage return belongs to a line break that may follow.
        None => (None, text.len() - usize::from(text[from..].ends_with('\r'))),
    }
}

/// Finds a line break before a blank line.
fn find_paragraph(text: &str, from: usize) -> (Option<Range<usize>>, usize) {
    let mut at = from;
    while let Some(found) = text[at..].find('\n') {
        let start = at + found;
        let blank = text[start + 1..].find(|c: char| !c.is_whitespace() || c == '\n');
        match blank.map(|blank| start + 1 + blank) {
            Some(end) if text[end..].starts_with('\n') => return (Some(start..end + 1), text.len()),
            Some(end) => at = end,
            // A blank line may follow.
            None => return (None, start - usize::from(text[from..start].ends_with('\r'))),
        }
    }
    (None, text.len() - usize::from(text[from..].ends_with('\r')))
}

/// Returns the text without a line break at its end.
fn without_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// Counts a text in a stream.
pub(in crate::source) struct MarkerCount<'a> {
    pub(in crate::source) marker: &'a str,
    /// The last bytes before the text to come, fewer than the marker has.
    tail: String,
    pub(in crate::source) count: u64,
}

impl<'a> MarkerCount<'a> {
    pub(in crate::source) fn new(marker: &'a str) -> Self {
        Self { marker, tail: String::new(), count: 0 }
    }

    /// Counts the marker in the next part of the text.
    pub(in crate::source) fn push(&mut self, text: &str) {
        let keep = self.marker.len() - 1;
        self.tail.push_str(&text[..text.ceil_char_boundary(keep.min(text.len()))]);
        self.count += (self.tail.matches(self.marker).count() + text.matches(self.marker).count()) as u64;
        if text.len() >= keep {
            // The marker may lie in the part that both share.
            let shared = &text[..text.ceil_char_boundary(keep)];
            self.count -= shared.matches(self.marker).count() as u64;
            self.tail.clear();
            self.tail.push_str(&text[text.ceil_char_boundary(text.len() - keep)..]);
        } else {
            let start = self.tail.ceil_char_boundary(self.tail.len().saturating_sub(keep));
            self.tail.drain(..start);
        }
    }
}

#[cfg(test)]
#[path = "pieces_tests.rs"]
mod tests;
