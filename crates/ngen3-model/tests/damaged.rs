//! Damaged and malicious files: each gives one clear error, never wrong numbers.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ngen3_model::{Checkpoint, CheckpointMeta, Config, ParamList, checkpoint};
use proptest::prelude::*;
use zip::write::SimpleFileOptions;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Returns the bytes of a small valid file and its content.
fn valid(ending: &'static str) -> &'static (Vec<u8>, Checkpoint) {
    static TORCH: LazyLock<(Vec<u8>, Checkpoint)> = LazyLock::new(|| make("pt"));
    static SAFETENSORS: LazyLock<(Vec<u8>, Checkpoint)> = LazyLock::new(|| make("safetensors"));
    if ending == "pt" { &TORCH } else { &SAFETENSORS }
}

fn make(ending: &str) -> (Vec<u8>, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a").with_extension(ending);
    let config = Config::new(1, 1, 2, 4, 5);
    let checkpoint = Checkpoint { params: ParamList::new(&config).init(7), config, meta: CheckpointMeta::default() };
    checkpoint::save(&path, &checkpoint.config, &checkpoint.params, &checkpoint.meta).unwrap();
    (fs::read(&path).unwrap(), checkpoint)
}

/// Loads a file with these bytes. The error must start with the file's name, which is cut off.
fn load(bytes: &[u8]) -> Result<Checkpoint, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    Checkpoint::load(file.path()).map_err(|error| {
        let (error, name) = (error.to_string(), file.path().display());
        let reason = error.strip_prefix(&format!("{name}: "));
        reason.unwrap_or_else(|| panic!("{error} does not name {name}")).to_string()
    })
}

/// Returns a valid `.pt` with its entries changed by `edit` and correct checksums; `None` leaves an entry out.
fn edited(edit: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Vec<u8> {
    let (bytes, _) = valid("pt");
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if let Some(bytes) = edit(name.strip_prefix("archive/").unwrap(), bytes) {
            out.start_file(name, SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored))
                .unwrap();
            out.write_all(&bytes).unwrap();
        }
    }
    out.finish().unwrap().into_inner()
}

fn with_pickle(edit: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    edited(|name, bytes| Some(if name == "data.pkl" { edit(bytes) } else { bytes }))
}

/// Returns a valid `.pt` with the first `from` in its pickle replaced by `to`.
fn replaced(from: &[u8], to: &[u8]) -> Vec<u8> {
    with_pickle(|pickle| {
        let at = pickle.windows(from.len()).position(|window| window == from).expect("the pickle has it");
        [&pickle[..at], to, &pickle[at + from.len()..]].concat()
    })
}

/// Returns a `.safetensors` file of this header and `data` bytes of zeros.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[track_caller]
fn assert_refused(bytes: &[u8], reason: &str) {
    let error = load(bytes).unwrap_err();
    assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    assert!(!error.contains('\n'), "{error:?} has more than one line");
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    assert_refused(b"", "empty file");
    assert_refused(b"hello, world", "not a checkpoint");
    assert_refused(b"PK", "damaged or truncated zip file");
    assert_refused(b"PK\x03\x04 and then nothing of the kind", "damaged or truncated zip file");
    assert_refused(&fs::read(fixture("legacy.pt")).unwrap(), "from before version 1.6");
    let folder = tempfile::tempdir().unwrap();
    let error = Checkpoint::load(folder.path()).unwrap_err().to_string();
    let reason = "not a Hugging Face model: no config.json in the folder";
    assert_eq!(error, format!("{}: {reason}", folder.path().display()));
    let missing = folder.path().join("7M_model.pt");
    let error = Checkpoint::load(&missing).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: No such file", missing.display())), "{error}");
}

#[test]
fn a_pickle_that_calls_a_function_is_refused_and_nothing_is_called() {
    let error = Checkpoint::load(&fixture("hostile.pt")).unwrap_err().to_string();
    assert!(error.contains("unsupported pickle global \"posix.system\""), "{error}");
    assert!(!Path::new("pwned").exists());
    let call = b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch pwned\x85R.";
    assert_refused(&with_pickle(|_| call.to_vec()), "unsupported pickle global \"os.system\"");
    assert!(!Path::new("pwned").exists());
}

