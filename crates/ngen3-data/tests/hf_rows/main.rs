//! Records of local files as documents: the texts that Python's `datasets` reads from the same files, in the same order.
//!
//! `make_fixtures.py` makes `fixtures/`, with the texts that `datasets` reads from each file in `expected.json`. Documents are
//! read back from the tokens, so that every step is covered.

mod nested;
mod records;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use ngen3_data::source::Event;
use ngen3_data::{HfDatasetSpec, HfSource, RecordOptions, TokenFile, Tokenizer, build_hf_dataset, read_records};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use proptest::prelude::*;

const END: u32 = 50_256;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hf_rows/fixtures")
}

fn source(dataset: &Path, split: &str, column: &str) -> HfSource {
    HfSource {
        dataset: dataset.to_str().unwrap().into(),
        config: None,
        split: split.into(),
        column: Some(column.into()),
        revision: None,
        separator: "\n".into(),
        options: RecordOptions::default(),
    }
}

/// Returns the documents of a source, and the notes.
fn read_with(source: &HfSource, threads: usize) -> Result<(Vec<String>, Vec<String>), String> {
    let root = tempfile::tempdir().unwrap();
    let spec = HfDatasetSpec { name: "x", source, tokenizer: None, threads, root: root.path() };
    let mut notes = Vec::new();
    let made = build_hf_dataset(&spec, &AtomicBool::new(false), &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
    });
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "nothing is left after an error");
            return Err(error.to_string());
        }
    };
    let file = TokenFile::open(&made.data).unwrap();
    file.verify().unwrap();
    let mut tokens = Vec::new();
    file.copy(0..file.len(), &mut tokens);
    let tokenizer = Tokenizer::gpt2();
    let mut documents: Vec<_> = tokens.split(|&token| token == END).map(|ids| tokenizer.decode(ids)).collect();
    assert_eq!(documents.pop().as_deref(), Some(""), "the last document has an end-of-text token too");
    assert_eq!(documents.len() as u64, made.documents);
    Ok((documents, notes))
}

fn read(dataset: &Path, split: &str, column: &str) -> Result<Vec<String>, String> {
    read_with(&source(dataset, split, column), 2).map(|(documents, _)| documents)
}

/// Makes files below a folder; returns the folder.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

