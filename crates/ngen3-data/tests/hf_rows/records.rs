//! Whole records: all formats give the same columns with the same values as the JSON lines.

use std::fs::{self, File};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field};
use ngen3_data::{Record, read_records};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{fixtures, folder};

pub fn read(dataset: &std::path::Path, split: &str) -> Result<Vec<Record>, String> {
    read_records(dataset.to_str().unwrap(), None, split, &mut |_| true)
        .map(|(_, records)| records)
        .map_err(|error| error.to_string())
}

#[test]
fn all_formats_give_the_same_rows() {
    let lines = fs::read_to_string(fixtures().join("lines.jsonl")).unwrap();
    let expected: Vec<Record> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in [
        "lines.jsonl",
        "array.json",
        "none.parquet",
        "snappy.parquet",
        "brotli.parquet",
        "zstd.parquet",
        "uncompressed.arrow",
        "lz4.arrow",
        "saved.arrow",
    ] {
        let found = read(&fixtures().join(name), "train").unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
        for (mut found, expected) in found.into_iter().zip(&expected) {
            // Some of the files have one more column.
            found.remove("kind");
            assert_eq!(found, *expected, "{name}");
        }
    }
    // A large string and a dictionary are strings like others.
    let found = read(&fixtures().join("large.parquet"), "train").unwrap();
    assert_eq!(found[3]["text"], "two\nlines, \"quoted\"");
    let kinds: Vec<_> = found.iter().take(3).map(|row| row["kind"].clone()).collect();
    assert_eq!(kinds, [Value::from("a"), "b".into(), Value::Null]);
    // A CSV file has only strings.
    for name in ["comma.csv", "tabs.tsv"] {
        let found = read(&fixtures().join(name), "train").unwrap();
        assert_eq!((&found[0]["id"], &found[0]["text"]), (&"0".into(), &"Once upon a time".into()), "{name}");
        assert_eq!(found[1]["text"], Value::Null, "{name}");
    }
    let found = read(&fixtures().join("lines.txt"), "train").unwrap();
    assert_eq!(found[0], Map::from_iter([("text".into(), "one".into())]));
}

#[test]
fn a_file_called_as_the_split_is_the_split() {
    let files = [
        ("dev.jsonl", "{\"n\": 1}\n"),
        ("validation.jsonl", "{\"n\": 2}\n"),
        ("test-00000-of-00001.jsonl", "{\"n\": 3}\n"),
        ("my_train.jsonl", "{\"n\": 4}\n"),
    ];
    let plain = folder(&files);
    for (split, n) in [("dev", 1), ("validation", 2), ("test", 3), ("train", 4)] {
        let found = read(plain.path(), split).unwrap();
        assert_eq!(found.iter().map(|row| row["n"].clone()).collect::<Vec<_>>(), [n], "{split}");
    }
    assert!(read(plain.path(), "other").unwrap_err().contains("unknown split \"other\""));
    // A README takes precedence.
    let readme =
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: dev\n    path: my_train.jsonl\n---\n";
    let told = folder(&[files[0], files[3], ("README.md", readme)]);
    assert_eq!(read(told.path(), "dev").unwrap()[0]["n"], 4);
}

#[test]
fn damage_is_named() {
    let whole = fs::read(fixtures().join("none.parquet")).unwrap();
    let broken = folder(&[
        ("train.jsonl", "{\"a\": 1}\n\n[3]\n"),
        ("a/train.csv", "a,b\n1\n"),
        ("b/train.json", "[{\"a\": 1}, 2]"),
    ]);
    let error = |path: &str| read(&broken.path().join(path), "train").unwrap_err();
    assert!(error("train.jsonl").contains("train.jsonl: line 3: "), "{}", error("train.jsonl"));
    let ragged = error("a/train.csv");
    assert!(ragged.contains("line 2: expected 2 columns as in the header, got 1 field"), "{ragged}");
    assert!(error("b/train.json").contains("train.json: "), "{}", error("b/train.json"));
    fs::write(broken.path().join("train.parquet"), &whole[..whole.len() / 2]).unwrap();
    assert!(error("train.parquet").contains("it may be truncated"), "{}", error("train.parquet"));
}

/// A turn: its text and labels, each of which may be null.
type Turn = Option<(Option<String>, Option<Vec<Option<String>>>)>;

/// Returns a list of structs for each record, any level of which may be null or empty.
fn nested(records: &[Option<Vec<Turn>>]) -> ArrayRef {
    let labels = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)));
    let fields = vec![Field::new("text", DataType::Utf8, true), Field::new("labels", labels, true)];
    let turns = StructBuilder::new(
        fields,
        vec![Box::new(StringBuilder::new()), Box::new(ListBuilder::new(StringBuilder::new()))],
    );
    let mut column = ListBuilder::new(turns);
    for record in records {
        for turn in record.iter().flatten() {
            let (text, labels) = turn.clone().unwrap_or_default();
            column.values().field_builder::<StringBuilder>(0).unwrap().append_option(text);
            column.values().field_builder::<ListBuilder<StringBuilder>>(1).unwrap().append_option(labels);
            column.values().append(turn.is_some());
        }
        column.append(record.is_some());
    }
    Arc::new(column.finish())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nested_columns_are_the_same_in_every_format(
        records in {
            let text = || prop::option::of("[a-zé]{0,3}");
            let turn = (text(), prop::option::of(prop::collection::vec(text(), 0..3)));
            let turns = prop::collection::vec(prop::option::of(turn), 0..4);
            prop::collection::vec(prop::option::of(turns), 1..40)
        },
        group in 1usize..20,
        page in 1usize..10,
    ) {
        let turn = |turn: &Turn| turn.as_ref().map(|(text, labels)| json!({"text": text, "labels": labels}));
        let numbers = records.iter().enumerate().map(|(number, record)| {
            let turns = record.as_ref().map(|turns| turns.iter().map(turn).collect::<Vec<_>>());
            Record::from_iter([("n".into(), json!(number)), ("turns".into(), json!(turns))])
        });
        let expected: Vec<_> = numbers.collect();
        let folder = tempfile::tempdir().unwrap();
        let n: ArrayRef = Arc::new((0..records.len() as i64).map(Some).collect::<Int64Array>());
        let batch = RecordBatch::try_from_iter([("n", n), ("turns", nested(&records))]).unwrap();
        let (parquet, arrow) = (folder.path().join("x.parquet"), folder.path().join("x.arrow"));
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(group))
            .set_data_page_row_count_limit(page)
            .set_write_batch_size(page)
            .build();
        let mut writer =
            ArrowWriter::try_new(File::create(&parquet).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let mut writer = StreamWriter::try_new(File::create(&arrow).unwrap(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        for path in [&parquet, &arrow] {
            prop_assert_eq!(&read(path, "train").unwrap(), &expected, "{}", path.display());
        }
    }
}
