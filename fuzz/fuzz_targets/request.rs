#![no_main]
//! Input: the body of a request to the server, changed value by value, as one for completions and as one for a chat, whose
//! conversation is rendered.

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ngen3_data::chat::{ChatTemplate, Conversation};

static TEMPLATE: LazyLock<ChatTemplate> =
    LazyLock::new(|| ChatTemplate::new(ChatTemplate::default_format("</s>")).expect("the default template"));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ngen3_fuzz::json::mutate(data, size, max_size, seed)
});

fuzz_target!(|body: &[u8]| {
    for is_chat in [false, true] {
        match ngen3_serve::fuzz::request(body, is_chat) {
            Ok(conversations) => {
                for conversation in conversations {
                    if let Conversation::Turns { messages, context } = conversation {
                        let _ = TEMPLATE.render_with(&messages, &context, true);
                    }
                }
            }
            Err(message) => assert!(!message.is_empty() && message.len() < 2_000, "{message}"),
        }
    }
});
