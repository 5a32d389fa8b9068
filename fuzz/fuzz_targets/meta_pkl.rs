#![no_main]
//! Input: nanoGPT's `meta.pkl`, beside a token file.

use libfuzzer_sys::fuzz_target;
use ngen3_data::TokenFile;
use ngen3_fuzz::Folder;
use ngen3_model::nanogpt::CharVocab;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(vocabulary) = CharVocab::parse(bytes) {
        assert!(vocabulary.chars.is_sorted_by(|a, b| a.1 < b.1));
        assert!(vocabulary.chars.iter().all(|&(_, id)| (id as usize) < vocabulary.vocab_size));
    }
    let folder = Folder::shared();
    folder.put("meta.pkl", bytes);
    folder.put("train.bin", [1, 0, 0, 0, 2, 0]);
    if let Ok(file) = TokenFile::open(folder.path()) {
        let tokenizer = file.tokenizer().expect("characters or GPT-2's");
        assert!(file.vocab_size().expect("known") >= tokenizer.vocab_size());
        let text: String = (0..8).map(|id| tokenizer.decode(&[id])).collect();
        assert_eq!(tokenizer.encode(&text).map(|ids| tokenizer.decode(&ids)).ok(), Some(text));
        if !file.is_assumed() {
            // Its own file says the same.
            let again = ngen3_data::Tokenizer::from_json(tokenizer.to_json().as_bytes(), "x").expect("its own file");
            assert_eq!(again.vocab_size(), tokenizer.vocab_size());
        }
        file.doubt();
    }
});
