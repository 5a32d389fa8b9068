#![no_main]
//! Input: a GGUF file, whose tensors, tokenizer and model are read, also with its weights as they are stored; the tokenizer
//! encodes and decodes text.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use ngen3_data::Tokenizer;
use ngen3_fuzz::Folder;
use ngen3_model::gguf::{Gguf, tokenizer};
use ngen3_model::{Checkpoint, ParamList, StoredWeight, TokenizerRef};

const TEXT: &str = "Hello, world!  It's 1,234\u{301} größer\r\n\n\t<|endoftext|> 你好 \u{1f469}\u{200d}\u{1f680}";

/// Folder of the file, which every run replaces.
static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);
/// Hashes of the tokenizers so far. Most changes to a file leave its tokenizer as it was; to encode with it again would tell
/// nothing and take most of the time.
static TOKENIZERS: LazyLock<(RandomState, Mutex<HashSet<u64>>)> = LazyLock::new(Default::default);

/// Returns true if this tokenizer has not been seen.
fn is_new(json: &str) -> bool {
    let (hasher, seen) = &*TOKENIZERS;
    seen.lock().expect("no panic while it is held").insert(hasher.hash_one(json))
}

/// Reads the model again with its quantized weights as they are stored, which stand for the same values.
fn stored(path: &Path, checkpoint: &Checkpoint) {
    let (again, stored) = Checkpoint::load_stored(path, &|_| true).expect("a model that loads");
    let list = ParamList::new(&checkpoint.config);
    assert_eq!(stored.len(), list.iter().count());
    assert!(again.params.iter().zip(&checkpoint.params).all(|(a, b)| a.to_bits() == b.to_bits()));
    for (param, weight) in list.iter().zip(stored) {
        let Some(StoredWeight { tensor_type, bytes }) = weight else { continue };
        let mut values = vec![0.0; param.len()];
        tensor_type.decode(&bytes, &mut values);
        let params = &checkpoint.params[param.range()];
        assert!(values.iter().zip(params).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", param.name());
    }
}

fuzz_target!(
    init: ngen3_fuzz::allow_panics_of_libraries(),
    |bytes: &[u8]| {
        let path = FOLDER.put("x.gguf", bytes);
        let Ok(mut file) = Gguf::open(&path) else { return };
        for tensor in file.tensors().to_vec() {
            // The file holds what it claims: two elements a byte at most.
            let Some(row_bytes) = tensor.row_bytes() else { continue };
            let mut values = vec![0.0; tensor.elements()];
            file.read_f32(&tensor.name, &mut values).expect("a checked tensor");
            let mut row = vec![0; row_bytes];
            file.read_rows(&tensor.name, 0..1, &mut row).expect("its first row");
        }
        let Ok(Some(found)) = tokenizer(&file) else { return };
        if let Ok(checkpoint) = Checkpoint::load(&path) {
            checkpoint.config.validate().expect("a checked shape");
            stored(&path, &checkpoint);
        }
        if let TokenizerRef::Json(text) = &found.tokenizer
            && is_new(text)
            && let Ok(tokenizer) = Tokenizer::from_json(text.as_bytes(), "x")
            && let Ok(ids) = tokenizer.encode(TEXT)
        {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            tokenizer.decode(&ids);
        }
    }
);
