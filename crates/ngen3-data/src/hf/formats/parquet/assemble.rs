//! Records of the columns of a row group, after Google's Dremel: a field is there if the definition level of its columns is that of
//! the field or above, and a list goes on while their repetition level is above that of the list.

use std::ops::Range;

use parquet::basic::{ConvertedType, Repetition};
use parquet::errors::ParquetError;
use parquet::file::reader::RowGroupReader;
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor, Type};
use serde_json::{Map, Value};

use super::column::{Cell, Column};
use crate::Error;
use crate::hf::formats::file::DataFileReader;
use crate::hf::record::Record;

/// A field of a record.
struct Field {
    /// Its columns.
    columns: Range<usize>,
    /// Definition level from which on it has a value.
    definition: i16,
    shape: Shape,
}

enum Shape {
    /// One column.
    Leaf,
    Group(Vec<(String, Field)>),
    /// A list of one field, with the repetition level of the list itself. An empty list has its definition level.
    List(i16, Box<Field>),
    /// A list of keys and values, likewise.
    Map(i16, Box<[Field; 2]>),
}

/// Wanted fields of a file's records.
pub(super) struct Schema {
    fields: Vec<(String, Field)>,
    /// Columns of these fields: their indices in the file, and their types.
    columns: Vec<(usize, ColumnDescPtr)>,
}

impl Schema {
    /// Takes the fields with these indices, in ascending order.
    pub(super) fn new(file: &SchemaDescriptor, wanted: &[usize]) -> Result<Self, ParquetError> {
        let (all, mut next) = (file.root_schema().get_fields(), 0);
        let fields =
            wanted.iter().map(|&index| Ok((all[index].name().to_owned(), field(&all[index], [0, 0], &mut next)?)));
        let fields = fields.collect::<Result<_, ParquetError>>()?;
        let columns =
            (0..file.num_columns()).filter(|&column| wanted.binary_search(&file.get_column_root_idx(column)).is_ok());
        Ok(Self { fields, columns: columns.map(|column| (column, file.column(column))).collect() })
    }
}

/// Returns a field within fields of these definition and repetition levels; `next` is the index of its first column.
fn field(kind: &Type, [definition, repetition]: [i16; 2], next: &mut usize) -> Result<Field, ParquetError> {
    match kind.get_basic_info().repetition() {
        Repetition::REQUIRED => content(kind, [definition, repetition], next),
        Repetition::OPTIONAL => content(kind, [definition + 1, repetition], next),
        // A list without a field of its own is never null.
        Repetition::REPEATED => {
            let item = content(kind, [definition + 1, repetition + 1], next)?;
            let columns = item.columns.clone();
            Ok(Field { columns, definition, shape: Shape::List(repetition, Box::new(item)) })
        }
    }
}

/// Returns a field of these levels, whether it is optional or repeated itself.
fn content(kind: &Type, levels: [i16; 2], next: &mut usize) -> Result<Field, ParquetError> {
    let [definition, repetition] = levels;
    let start = *next;
    let wrong = |what: &str| ParquetError::General(format!("column {}: expected {what}", kind.name()));
    let within = [definition + 1, repetition + 1];
    let shape = if kind.is_primitive() {
        *next += 1;
        Shape::Leaf
    } else {
        match (kind.get_basic_info().converted_type(), kind.get_fields()) {
            (ConvertedType::LIST, [items]) if is_repeated(items) => {
                let item = match is_item(items) {
                    true => content(items, within, next)?,
                    false => field(&items.get_fields()[0], within, next)?,
                };
                Shape::List(repetition, Box::new(item))
            }
            (ConvertedType::LIST, _) => return Err(wrong("a list to have one repeated field")),
            (ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE, [items]) if is_repeated(items) && items.is_group() => {
                match items.get_fields() {
                    // A map without values is a list.
                    [key] => Shape::List(repetition, Box::new(field(key, within, next)?)),
                    [key, value] => {
                        let key = field(key, within, next)?;
                        Shape::Map(repetition, Box::new([key, field(value, within, next)?]))
                    }
                    _ => return Err(wrong("a map to have keys and values")),
                }
            }
            (ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE, _) => {
                return Err(wrong("a map to have one repeated field"));
            }
            (_, fields) => {
                let fields = fields.iter().map(|kind| Ok((kind.name().to_owned(), field(kind, levels, next)?)));
                Shape::Group(fields.collect::<Result<_, ParquetError>>()?)
            }
        }
    };
    match start..*next {
        columns if columns.is_empty() => Err(wrong("a struct to have fields")),
        columns => Ok(Field { columns, definition, shape }),
    }
}

fn is_repeated(kind: &Type) -> bool {
    let info = kind.get_basic_info();
    info.has_repetition() && info.repetition() == Repetition::REPEATED
}

/// True if the repeated field of a list is its item, and not a group around it: the format's rules for older files.
fn is_item(kind: &Type) -> bool {
    if kind.is_primitive() {
        return true;
    }
    match kind.get_fields() {
        [field] if is_repeated(field) || kind.get_basic_info().converted_type() == ConvertedType::LIST => false,
        [_] => kind.name() == "array" || kind.name().ends_with("_tuple"),
        _ => true,
    }
}

