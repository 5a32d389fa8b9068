#![no_main]
//! Input: a conversation, as a line of text or a line of JSON, in every form; and the same text as a chat template.

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ngen3_data::chat::{ChatMapping, ChatParser, ChatTemplate, Conversation, Message};
use ngen3_data::fuzz;
use ngen3_model::ChatFormat;

static KNOWN: LazyLock<ChatParser> =
    LazyLock::new(|| ChatParser::new(ChatMapping::default(), vec!["tools".into()]));
static OWN: LazyLock<ChatParser> = LazyLock::new(|| {
    let columns = ["q=user".to_owned(), "a=assistant".to_owned()];
    ChatParser::new(ChatMapping::new(&[], &columns).expect("known roles"), vec!["tools".into()])
});
static DEFAULT: LazyLock<ChatTemplate> =
    LazyLock::new(|| ChatTemplate::new(ChatTemplate::default_format("</s>")).expect("the default template"));

fuzz_target!(|text: &str| {
    for parsed in [KNOWN.line(text), KNOWN.json_line(text), OWN.json_line(text)].into_iter().flatten() {
        if let Conversation::Turns { messages, context } = parsed.conversation {
            let _ = DEFAULT.render_with(&messages, &context, true);
        }
    }
    // Every text is a template: one that has no tag would tell nothing.
    if !text.contains("{%") && !text.contains("{{") && !text.contains("{#") {
        return;
    }
    let format = ChatFormat { template: text.into(), bos_token: Some("<s>".into()), eos_token: None };
    if let Ok(template) = fuzz::template(format) {
        let messages = [Message::user("Hi"), Message::assistant("Hello\n")];
        let _ = (template.render(&messages, false), template.render(&messages, true), template.render(&[], true));
    }
});