#[test]
fn every_format_gives_the_texts_that_datasets_gives() {
    let expected = fs::read_to_string(fixtures().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Vec<serde_json::Value>>> = serde_json::from_str(&expected).unwrap();
    assert_eq!(expected.len(), 19);
    for (name, columns) in expected {
        for (column, values) in columns {
            // For a record that holds a list, the document is its texts joined by line breaks.
            let text = |value: serde_json::Value| match value {
                serde_json::Value::Null => None,
                serde_json::Value::String(text) => Some(text),
                list => {
                    let texts: Vec<String> = serde_json::from_value(list).unwrap();
                    Some(texts.join("\n"))
                }
            };
            let all = values.len();
            let texts: Vec<_> = values.into_iter().filter_map(text).filter(|text| !text.is_empty()).collect();
            let (documents, notes) = read_with(&source(&fixtures().join(&name), "train", &column), 2).unwrap();
            assert_eq!(documents, texts, "{name} {column}");
            let empty = all - texts.len();
            assert_eq!(notes, [format!("skipped {empty} of {all} records: they have no text")], "{name}");
        }
    }
}

#[test]
fn conversations_and_nested_columns_are_read_from_every_format_that_has_them() {
    for name in ["datasets.parquet", "large.parquet", "saved.arrow", "zstd.arrow", "lines.jsonl", "array.json"] {
        let file = fixtures().join(name);
        let chats = read(&file, "train[:3]", "messages").unwrap();
        assert_eq!(chats, ["user: Hi\nassistant: Hello\nthere", "user: é"], "{name}");
        let chats = read(&file, "train[:3]", "messages.role").unwrap();
        assert_eq!(chats, ["user\nassistant", "system\nuser"], "{name}");
        assert_eq!(read(&file, "train[3:6]", "meta.title").unwrap(), ["title 3", "title 5"], "{name}");
        let mut source = source(&file, "train[10:]", "meta.tags");
        source.separator = " | ".into();
        assert_eq!(read_with(&source, 1).unwrap().0, ["t | 10", "t | 11"], "{name}");
    }
    let kinds = read(&fixtures().join("zstd.arrow"), "train", "kind").unwrap();
    assert_eq!(kinds, ["a", "b"].repeat(4), "a column with a dictionary");
}

#[test]
fn a_wrong_column_names_those_there_are() {
    for (name, columns) in [
        ("none.parquet", "id, text, utterances, messages, meta"),
        ("saved.arrow", "id, text, utterances, messages, meta"),
        ("lines.jsonl", "id, text, utterances, messages, meta"),
        ("array.json", "id, text, utterances, messages, meta"),
        ("comma.csv", "id, text"),
        ("lines.txt", "text"),
    ] {
        let file = fixtures().join(name);
        let error = read(&file, "train", "txet").unwrap_err();
        let expected = format!("{}: no column \"txet\"; choose one with --hf_text_column: {columns}", file.display());
        assert_eq!(error, expected);
    }
    for (column, expected) in [
        (
            "id",
            "record 1: column id: expected a string, a list of strings, or a list of {role, content} or {from, value}, got numbers",
        ),
        ("meta", "record 1: column meta holds objects; name one of their fields: meta.title, meta.tags"),
        ("meta.titel", "no column \"meta.titel\"; choose one with --hf_text_column: meta.title, meta.tags"),
    ] {
        for name in ["none.parquet", "saved.arrow", "lines.jsonl", "array.json"] {
            let error = read(&fixtures().join(name), "train", column).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}

#[test]
fn a_file_without_lines_is_not_taken_into_memory_whole() {
    let folder = folder(&[("train.jsonl", "{")]);
    let path = folder.path().join("train.jsonl");
    // A sparse file of zeros.
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 27).unwrap();
    let expected = format!("{}: line 1 is longer than the limit of 67108864 bytes", path.display());
    assert_eq!(read(&path, "train", "text").unwrap_err(), expected);
    let records = read_records(path.to_str().unwrap(), None, "train", &mut |_| true);
    assert_eq!(records.unwrap_err().to_string(), expected);
}

#[test]
fn files_of_a_split_are_read_in_the_order_of_their_names() {
    let row = |text: &str| format!("{{\"text\":\"{text}\"}}\n");
    let (a, b, c, d) = (row("a1") + &row("a2"), row("b1"), row("c1") + &row("c2") + &row("c3"), row("d1"));
    let files = [
        ("data/train-00001-of-00002.jsonl", c.as_str()),
        ("data/train-00000-of-00002.jsonl", a.as_str()),
        ("data/test-00000-of-00001.jsonl", b.as_str()),
        ("data/odd.split-00000-of-00001.jsonl", d.as_str()),
        ("other/train.jsonl", "no rows"),
        (".cache/train.jsonl", "no rows"),
    ];
    let folder = folder(&files);
    let root = folder.path();
    for (split, expected) in [
        ("train", "a1 a2 c1 c2 c3"),
        ("test", "b1"),
        ("odd.split", "d1"),
        ("test+train", "b1 a1 a2 c1 c2 c3"),
        ("train[1:3]", "a2 c1"),
        ("train[2:]", "c1 c2 c3"),
        ("train[:1]+train[4:9]", "a1 c3"),
        ("train[:40%]", "a1 a2"),
        ("train[-2:]", "c2 c3"),
        ("train[60%:] + test", "c2 c3 b1"),
    ] {
        assert_eq!(read(root, split, "text").unwrap().join(" "), expected, "{split}");
    }
    let error = read(root, "valid", "text").unwrap_err();
    assert_eq!(error, format!("{}: unknown split \"valid\": expected one of train, test, odd.split", root.display()));
    assert!(read(root, "train[9:]", "text").unwrap_err().contains("contains no text"));
    assert!(read(root, "train[", "text").unwrap_err().contains("invalid split"));
    let mut with = source(root, "train", "text");
    with.revision = Some("v1".into());
    assert!(read_with(&with, 1).unwrap_err().contains("a local path has no revision v1"));
}

#[test]
fn a_readme_says_which_files_make_a_split() {
    let readme = "---\nconfigs:\n- config_name: en\n  default: true\n  data_files:\n  - split: train\n    path:\n    - b.csv\n    - \
                  a*.csv\n  - split: dev\n    path: dev/**\n- config_name: de\n  data_dir: german\n- config_name: bars\n  sep: '|'\n  \
                  data_files: bars.csv\n- config_name: gone\n  data_files: gone.csv\n---\n";
    let folder = folder(&[
        ("README.md", readme),
        ("a1.csv", "text\na1\n"),
        ("a2.csv", "text\n\"a,2\"\n"),
        ("b.csv", "n,text\n1,b1\n"),
        ("dev/x/y.csv", "text\ny1\n"),
        ("german/train/g.csv", "text\ng1\n"),
        ("bars.csv", "n|text\n1|x,y\n"),
    ]);
    let read = |config: Option<&str>, split: &str| {
        let mut source = source(folder.path(), split, "text");
        source.config = config.map(str::to_owned);
        read_with(&source, 1).map(|(documents, _)| documents.join(" "))
    };
    assert_eq!(read(None, "train").unwrap(), "b1 a1 a,2");
    assert_eq!(read(Some("en"), "dev").unwrap(), "y1");
    assert_eq!(read(Some("de"), "train").unwrap(), "g1");
    assert_eq!(read(Some("bars"), "train").unwrap(), "x,y");
    let unknown = read(Some("fr"), "train").unwrap_err();
    assert!(unknown.ends_with("unknown configuration \"fr\": expected one of en, de, bars, gone"), "{unknown}");
    assert!(read(Some("gone"), "train").unwrap_err().contains("the README names gone.csv, which does not exist"));
    assert!(read(None, "test").unwrap_err().ends_with("unknown split \"test\": expected one of train, dev"));
    fs::write(folder.path().join("README.md"), readme.replace("default: true", "x: y")).unwrap();
    assert!(read(None, "train").unwrap_err().contains("choose one with --hf_config: en, de, bars, gone"));
    fs::write(folder.path().join("README.md"), "---\nconfigs: [\n---\n").unwrap();
    assert!(read(None, "train").unwrap_err().contains("README.md: malformed YAML"));
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = folder(&[
        ("bad.jsonl", "{\"text\":\"fine\"}\n\n{\"text\":oops}\n"),
        ("list.jsonl", "{\"text\":\"fine\"}\n[1]\n"),
        ("cut.json", "[{\"text\":\"fine\"}, {\"text\":"),
        ("ragged.csv", "text,n\nfine,1\nno\n"),
        ("empty.csv", ""),
        ("empty.jsonl", ""),
        ("fake.parquet", "not parquet"),
        ("fake.arrow", "ARROW1 but not"),
        ("cut.jsonl.gz", "\u{1f}no gzip"),
        ("page.zip", "PK"),
        ("zips/train.zip", "PK"),
        ("none/readme.md", ""),
    ]);
    let error = |name: &str| read(&folder.path().join(name), "train", "text").unwrap_err();
    for (name, expected) in [
        ("bad.jsonl", "line 3: expected value (column 9)"),
        ("list.jsonl", "line 2: invalid type: sequence, expected an object whose keys are the columns"),
        ("cut.json", "record 2: the JSON array ends early; the file may be truncated"),
        ("ragged.csv", "line 3: expected 2 columns as in the header, got 1 field"),
        ("empty.csv", "empty: expected a header line with the names of the columns"),
        ("empty.jsonl", "the input contains no text"),
        ("fake.parquet", "not a complete Parquet file; it may be truncated"),
        ("fake.arrow", "not a complete Arrow file; it may be truncated"),
        ("cut.jsonl.gz", "the file is not compressed"),
        ("page.zip", "expected a file ending in .parquet, .arrow, .jsonl"),
        ("zips", "no readable files: expected .parquet"),
        ("none", "no readable files: expected .parquet"),
        ("missing/folder/here", "missing/folder/here: no such file or folder"),
    ] {
        assert!(error(name).contains(expected), "{name}: {}", error(name));
    }
    fs::write(folder.path().join("bytes.csv"), b"text\n\xff\n").unwrap();
    assert!(error("bytes.csv").contains("line 2: column text: invalid UTF-8 at byte 0"));
    fs::write(folder.path().join("bytes.txt"), b"fine\n\xff\n").unwrap();
    assert!(error("bytes.txt").contains("line 2: invalid UTF-8"));
    fs::write(folder.path().join("bytes.jsonl"), b"{\"text\":\"\xff\"}\n").unwrap();
    assert!(error("bytes.jsonl").contains("line 1: "));
}

#[test]
fn an_arrow_file_gets_no_memory_for_what_it_only_claims() {
    let folder = folder(&[]);
    let path = folder.path().join("x.arrow");
    for name in ["lz4.arrow", "zstd.arrow"] {
        let (whole, mut refused) = (fs::read(fixtures().join(name)).unwrap(), 0);
        // Buffers begin at multiples of 8, with the length of their content.
        for at in (0..whole.len() - 8).step_by(8) {
            for claim in [1 << 45, i64::MIN] {
                let mut file = whole.clone();
                file[at..at + 8].copy_from_slice(&claim.to_le_bytes());
                fs::write(&path, file).unwrap();
                let found = read_records(&path.display().to_string(), None, "train", &mut |_| true);
                let error = found.err().map(|error| error.to_string()).unwrap_or_default();
                refused += usize::from(error.contains("x.arrow: a batch of ") && error.contains(" claims to hold "));
            }
        }
        assert!(refused > 10, "{name}: {refused}");
    }
}

#[test]
fn a_column_that_some_rows_lack_is_empty_there() {
    let folder = folder(&[("x.jsonl", "{\"n\":1}\n{\"text\":\"a\",\"n\":2}\n{\"text\":null}\n{\"text\":\"b\"}\n")]);
    assert_eq!(read(folder.path(), "train", "text").unwrap(), ["a", "b"]);
    // A column is missing only if the first thousand records lack it.
    let rows = "{\"n\":1}\n".repeat(1000) + "{\"text\":\"a\"}\n";
    fs::write(folder.path().join("x.jsonl"), rows).unwrap();
    assert!(read(folder.path(), "train", "text").unwrap_err().contains("--hf_text_column: n"));
    fs::write(folder.path().join("x.jsonl"), "{\"a.b\":\"x\",\"a\":{\"b\":\"y\"}}\n{\"a\":{\"b\":\"z\"}}\n").unwrap();
    assert_eq!(read(folder.path(), "train", "a.b").unwrap(), ["x", "z"]);
}

#[test]
fn long_documents_and_many_small_ones_keep_their_order_on_any_number_of_threads() {
    let long: String = (0..500_000).map(|n| format!("{n} the  'll\n\n é{}", n % 7)).collect();
    let unbroken = "x".repeat(3 << 20);
    let mut texts: Vec<String> = (0..40_000).map(|n| format!("row {n}")).collect();
    texts.insert(17, long);
    texts.insert(30_000, unbroken);
    let rows: String = texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
    let folder = folder(&[("x.jsonl", &rows)]);
    for threads in [1, 5] {
        let (documents, notes) = read_with(&source(folder.path(), "train", "text"), threads).unwrap();
        assert!(documents == texts, "{threads} threads");
        assert!(notes.is_empty(), "{notes:?}");
    }
}

fn write_parquet(path: &Path, texts: &[Option<String>], compression: Compression, group: usize) {
    let array: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
    let batch = RecordBatch::try_from_iter_with_nullable([("text", array, true)]).unwrap();
    let properties =
        WriterProperties::builder().set_compression(compression).set_max_row_group_row_count(Some(group)).build();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn every_compression_of_parquet_is_read_and_damage_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let texts: Vec<_> =
        (0..3000).map(|n| (n % 7 != 3).then(|| format!("row {n} {}", "word ".repeat(n % 50)))).collect();
    let expected: Vec<_> = texts.iter().flatten().cloned().collect();
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        write_parquet(&path, &texts, compression, 1000);
        assert!(read(&path, "train", "text").unwrap() == expected, "{compression}");
        assert_eq!(read(&path, "train[999:1002]", "text").unwrap(), expected_slice(&texts, 999..1002));
    }
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len()).step_by(whole.len() / 40) {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = read(&path, "train", "text").unwrap_err();
        assert!(error.contains("not a complete Parquet file; it may be truncated"), "{cut}: {error}");
    }
    // A compressed file is decompressed first.
    let packed = folder.path().join("y.parquet.zst");
    fs::write(&packed, zstd::encode_all(&whole[..], 1).unwrap()).unwrap();
    assert!(read(&packed, "train", "text").unwrap() == expected);
    fs::write(&packed, &zstd::encode_all(&whole[..], 1).unwrap()[..500]).unwrap();
    assert!(read(&packed, "train", "text").unwrap_err().contains("compressed data ends early"));
}

