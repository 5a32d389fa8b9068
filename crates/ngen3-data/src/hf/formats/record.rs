//! Whole records, every column as JSON. For datasets of thousands of records, such as benchmarks, which fit in memory.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch, downcast_dictionary_array};
use arrow_schema::DataType;
use serde_json::{Map, Value};

use super::file::DataFileReader;
use crate::Error;
use crate::hf::column::arrow_string;

/// A record: the value of each column, by name.
pub type Record = Map<String, Value>;

impl DataFileReader<'_> {
    pub(super) fn of_batches(&self, batches: &[RecordBatch]) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for batch in batches {
            let schema = batch.schema();
            for row in 0..batch.num_rows() {
                let number = records.len() + 1;
                let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
                    let (name, value) = (field.name(), to_json(column.as_ref(), row));
                    let value = value.map_err(|kind| {
                        self.failed(format!("record {number}: column {name} has the unsupported type {kind}"))
                    });
                    Ok((name.clone(), value?))
                });
                records.push(columns.collect::<Result<_, Error>>()?);
            }
        }
        Ok(records)
    }
}

/// Returns the value of an array in a record as JSON. `Err` is the name of an unsupported type.
fn to_json(array: &dyn Array, row: usize) -> Result<Value, String> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    if let Some(text) = arrow_string(array, row) {
        return Ok(text.into());
    }
    macro_rules! number {
        ($kind:ty) => {
            Value::from(array.as_primitive::<$kind>().value(row))
        };
    }
    let items = |items: &dyn Array| (0..items.len()).map(|item| to_json(items, item)).collect::<Result<Value, _>>();
    Ok(match array.data_type() {
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
        DataType::Null => Value::Null,
        DataType::List(_) => items(array.as_list::<i32>().value(row).as_ref())?,
        DataType::LargeList(_) => items(array.as_list::<i64>().value(row).as_ref())?,
        DataType::FixedSizeList(..) => items(array.as_fixed_size_list().value(row).as_ref())?,
        DataType::Struct(fields) => {
            let values = fields.iter().zip(array.as_struct().columns());
            let values = values.map(|(field, column)| Ok((field.name().clone(), to_json(column.as_ref(), row)?)));
            Value::Object(values.collect::<Result<_, String>>()?)
        }
        DataType::Dictionary(..) => downcast_dictionary_array!(
            array => match array.key(row) {
                Some(key) => to_json(array.values().as_ref(), key)?,
                None => Value::Null,
            },
            other => return Err(other.to_string()),
        ),
        other => return Err(other.to_string()),
    })
}
