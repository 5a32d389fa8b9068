#![no_main]
//! Input: a conversation, as a line of text or a line of JSON, in every form; and the same text as a chat template.

use libfuzzer_sys::fuzz_target;
use ngen3_data::chat::{ChatMapping, ChatParser, ChatTemplate, Conversation, Message};
use ngen3_model::ChatFormat;

fuzz_target!(|text: &str| {
    let columns = ["q=user".to_owned(), "a=assistant".to_owned()];
    let own = ChatParser::new(ChatMapping::new(&[], &columns).expect("known roles"), vec!["tools".into()]);
    let known = ChatParser::new(ChatMapping::default(), vec!["tools".into()]);
    let template = ChatTemplate::new(ChatTemplate::default_format("</s>")).expect("the default template");
    for parsed in [known.line(text), known.json_line(text), own.json_line(text)].into_iter().flatten() {
        if let Conversation::Turns { messages, context } = parsed.conversation {
            let _ = template.render_with(&messages, &context, true);
        }
    }
    let format = ChatFormat { template: text.into(), bos_token: Some("<s>".into()), eos_token: None };
    if let Ok(template) = ChatTemplate::new(format) {
        let messages = [Message::user("Hi"), Message::assistant("Hello\n")];
        let _ = (template.render(&messages, false), template.render(&messages, true), template.render(&[], true));
    }
});
