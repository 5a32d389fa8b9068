//! A column of values that are not nested, with the levels that say where in a record each belongs.
//!
//! The definition level of an entry says how many of the optional and repeated fields around it there are, and so whether it has a
//! value; the repetition level, in which of the lists around it the entry goes on: 0 begins a record.

use parquet::basic::{ConvertedType, LogicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, Decimal};
use parquet::errors::ParquetError;
use parquet::schema::types::ColumnDescPtr;
use serde_json::Value;

/// A value: JSON, or bytes that may be text.
pub(super) enum Cell<'a> {
    Json(Value),
    Bytes(&'a [u8]),
}

/// A column of a row group. Its current entry is the next one to be taken.
pub(super) struct Column {
    values: Box<dyn Values>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
    /// Index of the current entry, number of entries, and index of the next value.
    entry: usize,
    entries: usize,
    value: usize,
    /// Definition level of an entry with a value.
    max_definition: i16,
    /// Records to decode at once.
    stretch: usize,
}

impl Column {
    pub(super) fn new(kind: &ColumnDescPtr, reader: ColumnReader, stretch: usize) -> Self {
        let max_definition = kind.max_def_level();
        let values = values(kind, reader);
        let (definition, repetition) = (Vec::new(), Vec::new());
        Self { values, definition, repetition, entry: 0, entries: 0, value: 0, max_definition, stretch }
    }

    /// Goes on to the record after the next `records`.
    pub(super) fn skip(&mut self, records: usize) -> Result<(), ParquetError> {
        match self.values.skip(records)? {
            skipped if skipped == records => Ok(()),
            skipped => Err(ended(skipped)),
        }
    }

    /// Makes sure that there is a current entry, the first one of a record.
    pub(super) fn begin(&mut self) -> Result<(), ParquetError> {
        if self.entry < self.entries {
            return Ok(());
        }
        self.definition.clear();
        self.repetition.clear();
        (self.entry, self.value) = (0, 0);
        loop {
            // Whole records, so that no record goes on in the next stretch.
            let (records, entries) = self.values.read(self.stretch, &mut self.definition, &mut self.repetition)?;
            self.entries = entries;
            match (records, entries) {
                (0, 0) => return Err(ended(0)),
                // Only now is the end of the record before known.
                (_, 0) => {}
                _ => return Ok(()),
            }
        }
    }

    /// Definition level of the current entry; 0 if the record has no more.
    pub(super) fn definition(&self) -> i16 {
        self.definition.get(self.entry).copied().unwrap_or(0)
    }

    /// Repetition level of the current entry; 0 if the record has no more.
    pub(super) fn repetition(&self) -> i16 {
        self.repetition.get(self.entry).copied().unwrap_or(0)
    }

    /// Goes on to the next entry; returns the value of this one, if it has one. `Err` describes a value that JSON lacks.
    pub(super) fn take(&mut self) -> Option<Result<Cell<'_>, String>> {
        let has_value = self.entry < self.entries && self.definition() == self.max_definition;
        self.entry += 1;
        if !has_value {
            return None;
        }
        self.value += 1;
        Some(self.values.get(self.value - 1))
    }
}

fn ended(records: usize) -> ParquetError {
    ParquetError::EOF(format!("a column ends after {records} more records"))
}

/// Decoded values of a column.
trait Values {
    /// Decodes the next records in place of those before; returns their number and that of their entries.
    fn read(
        &mut self,
        records: usize,
        definition: &mut Vec<i16>,
        repetition: &mut Vec<i16>,
    ) -> Result<(usize, usize), ParquetError>;

    /// Skips records; returns their number.
    fn skip(&mut self, records: usize) -> Result<usize, ParquetError>;

    fn get(&self, index: usize) -> Result<Cell<'_>, String>;
}

/// Values of one type, and how they convert to cells.
struct Typed<T: DataType, F> {
    reader: ColumnReaderImpl<T>,
    values: Vec<T::T>,
    convert: F,
}

