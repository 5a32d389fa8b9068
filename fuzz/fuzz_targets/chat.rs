#![no_main]
//! Input: a conversation, as a line of text, a line of JSON, or a table cell; and the same text as a chat template.

use libfuzzer_sys::fuzz_target;
use ngen3_data::chat::{ChatTemplate, Conversation, Message};
use ngen3_model::ChatFormat;

fuzz_target!(|text: &str| {
    let _ = [Conversation::from_line(text), Conversation::from_json_line(text), Conversation::from_cell(text)];
    let format = ChatFormat { template: text.into(), bos_token: Some("<s>".into()), eos_token: None };
    if let Ok(template) = ChatTemplate::new(format) {
        let messages = [Message::user("Hi"), Message::assistant("Hello\n")];
        let _ = (template.render(&messages, false), template.render(&messages, true), template.render(&[], true));
    }
});
