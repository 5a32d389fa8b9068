#![no_main]
//! Input: a GGUF file, whose tensors and tokenizer are read; the tokenizer encodes and decodes text.

use libfuzzer_sys::fuzz_target;
use ngen3_data::Tokenizer;
use ngen3_fuzz::Folder;
use ngen3_model::TokenizerRef;
use ngen3_model::gguf::{Gguf, tokenizer};

const TEXT: &str = "Hello, world!  It's 1,234\u{301} größer\r\n\n\t<|endoftext|> 你好 \u{1f469}\u{200d}\u{1f680}";

fuzz_target!(
    init: ngen3_fuzz::allow_panics_of_libraries(),
    |bytes: &[u8]| {
        let folder = Folder::new();
        let Ok(mut file) = Gguf::open(&folder.put("x.gguf", bytes)) else { return };
        for tensor in file.tensors().to_vec() {
            // The file holds what it claims: two elements a byte at most.
            let Some(row_bytes) = tensor.row_bytes() else { continue };
            let mut values = vec![0.0; tensor.elements()];
            file.read_f32(&tensor.name, &mut values).expect("a checked tensor");
            let mut row = vec![0; row_bytes];
            file.read_rows(&tensor.name, 0..1, &mut row).expect("its first row");
        }
        let Ok(Some(found)) = tokenizer(&file) else { return };
        for id in [found.bos, found.eos, found.eot, found.padding].into_iter().flatten() {
            assert!((id as usize) < found.vocab_size);
        }
        if let TokenizerRef::Json(text) = &found.tokenizer
            && let Ok(tokenizer) = Tokenizer::from_json(text.as_bytes(), "x")
            && let Ok(ids) = tokenizer.encode(TEXT)
        {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            tokenizer.decode(&ids);
        }
    }
);