#[test]
fn binary_columns_that_hold_text_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let (parquet, arrow) = (folder.path().join("x.parquet"), folder.path().join("x.arrow"));
    let array: ArrayRef = Arc::new(BinaryArray::from(vec![&b"one"[..], "zw\u{f6}lf".as_bytes(), b"\xff"]));
    let batch = RecordBatch::try_from_iter([("text", array)]).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(&parquet).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let mut writer =
        arrow_ipc::writer::FileWriter::try_new(fs::File::create(&arrow).unwrap(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    for path in [parquet, arrow] {
        assert_eq!(read(&path, "train[:2]", "text").unwrap(), ["one", "zw\u{f6}lf"]);
        assert!(read(&path, "train", "text").unwrap_err().contains("record 3: column text: "));
        let mut source = source(&path, "train", "text");
        source.options.skip_bad = true;
        let (documents, notes) = read_with(&source, 1).unwrap();
        assert_eq!(documents, ["one", "zw\u{f6}lf"]);
        assert!(notes[0].starts_with("skipped 1 bad record; the first: "), "{notes:?}");
    }
}

/// Strings in parquet need not be valid UTF-8, whatever the column says.
#[test]
fn bad_text_in_parquet_is_skipped_or_replaced_and_in_other_columns_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let schema = "message m { required binary text (UTF8); required group turns (LIST) { repeated group list { required binary \
                  element (UTF8); } } required double score; }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let file = fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts = [&b"one"[..], b"t\xffwo", b"three"].map(|text| ByteArray::from(text.to_vec()));
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    let turns = [&b"\xff"[..], b"b", b"c"].map(|text| ByteArray::from(text.to_vec()));
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&turns, Some(&[1, 1, 1]), Some(&[0, 0, 0])).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&[f64::NAN; 3], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();

    let error = read(&path, "train", "text").unwrap_err();
    let expected = "record 2: column text: invalid UTF-8 at byte 1; pass --lossy (hf_tokenize) (use --skip_bad to skip such \
                    records)";
    assert!(error.ends_with(expected), "{error}");
    let mut source = source(&path, "train", "text");
    source.options.skip_bad = true;
    let (documents, notes) = read_with(&source, 1).unwrap();
    assert_eq!(documents, ["one", "three"]);
    assert!(notes.len() == 1 && notes[0].starts_with("skipped 1 bad record; the first: "), "{notes:?}");
    source.options.text.lossy = true;
    let (documents, notes) = read_with(&source, 1).unwrap();
    assert_eq!(documents, ["one", "t\u{fffd}wo", "three"]);
    assert_eq!(notes, ["replaced 1 invalid sequence by U+FFFD"]);
    source.column = Some("turns".into());
    assert_eq!(read_with(&source, 1).unwrap().0, ["\u{fffd}", "b", "c"]);
}

fn expected_slice(texts: &[Option<String>], rows: std::ops::Range<usize>) -> Vec<String> {
    texts[rows].iter().flatten().cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn damaged_files_never_bring_the_program_down(
        name in prop::sample::select(vec!["brotli.parquet", "lz4.parquet", "large.parquet", "zstd.arrow", "saved.arrow", "packed.jsonl.gz"]),
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        let mut bytes = fs::read(fixtures().join(name)).unwrap();
        for (place, byte) in places {
            *place.get_mut(&mut bytes) = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), bytes).unwrap();
        // It may well be readable; all that matters is that there is a result.
        let _ = read(&folder.path().join(name), "train", "text");
    }
}
