//! Nested columns of parquet: any types within each other, and the forms that older writers gave to lists and maps.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::builder::{
    ArrayBuilder, BooleanBuilder, Int64Builder, ListBuilder, MapBuilder, StringBuilder, StructBuilder, make_builder,
};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, FixedLenByteArray, Int96};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::records::read;

/// Returns any type within `depth` others.
fn kind() -> impl Strategy<Value = DataType> {
    let leaf = prop::sample::select(vec![DataType::Int64, DataType::Utf8, DataType::Boolean]);
    leaf.prop_recursive(3, 12, 3, |inner| {
        let field =
            |name: &'static str| (inner.clone(), any::<bool>()).prop_map(move |(k, null)| Field::new(name, k, null));
        prop_oneof![
            field("item").prop_map(|item| DataType::List(Arc::new(item))),
            (field("a"), field("b"), field("c"), 1..4usize)
                .prop_map(|(a, b, c, count)| DataType::Struct([a, b, c].into_iter().take(count).collect())),
            field("values").prop_map(|values| {
                let entry = vec![Field::new("keys", DataType::Utf8, false), values];
                DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry.into()), false)), false)
            }),
        ]
    })
}

/// Returns any value of a field.
fn value(field: &Field) -> BoxedStrategy<Value> {
    let some = match field.data_type() {
        DataType::Int64 => any::<i64>().prop_map(Value::from).boxed(),
        DataType::Boolean => any::<bool>().prop_map(Value::from).boxed(),
        DataType::List(item) => prop::collection::vec(value(item), 0..4).prop_map(Value::from).boxed(),
        DataType::Struct(fields) => {
            let names: Vec<_> = fields.iter().map(|field| field.name().clone()).collect();
            let values: Vec<_> = fields.iter().map(|field| value(field)).collect();
            values.prop_map(move |values| names.iter().cloned().zip(values).collect()).boxed()
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else { unreachable!("made above") };
            let entries = prop::collection::btree_map("[a-z]{0,2}", value(&fields[1]), 0..4);
            entries.prop_map(|entries| entries.into_iter().collect()).boxed()
        }
        _ => "[a-z\u{e9}]{0,3}".prop_map(Value::from).boxed(),
    };
    if field.is_nullable() { prop_oneof![1 => Just(Value::Null), 3 => some].boxed() } else { some }
}

fn append(builder: &mut dyn ArrayBuilder, kind: &DataType, value: &Value) {
    let builder = builder.as_any_mut();
    match kind {
        DataType::Int64 => builder.downcast_mut::<Int64Builder>().unwrap().append_option(value.as_i64()),
        DataType::Boolean => builder.downcast_mut::<BooleanBuilder>().unwrap().append_option(value.as_bool()),
        DataType::List(item) => {
            let list = builder.downcast_mut::<ListBuilder<Box<dyn ArrayBuilder>>>().unwrap();
            value.as_array().into_iter().flatten().for_each(|value| append(list.values(), item.data_type(), value));
            list.append(!value.is_null());
        }
        DataType::Struct(fields) => {
            let group = builder.downcast_mut::<StructBuilder>().unwrap();
            for (builder, field) in group.field_builders_mut().iter_mut().zip(fields) {
                append(builder, field.data_type(), value.get(field.name()).unwrap_or(&Value::Null));
            }
            group.append(!value.is_null());
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else { unreachable!("made above") };
            let map = builder.downcast_mut::<MapBuilder<Box<dyn ArrayBuilder>, Box<dyn ArrayBuilder>>>().unwrap();
            for (key, value) in value.as_object().into_iter().flatten() {
                append(map.keys(), &DataType::Utf8, &key.as_str().into());
                append(map.values(), fields[1].data_type(), value);
            }
            map.append(!value.is_null()).unwrap();
        }
        _ => builder.downcast_mut::<StringBuilder>().unwrap().append_option(value.as_str()),
    }
}

