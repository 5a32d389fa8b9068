//! Reads the records of a file in any format.

use std::ops::ControlFlow;

use super::file::{DataFileReader, FileRecordFn, MAX_RECORDS_WITHOUT_COLUMN, Wanted};
use super::{arrow, csv, json, parquet, text};
use crate::Error;
use crate::hf::format::Format;
use crate::hf::record::Record;

impl DataFileReader<'_> {
    /// Passes every record after the skipped ones to `take`.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that is damaged, lacks the column, or has values in it of a type that JSON lacks; any error of
    /// `take`.
    pub(in crate::hf) fn read(&self, take: &mut FileRecordFn) -> Result<(), Error> {
        let (Wanted::Column(column) | Wanted::ColumnAnd(column, _)) = self.wanted else {
            return self.read_format(take);
        };
        let (mut found, mut names, mut count, mut stopped) = (false, Vec::new(), 0, false);
        let check = |found: bool, names: &[String]| match found || names.is_empty() {
            true => Ok(()),
            false => Err(self.failed(column.missing(names))),
        };
        self.read_format(&mut |record| {
            if !found {
                count += 1;
                // A bad record has the column or not.
                found = record.columns.as_ref().is_none_or(|columns| column.is_found(columns, &mut names));
                if count == MAX_RECORDS_WITHOUT_COLUMN {
                    check(found, &names)?;
                }
            }
            let next = take(record)?;
            stopped = next.is_break();
            Ok(next)
        })?;
        // A field may be missing only from a file that was read to its end.
        if stopped { Ok(()) } else { check(found, &names) }
    }

    fn read_format(&self, take: &mut FileRecordFn) -> Result<(), Error> {
        match self.format {
            Format::Parquet => self.catch_panic("parquet", || parquet::read(self, take)),
            Format::Arrow => self.catch_panic("arrow", || arrow::read(self, take)),
            Format::Json => json::read(self, take),
            Format::Csv { delimiter, given } => csv::read(self, delimiter, given, take),
            Format::Text => text::read(self, take),
        }
    }

    /// Counts the records.
    ///
    /// # Errors
    /// As [`DataFileReader::read`].
    pub(in crate::hf) fn count(&self) -> Result<u64, Error> {
        if self.format == Format::Parquet {
            return self.catch_panic("parquet", || parquet::count(self));
        }
        let mut count = 0;
        DataFileReader { wanted: Wanted::Nothing, skip: 0, ..*self }.read(&mut |_| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(count)
    }

    /// Reads all records after the skipped ones, with all their columns.
    ///
    /// # Errors
    /// As [`DataFileReader::read`].
    pub(in crate::hf) fn records(&self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        DataFileReader { wanted: Wanted::Everything, ..*self }.read(&mut |record| {
            records.extend(record.columns);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(records)
    }
}
