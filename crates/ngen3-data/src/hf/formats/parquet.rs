//! Parquet, one record at a time: only pages of the wanted columns are decompressed, as they are needed.

use std::sync::Arc;

use parquet::basic::ConvertedType;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::PageReader;
use parquet::data_type::Decimal;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::{RowIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescriptor, Type};
use serde_json::Value;

use super::file::{DataFileReader, FileRecord, FileRecordFn};
use crate::Error;
use crate::hf::record::Record;

/// Bytes of records that a column should hold decoded, and their maximum number.
const STRETCH: u64 = 1 << 20;
const ROWS: u64 = 8192;

fn open(input: &DataFileReader) -> Result<SerializedFileReader<std::fs::File>, Error> {
    SerializedFileReader::new(input.file()?).map_err(|error| damaged(input, &error))
}

fn damaged(input: &DataFileReader, error: &dyn std::fmt::Display) -> Error {
    input.failed(format!("not a complete Parquet file; it may be truncated ({error})"))
}

pub(super) fn count(input: &DataFileReader) -> Result<u64, Error> {
    let count = open(input)?.metadata().file_metadata().num_rows();
    u64::try_from(count).map_err(|_| damaged(input, &format!("its footer promises {count} records")))
}

pub(super) fn read(input: &DataFileReader, take: &mut FileRecordFn) -> Result<(), Error> {
    let damaged = |error: ParquetError| damaged(input, &error);
    let size = input.path.metadata().map_err(|error| input.failed(error))?.len();
    let reader = open(input)?;
    let file = reader.metadata().file_metadata();
    let whole = Arc::new(SchemaDescriptor::new(as_bytes(file.schema()).map_err(damaged)?));
    let fields = whole.root_schema().get_fields();
    let names: Vec<_> = fields.iter().map(|field| field.name().to_owned()).collect();
    let wanted = input.wanted.among(&names).map_err(|reason| input.failed(reason))?;
    let wanted = wanted.into_iter().map(|index| fields[index].clone()).collect();
    let root = Type::group_type_builder(file.schema().name()).with_fields(wanted).build().map_err(damaged)?;
    let schema = Arc::new(SchemaDescriptor::new(Arc::new(root)));
    let promised = u64::try_from(file.num_rows()).unwrap_or(0);
    let mut done = 0;
    for (index, group) in reader.metadata().row_groups().iter().enumerate() {
        let rows = u64::try_from(group.num_rows()).unwrap_or(0);
        if done + rows <= input.skip {
            done += rows;
            continue;
        }
        let stretch = stretch(group, rows);
        let group = reader.get_row_group(index).and_then(|group| BytesGroup::new(group, &whole)).map_err(damaged)?;
        let records = TreeBuilder::new().with_batch_size(stretch).as_iter(schema.clone(), &group).map_err(damaged)?;
        for row in records {
            let row = row.map_err(damaged)?;
            done += 1;
            if done <= input.skip {
                continue;
            }
            let columns = record(input, done, row).map(Some).or_else(|error| input.skip_bad(error))?;
            // The share of the records read approximates the share of the bytes.
            let bytes_read = u128::from(size) * u128::from(done.min(promised)) / u128::from(promised.max(1));
            if take(FileRecord { columns, bytes_read: bytes_read as u64 })?.is_break() {
                return Ok(());
            }
        }
    }
    // A footer can promise more records than there are.
    if done < promised {
        return Err(input.failed(format!(
            "not a complete Parquet file; it may be truncated (expected {promised} records as in its footer, got {done})"
        )));
    }
    Ok(())
}

/// Returns how many records of a row group to decode at once.
fn stretch(group: &RowGroupMetaData, rows: u64) -> usize {
    let each = u64::try_from(group.total_byte_size()).unwrap_or(0) / rows.max(1);
    // At most ROWS, so it fits.
    (STRETCH / each.max(1)).clamp(1, ROWS) as usize
}

/// A row group whose strings are bytes: the library would stop at the first string that is not valid UTF-8.
struct BytesGroup<'a> {
    inner: Box<dyn RowGroupReader + 'a>,
    metadata: RowGroupMetaData,
}

impl<'a> BytesGroup<'a> {
    /// `schema` is that of [`as_bytes`].
    fn new(inner: Box<dyn RowGroupReader + 'a>, schema: &Arc<SchemaDescriptor>) -> Result<Self, ParquetError> {
        let columns = schema.columns().iter().map(|column| ColumnChunkMetaData::builder(column.clone()).build());
        let metadata = RowGroupMetaData::builder(schema.clone())
            .set_num_rows(inner.metadata().num_rows())
            .set_total_byte_size(inner.metadata().total_byte_size())
            .set_column_metadata(columns.collect::<Result<_, _>>()?)
            .build()?;
        Ok(Self { inner, metadata })
    }
}

impl RowGroupReader for BytesGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        &self.metadata
    }

    fn num_columns(&self) -> usize {
        self.metadata.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>, ParquetError> {
        self.inner.get_column_page_reader(i)
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.inner.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>, ParquetError> {
        self.inner.get_row_iter(projection)
    }
}

/// Returns the same type with bytes in place of strings.
fn as_bytes(kind: &Type) -> Result<Arc<Type>, ParquetError> {
    let info = kind.get_basic_info();
    let is_text = matches!(info.converted_type(), ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON);
    Ok(Arc::new(match kind {
        Type::PrimitiveType { physical_type, .. } if is_text => {
            Type::primitive_type_builder(kind.name(), *physical_type).with_repetition(info.repetition()).build()?
        }
        Type::PrimitiveType { .. } => kind.clone(),
        Type::GroupType { fields, .. } => {
            let fields = fields.iter().map(|field| as_bytes(field)).collect::<Result<_, _>>()?;
            let group = Type::group_type_builder(kind.name()).with_fields(fields);
            let group =
                group.with_converted_type(info.converted_type()).with_logical_type(info.logical_type_ref().cloned());
            match info.has_repetition() {
                true => group.with_repetition(info.repetition()).build()?,
                false => group.build()?,
            }
        }
    }))
}

fn record(input: &DataFileReader, number: u64, row: Row) -> Result<Record, Error> {
    let column = |(name, field): (String, Field)| {
        let value = value(input, &|| format!("record {number}: column {name}"), &field)?;
        Ok((name, value))
    };
    row.into_columns().into_iter().map(column).collect()
}

/// Returns a value as JSON: times are numbers in the unit of the file. `place` is its place in the file, for errors.
fn value(input: &DataFileReader, place: &dyn Fn() -> String, field: &Field) -> Result<Value, Error> {
    let value = |field: &Field| value(input, place, field);
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) | Field::Date(value) | Field::TimeMillis(value) => (*value).into(),
        Field::Long(value)
        | Field::TimeMicros(value)
        | Field::TimestampMillis(value)
        | Field::TimestampMicros(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float16(value) => f32::from(*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Decimal(value) => {
            decimal(value).map_err(|reason| input.failed(format!("{}: {reason}", place())))?.into()
        }
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => input.text(bytes.data(), place)?.into_owned().into(),
        Field::Group(row) => {
            let fields = row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?)));
            Value::Object(fields.collect::<Result<_, Error>>()?)
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect::<Result<_, _>>()?,
        Field::MapInternal(map) => {
            let entry = |(key, item): &(Field, Field)| match value(key)? {
                Value::String(key) => Ok((key, value(item)?)),
                key => Ok((key.to_string(), value(item)?)),
            };
            Value::Object(map.entries().iter().map(entry).collect::<Result<_, Error>>()?)
        }
    })
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