/// Writes a column of values, in row groups and pages of at most so many records.
fn write_values(path: &Path, field: Field, values: &[Value], (group, page, version): (usize, usize, WriterVersion)) {
    let mut column = make_builder(field.data_type(), 0);
    values.iter().for_each(|value| append(&mut column, field.data_type(), value));
    let schema = Arc::new(Schema::new(vec![field]));
    let batch = RecordBatch::try_new(schema.clone(), vec![column.finish()]).unwrap();
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_max_row_group_row_count(Some(group))
        .set_data_page_row_count_limit(page)
        .set_write_batch_size(page)
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_types_within_each_other_are_read_as_they_were_written(
        (field, values) in (kind(), any::<bool>()).prop_flat_map(|(kind, nullable)| {
            let field = Field::new("x", kind, nullable);
            (prop::collection::vec(value(&field), 1..30), Just(field)).prop_map(|(values, field)| (field, values))
        }),
        group in 1usize..20,
        page in 1usize..10,
        version in prop::sample::select(vec![WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0]),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        write_values(&path, field, &values, (group, page, version));
        let found = read(&path, "train").unwrap();
        let found: Vec<_> = found.into_iter().map(|mut record| record.remove("x").unwrap()).collect();
        prop_assert_eq!(found, values);
    }

    #[test]
    fn a_slice_begins_and_ends_at_records_whatever_the_lists_in_them(
        lists in prop::collection::vec(prop::collection::vec("[a-z]{1,3}", 1..5), 1..40),
        group in 1usize..20,
        page in 1usize..10,
        version in prop::sample::select(vec![WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0]),
        (start, count) in (any::<prop::sample::Index>(), 1..20usize),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let values: Vec<_> = lists.iter().map(|texts| json!(texts)).collect();
        let field = Field::new("x", DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), true);
        write_values(&path, field, &values, (group, page, version));
        let start = start.index(lists.len());
        let end = lists.len().min(start + count);
        let expected: Vec<_> = lists[start..end].iter().map(|texts| texts.join("\n")).collect();
        prop_assert_eq!(super::read(&path, &format!("train[{start}:{end}]"), "x").unwrap(), expected);
    }
}

/// Entries of a column: values, definition levels and repetition levels.
type Entries = (Vec<i32>, Vec<i16>, Vec<i16>);

