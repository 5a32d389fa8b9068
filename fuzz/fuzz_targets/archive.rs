#![no_main]
//! Input: a tar or zip archive, plain or compressed.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use libfuzzer_sys::fuzz_target;
use ngen3_data::chat::{ChatInput, ChatReading, ChatSpec, build_chats};
use ngen3_fuzz::{Folder, read_dataset, read_text};

fuzz_target!(|bytes: &[u8]| {
    let folder = Folder::new();
    let path = folder.put("x", bytes);
    read_text(&folder, &path, None, Default::default());
    let files = [path.clone()];
    let input = ChatInput::Files(&files, None);
    let reading = ChatReading { answers: true, skip_bad: true, ..ChatReading::default() };
    let root: &Path = folder.path();
    let spec = ChatSpec { name: "x", input, tokenizer: None, template: None, reading, root };
    let _ = build_chats(&spec, &AtomicBool::new(false), &mut |_| ());
    read_dataset(&folder, &path.display().to_string(), &["text"]);
});
