//! Arrow IPC files and streams (`datasets` saves streams), one batch at a time.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Date64Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch, StructArray, downcast_dictionary_array};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use serde_json::Value;

use super::arrow_sizes;
use super::file::{BUFFER, DataFileReader, FileRecord, FileRecordFn};
use crate::Error;
use crate::hf::record::Record;

/// Magic bytes of the file format.
const MAGIC: &[u8] = b"ARROW1";

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// Opens a file with only the wanted columns.
fn open(input: &DataFileReader) -> Result<Batches, Error> {
    let damaged = |error: ArrowError| damaged(input, &error);
    let mut file = input.file()?;
    let mut start = Vec::new();
    file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|error| input.failed(error))?;
    let mut again = || file.rewind().and_then(|()| file.try_clone()).map_err(|error| input.failed(error));
    let is_file = start == MAGIC;
    let buffered = |file: File| BufReader::with_capacity(BUFFER, file);
    arrow_sizes::check(&mut BufReader::new(again()?), is_file).map_err(|reason| input.failed(reason))?;
    let schema = if is_file {
        FileReader::try_new(buffered(again()?), None).map_err(damaged)?.schema()
    } else {
        StreamReader::try_new(buffered(again()?), None).map_err(damaged)?.schema()
    };
    let names: Vec<_> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let projection = Some(input.wanted.among(&names).map_err(|reason| input.failed(reason))?);
    Ok(if is_file {
        Box::new(FileReader::try_new(buffered(again()?), projection).map_err(damaged)?)
    } else {
        Box::new(StreamReader::try_new(buffered(again()?), projection).map_err(damaged)?)
    })
}

fn damaged(input: &DataFileReader, error: &dyn std::fmt::Display) -> Error {
    input.failed(format!("not a complete Arrow file; it may be truncated ({error})"))
}

pub(super) fn read(input: &DataFileReader, take: &mut FileRecordFn) -> Result<(), Error> {
    let mut number = 0;
    for batch in open(input)? {
        let batch = batch.map_err(|error| damaged(input, &error))?;
        for row in 0..batch.num_rows() {
            number += 1;
            if number <= input.skip {
                continue;
            }
            let columns = record(&batch, row).map_err(|reason| input.failed(format!("record {number}: {reason}")));
            let columns = columns.map(Some).or_else(|error| input.skip_bad(error))?;
            if take(FileRecord { columns, bytes_read: 0 })?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn record(batch: &RecordBatch, row: usize) -> Result<Record, String> {
    let schema = batch.schema_ref();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        let value = value(column.as_ref(), row).map_err(|reason| format!("column {}: {reason}", field.name()))?;
        Ok((field.name().clone(), value))
    });
    columns.collect()
}

/// Returns a value as JSON: times are numbers in the unit of the file. `Err` describes an unsupported type.
fn value(array: &dyn Array, row: usize) -> Result<Value, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    macro_rules! number {
        ($kind:ty) => {
            array.as_primitive::<$kind>().value(row).into()
        };
    }
    let bytes = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Value::from(text)),
        Err(_) => Err("expected text, got binary data that is not UTF-8".to_owned()),
    };
    let items = |items: &dyn Array| (0..items.len()).map(|item| value(items, item)).collect::<Result<Value, _>>();
    let fields = |fields: &StructArray, row: usize| {
        let values = fields.fields().iter().zip(fields.columns());
        let values = values.map(|(field, column)| Ok((field.name().clone(), value(column.as_ref(), row)?)));
        Ok::<_, String>(Value::Object(values.collect::<Result<_, String>>()?))
    };
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::Date32 => number!(Date32Type),
        DataType::Date64 => number!(Date64Type),
        DataType::Timestamp(TimeUnit::Second, _) => number!(TimestampSecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => number!(TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => number!(TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => number!(TimestampNanosecondType),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Binary => bytes(array.as_binary::<i32>().value(row))?,
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(row))?,
        DataType::BinaryView => bytes(array.as_binary_view().value(row))?,
        DataType::List(_) => items(array.as_list::<i32>().value(row).as_ref())?,
        DataType::LargeList(_) => items(array.as_list::<i64>().value(row).as_ref())?,
        DataType::FixedSizeList(..) => items(array.as_fixed_size_list().value(row).as_ref())?,
        DataType::Struct(_) => fields(array.as_struct(), row)?,
        DataType::Dictionary(..) => downcast_dictionary_array!(
            array => match array.key(row) {
                Some(key) => value(array.values().as_ref(), key)?,
                None => Value::Null,
            },
            other => return Err(format!("unsupported type {other}")),
        ),
        other => return Err(format!("unsupported type {other}")),
    })
}