/// Writes a file with one row group of columns.
fn write(path: &Path, schema: &str, columns: &[Entries]) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (values, definition, repetition) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let (definition, repetition) = (Some(&definition[..]), Some(&repetition[..]));
        let bytes = || values.iter().map(|value| value.to_be_bytes()[2..].to_vec());
        let written = match column.untyped() {
            ColumnWriter::Int32ColumnWriter(column) => column.write_batch(values, definition, repetition),
            ColumnWriter::Int64ColumnWriter(column) => {
                let values: Vec<_> = values.iter().map(|&value| value.into()).collect();
                column.write_batch(&values, definition, repetition)
            }
            ColumnWriter::Int96ColumnWriter(column) => {
                // Days of the Julian calendar up to 1970-01-01.
                let values: Vec<_> =
                    values.iter().map(|&day| Int96::from(vec![0, 0, 2_440_588 + day as u32])).collect();
                column.write_batch(&values, definition, repetition)
            }
            ColumnWriter::ByteArrayColumnWriter(column) => {
                column.write_batch(&bytes().map(ByteArray::from).collect::<Vec<_>>(), definition, repetition)
            }
            ColumnWriter::FixedLenByteArrayColumnWriter(column) => {
                let values: Vec<FixedLenByteArray> = bytes().map(|bytes| ByteArray::from(bytes).into()).collect();
                column.write_batch(&values, definition, repetition)
            }
            _ => unreachable!("not used here"),
        };
        written.unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn lists_and_maps_of_older_writers_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    // Two items, none, and one.
    let entries = |level: i16| (vec![1, 2, 3], vec![level, level, level - 1, level], vec![0, 1, 0, 0]);
    let lists = json!([[1, 2], [], [3]]);
    for (schema, columns, expected) in [
        ("repeated int32 a;", vec![entries(1)], lists.clone()),
        ("repeated group a { required int32 x; }", vec![entries(1)], json!([[{"x": 1}, {"x": 2}], [], [{"x": 3}]])),
        ("required group a (LIST) { repeated int32 element; }", vec![entries(1)], lists.clone()),
        ("optional group a (LIST) { repeated int32 element; }", vec![entries(2)], lists.clone()),
        ("required group a (LIST) { repeated group bag { required int32 item; } }", vec![entries(1)], lists.clone()),
        (
            "required group a (LIST) { repeated group array { required int32 x; } }",
            vec![entries(1)],
            json!([[{"x": 1}, {"x": 2}], [], [{"x": 3}]]),
        ),
        (
            "required group a (LIST) { repeated group a_tuple { required int32 x; } }",
            vec![entries(1)],
            json!([[{"x": 1}, {"x": 2}], [], [{"x": 3}]]),
        ),
        (
            "required group a (LIST) { repeated group element { required int32 x; required int32 y; } }",
            vec![entries(1), entries(1)],
            json!([[{"x": 1, "y": 1}, {"x": 2, "y": 2}], [], [{"x": 3, "y": 3}]]),
        ),
        (
            "required group a (LIST) { repeated group array (LIST) { repeated int32 array; } }",
            vec![(vec![1, 2, 3], vec![2, 2, 2, 1, 0], vec![0, 2, 1, 1, 0])],
            json!([[[1, 2], [3], []], []]),
        ),
        ("required group a (MAP) { repeated group key_value { required int32 key; } }", vec![entries(1)], lists),
        (
            "required group a (MAP) { repeated group map { required int32 key; optional int32 value; } }",
            vec![entries(1), (vec![4, 5], vec![2, 1, 0, 2], vec![0, 1, 0, 0])],
            json!([{"1": 4, "2": null}, {}, {"3": 5}]),
        ),
    ] {
        write(&path, &format!("message m {{ {schema} }}"), &columns);
        let found = read(&path, "train").unwrap_or_else(|error| panic!("{schema}: {error}"));
        let found: Vec<_> = found.into_iter().map(|mut record| record.remove("a").unwrap()).collect();
        assert_eq!(Value::from(found), expected, "{schema}");
    }
}

#[test]
fn numbers_are_what_their_type_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    for (kind, stored, expected) in [
        ("int32 a (INTEGER(8, true))", -3, json!(-3)),
        ("int32 a (INTEGER(16, false))", 65_535, json!(65_535)),
        ("int32 a (INTEGER(32, false))", -1, json!(4_294_967_295_u32)),
        ("int64 a (INTEGER(64, false))", -1, json!(u64::MAX)),
        ("int32 a (DECIMAL(9, 2))", -1250, json!(-12.5)),
        ("int64 a (DECIMAL(18, 1))", 25, json!(2.5)),
        ("binary a (DECIMAL(4, 2))", -1250, json!(-12.5)),
        ("fixed_len_byte_array(2) a (DECIMAL(4, 2))", -1250, json!(-12.5)),
        ("fixed_len_byte_array(2) a (FLOAT16)", 0x003e, json!(1.5)),
        ("fixed_len_byte_array(2) a", 0x6869, json!("hi")),
        ("int32 a (DATE)", 7, json!(7)),
        ("int64 a (TIMESTAMP(NANOS, true))", 7, json!(7)),
        ("int96 a", 1, json!(86_400_000)),
    ] {
        write(&path, &format!("message m {{ required {kind}; }}"), &[(vec![stored], vec![0], vec![0])]);
        let found = read(&path, "train").unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(found[0]["a"], expected, "{kind}");
    }
}