/// Makes the records of a row group, one after the other.
pub(super) struct Assembler<'a> {
    schema: &'a Schema,
    columns: Vec<Column>,
}

impl<'a> Assembler<'a> {
    /// Opens the columns; each decodes `stretch` records at once.
    pub(super) fn new(schema: &'a Schema, group: &dyn RowGroupReader, stretch: usize) -> Result<Self, ParquetError> {
        let column =
            |(index, kind): &(usize, ColumnDescPtr)| Ok(Column::new(kind, group.get_column_reader(*index)?, stretch));
        Ok(Self { schema, columns: schema.columns.iter().map(column).collect::<Result<_, ParquetError>>()? })
    }

    /// Skips the next records.
    pub(super) fn skip(&mut self, records: u64) -> Result<(), ParquetError> {
        let records = usize::try_from(records).unwrap_or(usize::MAX);
        self.columns.iter_mut().filter(|_| records > 0).try_for_each(|column| column.skip(records))
    }

    /// Returns the next record, or the reason why it is bad. `number` is its number in the file.
    pub(super) fn next(&mut self, input: &DataFileReader, number: u64) -> Result<Result<Record, Error>, ParquetError> {
        self.columns.iter_mut().try_for_each(Column::begin)?;
        let mut values = Values { columns: &mut self.columns, input, number, name: "", error: None };
        let mut record = Record::with_capacity(self.schema.fields.len());
        for (name, field) in &self.schema.fields {
            values.name = name;
            record.insert(name.clone(), values.of(field)?);
        }
        Ok(values.error.map_or(Ok(record), Err))
    }
}

/// Takes the values of a record from the columns.
struct Values<'a> {
    columns: &'a mut [Column],
    input: &'a DataFileReader<'a>,
    number: u64,
    /// The top-level column.
    name: &'a str,
    /// The first bad value.
    error: Option<Error>,
}

impl Values<'_> {
    fn of(&mut self, field: &Field) -> Result<Value, ParquetError> {
        if !self.agree(field, |column| column.definition() >= field.definition)? {
            return Ok(self.none(field));
        }
        Ok(match &field.shape {
            Shape::Leaf => self.leaf(field.columns.start)?,
            Shape::Group(fields) => {
                let mut group = Map::with_capacity(fields.len());
                for (name, field) in fields {
                    group.insert(name.clone(), self.of(field)?);
                }
                Value::Object(group)
            }
            Shape::List(repetition, item) => {
                let mut items = Vec::new();
                self.each(field, *repetition, &mut |values| {
                    items.push(values.of(item)?);
                    Ok(())
                })?;
                Value::Array(items)
            }
            Shape::Map(repetition, entry) => {
                let mut entries = Map::new();
                self.each(field, *repetition, &mut |values| {
                    let [key, value] = [values.of(&entry[0])?, values.of(&entry[1])?];
                    let key = if let Value::String(key) = key { key } else { key.to_string() };
                    entries.insert(key, value);
                    Ok(())
                })?;
                Value::Object(entries)
            }
        })
    }

    /// Calls `item` for each item of a list.
    fn each(
        &mut self,
        list: &Field,
        repetition: i16,
        item: &mut dyn FnMut(&mut Self) -> Result<(), ParquetError>,
    ) -> Result<(), ParquetError> {
        if !self.agree(list, |column| column.definition() > list.definition)? {
            self.none(list);
            return Ok(());
        }
        loop {
            item(self)?;
            if !self.agree(list, |column| column.repetition() > repetition)? {
                return Ok(());
            }
        }
    }

    /// Passes over the entries of a field without a value.
    fn none(&mut self, field: &Field) -> Value {
        for column in &mut self.columns[field.columns.clone()] {
            column.take();
        }
        Value::Null
    }

    /// Returns the answer of all columns of a field.
    fn agree(&self, field: &Field, answer: impl Fn(&Column) -> bool) -> Result<bool, ParquetError> {
        let mut columns = self.columns[field.columns.clone()].iter();
        let first = columns.next().is_some_and(&answer);
        match columns.all(|column| answer(column) == first) {
            true => Ok(first),
            false => Err(ParquetError::General("the columns of a list or struct do not fit together".into())),
        }
    }

    fn leaf(&mut self, column: usize) -> Result<Value, ParquetError> {
        let place = || format!("record {}: column {}", self.number, self.name);
        let value = match self.columns[column].take() {
            Some(Ok(Cell::Json(value))) => Ok(value),
            Some(Ok(Cell::Bytes(bytes))) => self.input.text(bytes, place).map(|text| text.into_owned().into()),
            Some(Err(reason)) => Err(self.input.failed(format!("{}: {reason}", place()))),
            None => return Err(ParquetError::General("a column lacks a value".into())),
        };
        Ok(value.unwrap_or_else(|error| {
            // The record is read to its end, so that the next one can be.
            self.error.get_or_insert(error);
            Value::Null
        }))
    }
}
