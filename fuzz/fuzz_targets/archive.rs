#![no_main]
//! Input: a tar or zip archive, plain or compressed; read as texts, as conversations and as a dataset.

use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use libfuzzer_sys::fuzz_target;
use ngen3_data::Tokenizer;
use ngen3_data::chat::{ChatEncoder, ChatInput, ChatReading, Chats};
use ngen3_fuzz::{Folder, read_dataset, read_text};

static ENCODER: LazyLock<ChatEncoder> =
    LazyLock::new(|| ChatEncoder::new(Tokenizer::gpt2(), None).expect("the default template"));

fuzz_target!(|bytes: &[u8]| {
    let path = Folder::shared().put("x", bytes);
    read_text(&path, None, Default::default(), false);
    let files = [path.clone()];
    let reading = ChatReading { answers: true, skip_bad: true, ..ChatReading::default() };
    let input = ChatInput::Files(&files, None);
    let _ = Chats::read("x", input, &ENCODER, &reading, &AtomicBool::new(false), &mut |_| ());
    read_dataset(&path.display().to_string(), &["text"]);
});