impl<T: DataType, F: Fn(&T::T) -> Result<Cell<'_>, String>> Values for Typed<T, F> {
    fn read(
        &mut self,
        records: usize,
        definition: &mut Vec<i16>,
        repetition: &mut Vec<i16>,
    ) -> Result<(usize, usize), ParquetError> {
        self.values.clear();
        let (definition, repetition) = (Some(definition), Some(repetition));
        let (records, _, entries) = self.reader.read_records(records, definition, repetition, &mut self.values)?;
        Ok((records, entries))
    }

    fn skip(&mut self, records: usize) -> Result<usize, ParquetError> {
        self.reader.skip_records(records)
    }

    fn get(&self, index: usize) -> Result<Cell<'_>, String> {
        (self.convert)(&self.values[index])
    }
}

fn typed<T: DataType>(
    reader: ColumnReaderImpl<T>,
    convert: impl Fn(&T::T) -> Result<Cell<'_>, String> + 'static,
) -> Box<dyn Values> {
    Box::new(Typed { reader, values: Vec::new(), convert })
}

/// Returns the values of a column as JSON: times are numbers in the unit of the file.
fn values(kind: &ColumnDescPtr, reader: ColumnReader) -> Box<dyn Values> {
    fn json<'a>(value: impl Into<Value>) -> Result<Cell<'a>, String> {
        Ok(Cell::Json(value.into()))
    }
    let (converted, scale) = (kind.converted_type(), kind.type_scale());
    let is_half = kind.logical_type_ref() == Some(&LogicalType::Float16);
    match reader {
        ColumnReader::BoolColumnReader(reader) => typed(reader, |&value| json(value)),
        ColumnReader::Int32ColumnReader(reader) => typed(reader, move |&value| match converted {
            ConvertedType::INT_8 => json(value as i8),
            ConvertedType::INT_16 => json(value as i16),
            ConvertedType::UINT_8 => json(value as u8),
            ConvertedType::UINT_16 => json(value as u16),
            ConvertedType::UINT_32 => json(value as u32),
            ConvertedType::DECIMAL => json(decimal(&Decimal::from_i32(value, 0, scale))?),
            _ => json(value),
        }),
        ColumnReader::Int64ColumnReader(reader) => typed(reader, move |&value| match converted {
            ConvertedType::UINT_64 => json(value as u64),
            ConvertedType::DECIMAL => json(decimal(&Decimal::from_i64(value, 0, scale))?),
            _ => json(value),
        }),
        ColumnReader::Int96ColumnReader(reader) => typed(reader, |value| json(value.to_millis())),
        ColumnReader::FloatColumnReader(reader) => typed(reader, |&value| json(value)),
        ColumnReader::DoubleColumnReader(reader) => typed(reader, |&value| json(value)),
        ColumnReader::ByteArrayColumnReader(reader) => typed(reader, move |value| match converted {
            ConvertedType::DECIMAL => json(decimal(&Decimal::from_bytes(value.clone(), 0, scale))?),
            _ => Ok(Cell::Bytes(value.data())),
        }),
        ColumnReader::FixedLenByteArrayColumnReader(reader) => typed(reader, move |value| match converted {
            ConvertedType::DECIMAL => json(decimal(&Decimal::from_bytes(ByteArray::from(value.clone()), 0, scale))?),
            ConvertedType::INTERVAL => Err("unsupported type INTERVAL".into()),
            _ if is_half => match value.data().try_into() {
                Ok(bytes) => json(half::f16::from_le_bytes(bytes).to_f32()),
                Err(_) => Err(format!("expected a number of 2 bytes, got {}", value.len())),
            },
            _ => Ok(Cell::Bytes(value.data())),
        }),
    }
}

/// Returns a decimal number, whose digits are a big-endian integer.
fn decimal(decimal: &Decimal) -> Result<f64, String> {
    let bytes = decimal.data();
    if bytes.is_empty() || bytes.len() > 16 {
        return Err(format!("expected a decimal of at most 16 bytes, got {}", bytes.len()));
    }
    let sign = if bytes[0] & 0x80 != 0 { -1 } else { 0 };
    let digits = bytes.iter().fold(sign, |digits: i128, &byte| digits << 8 | i128::from(byte));
    Ok(digits as f64 / 10f64.powi(decimal.scale()))
}
