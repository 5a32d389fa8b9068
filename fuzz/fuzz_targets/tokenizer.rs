#![no_main]
//! Input: a tokenizer.json, which then encodes and decodes text.

use libfuzzer_sys::fuzz_target;
use ngen3_data::Tokenizer;

const TEXT: &str = "Hello, world!  It's 1,234\u{301} größer\r\n\n\t<|endoftext|> 你好 \u{1f469}\u{200d}\u{1f680}";

fuzz_target!(
    init: ngen3_fuzz::allow_panics_of_libraries(),
    |bytes: &[u8]| {
        let Ok(tokenizer) = Tokenizer::from_json(bytes, "x") else { return };
        if let Ok(ids) = tokenizer.encode(TEXT) {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            tokenizer.decode(&ids);
        }
        tokenizer.decode(&[0, 1, 2, u32::MAX]);
        tokenizer.safe_split(TEXT);
        tokenizer.special_tokens();
        // Its own JSON loads again.
        Tokenizer::from_json(tokenizer.to_json().as_bytes(), "y").expect("its own file");
    }
);