#[test]
fn opcodes_that_no_checkpoint_needs_are_refused() {
    // NEWOBJ, STACK_GLOBAL, INST, OBJ, EXT1, REDUCE of a string, BUILD of a tuple.
    for (pickle, reason) in [
        (&b"\x80\x02))\x81."[..], "unsupported pickle opcode 0x81"),
        (b"\x80\x02X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "unsupported pickle opcode 0x93"),
        (b"\x80\x02(ios\nsystem\n.", "unsupported pickle opcode 0x69"),
        (b"\x80\x02(o.", "unsupported pickle opcode 0x6f"),
        (b"\x80\x02\x82\x01.", "unsupported pickle opcode 0x82"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "call of a value that is not a function"),
        (b"\x80\x02))b.", "the state of a value that is not a dictionary"),
        (b"\x80\x06).", "protocol 6: expected 2 to 5"),
        (b"\x80\x02", "the pickle ends early"),
        (b"\x80\x02.", "the pickle's stack is empty"),
        (b"\x80\x02h\x05.", "memo 5 is undefined"),
        (b"\x80\x02).", "not a dictionary"),
        (b"\x80\x02}.", "no model entry"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "the pickle ends early"),
    ] {
        assert_refused(&with_pickle(|_| pickle.to_vec()), reason);
    }
}

#[test]
fn shapes_that_no_model_has_are_refused() {
    let key = |name: &str| [b"X", &(name.len() as u32).to_le_bytes()[..], name.as_bytes()].concat();
    let set = |name: &str, old: u8, new: &[u8]| {
        replaced(&[&key(name), &[b'K', old][..]].concat(), &[&key(name), new].concat())
    };
    assert_refused(&set("n_layer", 1, b"K\x00"), "n_layer is 0");
    assert_refused(&set("n_layer", 1, b"K\x02"), "missing tensor transformer.h.1.ln_1.weight");
    assert_refused(&set("n_layer", 1, b"J\x00\x00\xf0\x00"), "17 tensors: too few for 15728640 layers");
    assert_refused(&set("n_layer", 1, b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x10"), "n_layer is 1152921504606846976");
    assert_refused(&set("n_layer", 1, b"K\x01K\x00\x86"), "expected a size for n_layer, got [1,0]");
    assert_refused(&set("n_layer", 1, b"J\xff\xff\xff\xff"), "expected a size for n_layer, got -1");
    assert_refused(&set("n_head", 1, b"K\x03"), "n_embd 2 is not a multiple of n_head 3");
    let other = set("vocab_size", 5, b"K\x06");
    assert_refused(&other, "tensor transformer.wte.weight: expected shape [6, 2], got [5, 2]");
    let biases = replaced(&[&key("bias")[..], b"\x88"].concat(), &[&key("bias")[..], b"\x89"].concat());
    assert_refused(&biases, "unexpected tensor transformer.h.0.attn.c_attn.bias: bias is false in model_args");
    assert_refused(&replaced(&key("model_args"), &key("model_orgs")), "missing entry model_args");
    assert_refused(
        &replaced(&key("activation"), &[&key("activation")[..], b"K\x01X\x01\x00\x00\x00a"].concat()),
        "activation",
    );
}

#[test]
fn tensors_that_do_not_fit_their_storage_are_refused() {
    // wte, [5, 2], is described by ("storage", FloatStorage, "0", "cpu", 10), offset 0, shape (5, 2), strides (2, 1).
    let wte = |numel: &[u8], offset: &[u8]| replaced(b"cpuK\x0atQK\x00", &[b"cpu", numel, b"tQ", offset].concat());
    assert_refused(&wte(b"K\x0b", b"K\x00"), "storage 0: expected 44 bytes, got 40");
    assert_refused(
        &wte(b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x10", b"K\x00"),
        "storage 0: expected 4611686018427387904 bytes, got 40",
    );
    assert_refused(&wte(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"K\x00"), "claims 9223372036854775807 elements");
    assert_refused(&wte(b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"K\x00"), "storage 0 claims");
    assert_refused(&wte(b"K\x0a", b"K\x01"), "at element 1 exceeds storage 0 of 10 elements");
    let far = b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00";
    assert_refused(&wte(b"K\x0a", far), "exceeds storage 0 of 10 elements");
    assert_refused(&replaced(b"(K\x05K\x02t", b"(K\x01K\x02t"), "expected shape [5, 2], got [1, 2]");
    // Strides of 0 make one row look like five.
    assert_refused(&replaced(b"(K\x02K\x01t\x89", b"(K\x00K\x01t\x89"), "transformer.wte.weight is not contiguous");

    let short = edited(|name, bytes| Some(if name == "data/3" { bytes[..4].to_vec() } else { bytes }));
    assert_refused(&short, "storage 3: expected 8 bytes, got 4");
    assert_refused(&edited(|name, bytes| (name != "data/3").then_some(bytes)), "cannot read data/3");
    assert_refused(
        &edited(|name, bytes| (name != "data.pkl").then_some(bytes)),
        "expected one data.pkl in the zip file, got 0",
    );
    let big = edited(|name, bytes| Some(if name == "byteorder" { b"big".to_vec() } else { bytes }));
    assert_refused(&big, "unsupported byteorder \"big\"");
}

#[test]
fn tensors_of_other_models_are_refused_by_name() {
    for (name, reason) in [
        ("untied.pt", "lm_head.weight differs from transformer.wte.weight"),
        ("transposed.pt", "tensor transformer.h.0.attn.c_attn.weight is not contiguous"),
        ("double.pt", "expected float32, float16 or bfloat16, got float64"),
        ("shape.pt", "tensor transformer.h.0.attn.c_attn.weight: expected shape [36, 12], got [12, 36]"),
        ("stranger.pt", "unexpected tensor transformer.h.0.attn.q_norm.weight: not part of a gpt2 model of this shape"),
        ("compressed.pt", "compress"),
    ] {
        assert_refused(&fs::read(fixture(name)).unwrap(), reason);
    }
}

#[test]
fn what_an_error_quotes_is_one_short_line() {
    let name = "\u{1b}[2J\n".repeat(1000);
    let from = b"X\x0e\x00\x00\x00lm_head.weight";
    let error =
        load(&replaced(from, &[b"X", &(name.len() as u32).to_le_bytes()[..], name.as_bytes()].concat())).unwrap_err();
    assert!(error.len() < 1000 && !error.contains(char::is_control), "{error:?}");
}

/// Few bytes that need much memory: values that share parts, deep nesting, a value inside itself.
#[test]
fn a_pickle_cannot_grow() {
    let config = |value: &[u8]| {
        let from = b"X\x06\x00\x00\x00config}";
        replaced(from, &[&from[..from.len() - 1], value, b"X\x04\x00\x00\x00more}"].concat())
    };
    let mut doubling = b"](X\x08\x00\x00\x00laughterq\x00".to_vec();
    for level in 1..40 {
        doubling.extend([b'h', level - 1, b'h', level - 1, 0x86, b'q', level]);
    }
    doubling.push(b'e');
    assert_refused(&config(&doubling), "the pickle expands to too many values");
    assert_refused(
        &config(&[&b"]".repeat(1 << 20)[..], &b"a".repeat((1 << 20) - 1)].concat()),
        "nests values too deeply",
    );
    assert_refused(&config(b"]q\x00h\x00a"), "nests values too deeply");
    let wide = [b"(", &b"K\x01".repeat(1000)[..], b"t"].concat();
    assert_refused(&replaced(b"(K\x05K\x02t", &wide), "a tuple of at most 16 values");
}

#[test]
fn safetensors_headers_that_lie_are_refused() {
    let (bytes, _) = valid("safetensors");
    let claim = |size: u64| [&size.to_le_bytes(), &bytes[8..]].concat();
    assert_refused(&claim(1 << 60), "the header claims 1152921504606846976 bytes, but the file has");
    assert_refused(&claim(bytes.len() as u64), "the header claims");
    assert_refused(&claim(20), "not a safetensors header");
    assert_refused(&bytes[..bytes.len() - 1], "damaged or truncated");
    assert_refused(&[&bytes[..], b"more"].concat(), "damaged or truncated");
    assert_refused(&safetensors("{}", 0), "no model shape in its metadata");
    let tensor = |shape: &str, offsets: &str| {
        safetensors(&format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#), 8)
    };
    for (shape, offsets) in [
        ("[3]", "[0,8]"),
        ("[2]", "[4,12]"),
        ("[4294967296,4294967296]", "[0,8]"),
        ("[18446744073709551615]", "[0,8]"),
        ("[2]", "[8,0]"),
        ("[-2]", "[0,8]"),
    ] {
        assert_refused(&tensor(shape, offsets), "not a safetensors header");
    }

    let text = String::from_utf8_lossy(bytes);
    let header = &text[8..text.find("}}   ").map_or_else(|| text.rfind("}}").unwrap() + 2, |at| at + 2)];
    let data = 4 * ParamList::new(&Config::new(1, 1, 2, 4, 5)).total();
    assert!(load(&safetensors(header, data)).is_ok(), "the header alone is valid");
    let integers = header.replacen("\"F32\"", "\"I32\"", 1);
    assert_refused(
        &safetensors(&integers, data),
        "tensor transformer.wte.weight: expected float32, float16 or bfloat16",
    );
    let renamed = header.replacen("transformer.wpe.weight", "transformer.wpe.heavy", 1);
    assert_refused(&safetensors(&renamed, data), "missing tensor transformer.wpe.weight");
    let no_json = header.replacen("{\\\"n_layer", "[\\\"n_layer", 1);
    assert_refused(&safetensors(&no_json, data), "metadata entry model_args");
}

proptest! {
    #[test]
    fn a_file_cut_short_is_refused(cut in any::<prop::sample::Index>(), torch: bool) {
        let (bytes, _) = valid(if torch { "pt" } else { "safetensors" });
        prop_assert!(load(&bytes[..cut.index(bytes.len())]).is_err());
    }

    /// Some bytes of a zip file are never read; checksums cover all others.
    #[test]
    fn flipped_bits_are_refused_or_change_nothing(flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8), 1..4)) {
        let (mut bytes, expected) = valid("pt").clone();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
        }
        if let Ok(found) = load(&bytes) {
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn any_pickle_gives_an_error_or_a_checkpoint(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let bytes = with_pickle(|mut pickle| {
            for (at, byte) in &edits {
                let at = at.index(pickle.len());
                pickle[at] = *byte;
            }
            pickle
        });
        if let Ok(found) = load(&bytes) {
            prop_assert_eq!(found.params.len(), ParamList::new(&found.config).total());
        }
    }

    #[test]
    fn any_safetensors_header_gives_an_error_or_a_checkpoint(edits in prop::collection::vec((0usize..4000, any::<u8>()), 1..8)) {
        let (mut bytes, _) = valid("safetensors").clone();
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(found) = load(&bytes) {
            prop_assert_eq!(found.params.len(), ParamList::new(&found.config).total());
        }
    }
}
