#![no_main]
//! Input: a GGUF file, whose tensors, tokenizer and model are read; the tokenizer encodes and decodes text.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use ngen3_data::Tokenizer;
use ngen3_fuzz::Folder;
use ngen3_model::gguf::{Gguf, tokenizer};
use ngen3_model::{Checkpoint, TokenizerRef};

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
