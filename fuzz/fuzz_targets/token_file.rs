#![no_main]
//! Input: `meta.json`, a zero byte, `data.bin`.

use libfuzzer_sys::fuzz_target;
use ngen3_data::TokenFile;
use ngen3_data::chat::Chats;
use ngen3_fuzz::Folder;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (meta, data) = (&bytes[..at], bytes.get(at + 1..).unwrap_or_default());
    let folder = Folder::shared();
    folder.put("meta.json", meta);
    folder.put("mask.bin", data);
    let path = folder.put("data.bin", data);
    if let Ok(file) = TokenFile::open(&path) {
        let mut tokens = Vec::new();
        file.copy(0..file.len(), &mut tokens);
        assert_eq!(tokens.len(), file.len());
        let _ = (file.verify(), file.vocab_size().and_then(|size| file.check_vocab(size)), file.tokenizer());
    }
    let _ = Chats::open(&path);
});
