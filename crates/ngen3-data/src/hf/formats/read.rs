//! Reads the records of a file in any format.

use std::ops::ControlFlow;

use super::file::{DataFileReader, TextRecordFn};
use super::record::Record;
use super::{arrow, csv, json, parquet, text};
use crate::Error;
use crate::hf::format::Format;

impl DataFileReader<'_> {
    /// Passes every record after the skipped ones to `take`.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that is damaged, lacks the column, or has values in it that are not text; any error of `take`.
    pub(in crate::hf) fn read(&self, take: &mut TextRecordFn) -> Result<(), Error> {
        match self.format {
            Format::Parquet => self.catch_panic("parquet", || parquet::read(self, take)),
            Format::Arrow => self.catch_panic("arrow", || arrow::read(self, take)),
            Format::Json => json::read(self, take),
            Format::Csv { delimiter } => csv::read(self, delimiter, take),
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
        DataFileReader { column: None, skip: 0, ..*self }.read(&mut |_| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(count)
    }

    /// Reads all records, in order.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that is damaged, or has a column of a type that JSON lacks.
    pub(in crate::hf) fn records(&self) -> Result<Vec<Record>, Error> {
        match self.format {
            Format::Parquet => self.catch_panic("parquet", || self.of_batches(&parquet::batches(self)?)),
            Format::Arrow => self.catch_panic("arrow", || self.of_batches(&arrow::batches(self)?)),
            Format::Json => json::records(self),
            Format::Csv { delimiter } => csv::records(self, delimiter),
            Format::Text => text::records(self),
        }
    }
}
