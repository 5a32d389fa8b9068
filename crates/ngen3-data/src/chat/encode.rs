//! Encodes a conversation as token ids, each with its [`marks`].
//!
//! The ids are those of the rendered text. Special tokens written by the template become single tokens; the text of a turn stays
//! text, even if it spells a special token. The assistant's part is marked by the template if it has `{% generation %}`;
//! otherwise it is found by rendering the conversation up to each assistant turn, once with the generation prompt and once with
//! the answer: the difference is the answer. A token that is partly the assistant's counts as the assistant's.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use ngen3_model::ChatFormat;
use serde_json::{Map, Value as Json};

use super::conversation::{Conversation, Message, Role};
use super::marks;
use super::render::{ChatTemplate, GUARD, Locator, Rendered, SpecialTokens};
use crate::tokenizer::MissingChars;
use crate::{Error, Tokenizer};

/// Maximum number of turns of a conversation. The template renders the beginning up to each turn again to find where the turn
/// starts, so the time grows with the square of this number.
const MAX_TURNS: usize = 2_048;

/// Encodes conversations as token ids.
#[derive(Debug)]
pub struct ChatEncoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    special: SpecialTokens,
    /// Token that ends a text.
    eot: u32,
    /// Token that ends an assistant turn.
    end: u32,
    /// Characters of the conversations that the vocabulary lacks.
    missing: Mutex<MissingChars>,
}

/// A conversation as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EncodedChat {
    pub ids: Vec<u32>,
    /// Sum of the [`marks`] of each id.
    pub marks: Vec<u8>,
    pub answers: AnswerCounts,
    /// Roles of the turns whose text the template leaves out.
    pub left_out: Vec<Role>,
}

/// Answers that are learned, and how they end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AnswerCounts {
    pub all: u64,
    /// Those after which a special token comes that is not learned.
    pub end_not_learned: u64,
    /// Those that no special token ends.
    pub without_end: u64,
    /// Prompts whose last tokens change when the completion follows.
    pub merged: u64,
}

impl std::ops::AddAssign for AnswerCounts {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.end_not_learned += other.end_not_learned;
        self.without_end += other.without_end;
        self.merged += other.merged;
    }
}

impl ChatEncoder {
    /// Makes an encoder with the model's chat format, or with the default one.
    ///
    /// # Errors
    /// [`Error::Data`] if the tokenizer has no end-of-text token, or the template is invalid.
    pub fn new(tokenizer: Tokenizer, format: Option<ChatFormat>) -> Result<Self, Error> {
        let Some(eot) = tokenizer.eot() else {
            return Err(Error::Data(format!(
                "tokenizer {}: no token that ends a document, which conversations need; name one with --eos_token (tokenize, \
                 hf_tokenize)",
                tokenizer.name()
            )));
        };
        let format = format.unwrap_or_else(|| ChatTemplate::default_format(&tokenizer.decode(&[eot])));
        let special = SpecialTokens::new(tokenizer.special_tokens())?;
        let end = format.eos_token.as_ref().and_then(|token| tokenizer.id_of(token)).unwrap_or(eot);
        Ok(Self { tokenizer, template: ChatTemplate::new(format)?, special, eot, end, missing: Mutex::default() })
    }

    /// Makes an encoder with a custom template, or with the default one.
    ///
    /// # Errors
    /// As [`ChatEncoder::new`].
    pub fn with_template(tokenizer: Tokenizer, template: Option<&str>) -> Result<Self, Error> {
        let end = tokenizer.eot().map(|eot| tokenizer.decode(&[eot])).unwrap_or_default();
        let token = |id: Option<u32>| id.map_or_else(|| end.clone(), |id| tokenizer.decode(&[id]));
        let own = |template: &str| ChatFormat {
            template: template.into(),
            bos_token: Some(token(tokenizer.bos())),
            eos_token: Some(token(tokenizer.turn_end())),
        };
        let format = template.map(own);
        Self::new(tokenizer, format)
    }

    /// Chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Token that ends an assistant turn.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Characters of the conversations encoded so far that the vocabulary lacks.
    pub(super) fn missing(&self) -> MissingChars {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts the characters of a text that the vocabulary lacks.
    fn count_missing(&self, text: &str) -> Result<(), String> {
        if self.tokenizer.can_miss() {
            let mut missing = MissingChars::default();
            let counted = self.tokenizer.encode_counting(text, &mut Vec::new(), &mut missing);
            counted.map_err(|error| error.to_string())?;
            self.missing.lock().unwrap_or_else(PoisonError::into_inner).add(&missing);
        }
        Ok(())
    }

    /// Encodes a conversation up to where the assistant's answer begins.
    ///
    /// # Errors
    /// [`Error::Data`] with the template's error.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        self.prompt_with(messages, &Map::new())
    }

    /// As [`ChatEncoder::prompt`], with other values that the template reads: see [`ChatTemplate::context_names`].
    ///
    /// # Errors
    /// As [`ChatEncoder::prompt`].
    pub fn prompt_with(&self, messages: &[Message], context: &Map<String, Json>) -> Result<Vec<u32>, Error> {
        let (messages, context) = self.special.guarded(messages, context).map_err(Error::Data)?;
        let text = self.template.render_with(&messages, &context, true)?;
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        self.tokens(&text, &mut ids, &mut starts).map_err(Error::Data)?;
        Ok(ids)
    }

    /// Encodes a conversation with its marks. With `answers`, the assistant's tokens must be identifiable.
    pub(super) fn encode(&self, conversation: &Conversation, answers: bool) -> Result<EncodedChat, String> {
        let mut encoded = match conversation {
            Conversation::Text { prompt, text } => self.encode_text(prompt, text)?,
            Conversation::Turns { messages, .. } if messages.len() > MAX_TURNS => {
                let turns = messages.len();
                return Err(format!("expected at most {MAX_TURNS} turns, got {turns}; split the conversation"));
            }
            Conversation::Turns { messages, context } => self.encode_turns(messages, context, answers)?,
        };
        match encoded.marks.first_mut() {
            Some(first) => *first |= marks::CONVERSATION_START,
            None => return Err("the chat template renders no text".into()),
        }
        Ok(encoded)
    }

    /// Encodes a text, of which the part after `prompt` and the token that ends it are learned.
    fn encode_text(&self, prompt: &str, text: &str) -> Result<EncodedChat, String> {
        let whole = [prompt, text].concat();
        let mut ids = self.tokenizer.encode(&whole).map_err(|error| error.to_string())?;
        self.count_missing(&whole)?;
        ids.push(self.eot);
        // What is learned begins where the tokens of the prompt alone and of the whole diverge, as in TRL.
        let alone = self.tokenizer.encode(prompt).map_err(|error| error.to_string())?;
        let context = alone.iter().zip(&ids).take_while(|(alone, id)| alone == id).count();
        let mut marks = vec![marks::TARGET; ids.len()];
        marks[..context].fill(marks::NEVER);
        let merged = u64::from(context < alone.len());
        let answers = AnswerCounts { merged, ..AnswerCounts::default() };
        Ok(EncodedChat { ids, marks, answers, left_out: Vec::new() })
    }

    fn encode_turns(
        &self,
        messages: &[Message],
        context: &Map<String, Json>,
        answers: bool,
    ) -> Result<EncodedChat, String> {
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        let (messages, context) = self.special.guarded(messages, context)?;
        let end = self.tokenizer.decode(&[self.end]);
        let locator = Locator { template: &self.template, special: &self.special, end: &end };
        let Rendered { text, answers, never, turns, left_out } = locator.render(&messages, &context, answers)?;
        self.tokens(&text, &mut ids, &mut starts)?;
        let guards: Vec<usize> = text.match_indices(GUARD).map(|(at, _)| at).collect();
        // Converts an offset in the text to one without guards, as `starts` are.
        let plain = |at: usize| at - GUARD.len_utf8() * guards.partition_point(|&guard| guard < at);
        let mut found = vec![0; ids.len()];
        // Number of tokens that start before an offset, and the index of the token that contains it.
        let before = |at: usize| starts.partition_point(|&start| start < at);
        let at_or_in = |at: usize| match before(at) {
            token if starts.get(token) == Some(&at) => token,
            token => token.saturating_sub(1),
        };
        let is_special = |token: usize| ids.get(token).is_some_and(|&id| self.special.has(id));
        let mut counts = AnswerCounts::default();
        for answer in answers.into_iter().filter(|answer| !answer.is_empty()) {
            let tokens = at_or_in(plain(answer.start))..before(plain(answer.end));
            counts.all += 1;
            // White space may follow the token that ends the turn, as in the templates of TRL.
            let shown = before(plain(answer.start + text[answer].trim_end().len()));
            if shown <= tokens.start || !is_special(shown - 1) {
                match is_special(tokens.end) {
                    true => counts.end_not_learned += 1,
                    false => counts.without_end += 1,
                }
            }
            found[tokens].fill(marks::TARGET);
        }
        for turn in never {
            found[at_or_in(plain(turn.start))..before(plain(turn.end))].fill(marks::NEVER);
        }
        let all_told = turns.len() == messages.len();
        for turn in turns {
            found.get_mut(at_or_in(plain(turn))).into_iter().for_each(|mark| *mark |= marks::TURN_START);
        }
        if let Some(first) = found.first_mut().filter(|_| !all_told) {
            *first &= !marks::TURN_START;
        }
        Ok(EncodedChat { ids, marks: found, answers: counts, left_out })
    }

    /// Appends the ids of a rendered text, including special tokens, and the offset of each, not counting guards.
    fn tokens(&self, text: &str, ids: &mut Vec<u32>, starts: &mut Vec<usize>) -> Result<(), String> {
        // Bytes that are done, with and without guards.
        let (mut done, mut at) = (0, 0);
        let special = self.special.find(text).map(|(place, id)| (place, Some(id)));
        for (place, id) in special.chain([(text.len()..text.len(), None)]) {
            let plain = &text[done..place.start];
            let plain = if plain.contains(GUARD) { Cow::Owned(plain.replace(GUARD, "")) } else { Cow::Borrowed(plain) };
            let first = starts.len();
            let encode = if at == 0 { Tokenizer::encode_places } else { Tokenizer::encode_places_within };
            encode(&self.tokenizer, &plain, ids, starts).map_err(|error| error.to_string())?;
            self.count_missing(&plain)?;
            starts[first..].iter_mut().for_each(|start| *start += at);
            at += plain.len();
            if let Some(id) = id {
                ids.push(id);
                starts.push(at);
            }
            at += place.len();
            done = place.end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::chat::fixtures::{self, Case};
    use crate::chat::{ChatMapping, ChatParser};

    fn encoder(template: Option<&str>) -> ChatEncoder {
        let eot = Some("<|endoftext|>".to_owned());
        let format =
            template.map(|template| ChatFormat { template: template.into(), bos_token: eot.clone(), eos_token: eot });
        ChatEncoder::new(Tokenizer::gpt2(), format).unwrap()
    }

    /// Returns the text of the tokens that have a mark, each stretch in brackets.
    fn marked(encoder: &ChatEncoder, encoded: &EncodedChat, mark: u8) -> String {
        let mut stretches = vec![Vec::new()];
        let mut inside = false;
        for (id, marks) in encoded.ids.iter().zip(&encoded.marks) {
            let has = marks & mark != 0;
            if has != inside || mark == marks::TURN_START && has {
                stretches.push(Vec::new());
            }
            inside = has;
            stretches.last_mut().unwrap().extend(has.then_some(*id));
        }
        stretches
            .iter()
            .filter(|ids| !ids.is_empty())
            .map(|ids| format!("[{}]", encoder.tokenizer.decode(ids)))
            .collect()
    }

    #[test]
    fn ids_and_the_assistants_tokens_are_those_of_transformers() {
        let templates = fixtures::templates();
        let (mut cases, mut with_masks) = (0, 0);
        for Case { name, messages, context, asking, ids, assistant, text } in fixtures::cases() {
            let encoder = encoder(Some(&templates[&name]));
            // The others print turns in another way, or end them with a token that GPT-2's vocabulary lacks.
            let answers = !["namespace", "everything", "qwen3"].contains(&name.as_str());
            let conversation = Conversation::Turns { messages: messages.clone(), context: context.clone() };
            let encoded = encoder.encode(&conversation, answers);
            let encoded = encoded.unwrap_or_else(|reason| panic!("{name}: {reason}: {text}"));
            assert_eq!(encoded.ids, ids, "{name}: {text}");
            if context.is_empty() {
                assert_eq!(encoder.tokenizer.decode(&encoder.prompt(&messages).unwrap()), asking);
            }
            if let Some(assistant) = assistant {
                let learned: Vec<u8> = encoded.marks.iter().map(|mark| mark & marks::TARGET).collect();
                assert_eq!(learned, assistant, "{name}: {text}");
                with_masks += 1;
            }
            cases += 1;
        }
        assert_eq!((cases, with_masks), (49, 6));
    }

    #[test]
    fn what_the_assistant_says_is_told_with_the_token_that_ends_it() {
        let said = ["Hi", "Hello!\nYou?", "Fine.", "Good"];
        let messages: Vec<_> = said
            .iter()
            .zip([Role::User, Role::Assistant].into_iter().cycle())
            .map(|(said, role)| Message::new(role, *said))
            .collect();
        let conversation = Conversation::turns(messages);
        let templates = fixtures::templates();
        for (name, learned, turns) in [
            ("default", "[Hello!\nYou?<|endoftext|>][Good<|endoftext|>]", "[user][ass][user][ass]"),
            ("chatml", "[Hello!\nYou?<|im_end|>\n][Good<|im_end|>\n]", "[<][<][<][<]"),
            ("marked", "[ Hello!\nYou?<|endoftext|>][ Good<|endoftext|>]", "[USER][ass][USER][ass]"),
            ("alternating", "[ Hello!\nYou? <|endoftext|>][ Good <|endoftext|>]", "[<|endoftext|>][ Hello][[][ Good]"),
        ] {
            let encoder = encoder(Some(&templates[name]));
            let encoded = encoder.encode(&conversation, true).unwrap();
            assert_eq!(marked(&encoder, &encoded, marks::TARGET), learned, "{name}");
            assert_eq!(encoded.marks[0] & marks::CONVERSATION_START, marks::CONVERSATION_START);
            let begins = encoded.marks.iter().filter(|&&mark| mark & marks::CONVERSATION_START != 0).count();
            assert_eq!(begins, 1);
            assert_eq!(marked(&encoder, &encoded, marks::TURN_START), turns, "{name}");
        }
    }

    fn parse(record: serde_json::Value) -> Conversation {
        ChatParser::new(ChatMapping::default(), Vec::new()).json(&record).unwrap().conversation
    }

    #[test]
    fn marks_in_the_data_say_what_is_learned_of_any_role() {
        let turn = |role: &str, text: &str, more: serde_json::Value| {
            let mut turn = json!({"role": role, "content": text});
            turn.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            turn
        };
        let conversation = parse(json!([
            turn("system", "S", json!({"train": true})),
            turn("user", "a", json!({"weight": 1})),
            turn("assistant", "b", json!({"weight": 0})),
            turn("user", "c", json!({"loss": false})),
            turn("assistant", "d", json!({})),
        ]));
        let templates = fixtures::templates();
        for (name, learned, never) in [
            (
                "default",
                "[system\nS<|endoftext|>user\na<|endoftext|>][d<|endoftext|>]",
                "[assistant\nb<|endoftext|>user\nc<|endoftext|>]",
            ),
            ("marked", "[SYSTEM: S\nUSER: a\n][ d<|endoftext|>]", "[assistant: b<|endoftext|>USER: c\n]"),
        ] {
            let encoder = encoder(Some(&templates[name]));
            let encoded = encoder.encode(&conversation, true).unwrap();
            assert_eq!(marked(&encoder, &encoded, marks::TARGET), learned, "{name}");
            assert_eq!(marked(&encoder, &encoded, marks::NEVER), never, "{name}");
        }
    }

    #[test]
    fn answers_are_found_in_templates_that_change_earlier_text() {
        let templates = fixtures::templates();
        let call = json!([{"id": "123456789", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        let conversation = parse(json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nb"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": null, "tool_calls": call},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": " d "},
        ]));
        let encoder = encoder(Some(&templates["qwen3"]).map(|template| template.as_str()));
        // GPT-2's tokenizer lacks the token; the text is the same.
        let ending = ChatEncoder { end: encoder.end, ..encoder };
        let error = ending.encode(&conversation, true).unwrap_err();
        assert!(error.contains("mark it with {% generation %}"), "no token of the vocabulary ends a turn: {error}");
        let own = templates["qwen3"].replace("<|im_end|>", "<|endoftext|>");
        let encoder = self::encoder(Some(&own));
        let encoded = encoder.encode(&conversation, true).unwrap();
        assert_eq!(
            marked(&encoder, &encoded, marks::TARGET),
            "[b<|endoftext|>][<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|endoftext|>]\
             [<think>\n\n</think>\n\n d <|endoftext|>]"
        );
        assert_eq!(encoded.answers, AnswerCounts { all: 3, ..AnswerCounts::default() });
    }

    #[test]
    fn an_end_of_turn_that_is_not_learned_is_counted() {
        let two = parse(json!(["a", "b"]));
        let counts = |template: &str| encoder(Some(template)).encode(&two, true).unwrap().answers;
        let inside =
            "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}";
        let outside =
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}";
        let none = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
        assert_eq!(counts(inside), AnswerCounts { all: 2, ..AnswerCounts::default() });
        assert_eq!(counts(outside), AnswerCounts { all: 2, end_not_learned: 2, ..AnswerCounts::default() });
        assert_eq!(counts(none), AnswerCounts { all: 1, without_end: 1, ..AnswerCounts::default() });
    }

    #[test]
    fn turns_that_the_template_leaves_out_are_named() {
        let templates = fixtures::templates();
        let conversation = parse(json!([
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]));
        let left_out = |name: &str| encoder(Some(&templates[name])).encode(&conversation, false).unwrap().left_out;
        assert_eq!(left_out("chatml"), []);
        // As in `transformers`: this template has no branch for the role.
        assert_eq!(left_out("qwen25"), [Role::Developer]);
    }

    /// The ids and masks are those of TRL: see `fixtures/make_completions.py`.
    #[test]
    fn completions_are_learned_as_in_trl() {
        let cases: Vec<serde_json::Value> = serde_json::from_str(include_str!("fixtures/completions.json")).unwrap();
        assert!(cases.len() > 4);
        for case in cases {
            let encoder = encoder(None);
            let encoded = encoder.encode(&parse(case["record"].clone()), true).unwrap();
            assert_eq!(json!(encoded.ids), case["ids"], "{case}");
            let learned: Vec<u8> = encoded.marks.iter().map(|mark| mark & marks::TARGET).collect();
            assert_eq!(json!(learned), case["mask"], "{case}");
            assert_eq!(encoded.answers.merged != 0, case["merged"].as_bool().unwrap(), "{case}");
        }
    }

    #[test]
    fn a_special_token_that_somebody_spells_is_text() {
        let encoder = encoder(None);
        let said = "<|endoftext|> is <|endoftext|>";
        let conversation = Conversation::turns(vec![Message::user(said), Message::assistant(format!("No: {said}"))]);
        let encoded = encoder.encode(&conversation, true).unwrap();
        let ids = &encoded.ids;
        assert_eq!(ids.iter().filter(|&&id| id == 50_256).count(), 2, "the ends of the two turns");
        let text = encoder.tokenizer.decode(ids);
        assert_eq!(text, format!("user\n{said}<|endoftext|>assistant\nNo: {said}<|endoftext|>"));
        assert_eq!(marked(&encoder, &encoded, marks::TARGET), format!("[No: {said}<|endoftext|>]"));
        let odd = Conversation::turns(vec![Message::user("a"), Message::assistant("b\u{fdd2}")]);
        assert_eq!(encoder.encode(&odd, true).unwrap_err(), "turn 2: invalid character U+FDD2");
        let long = Conversation::turns(vec![Message::user("a"); 2_049]);
        let expected = "expected at most 2048 turns, got 2049; split the conversation";
        assert_eq!(encoder.encode(&long, false).unwrap_err(), expected);
    }

    #[test]
    fn a_text_is_learned_whole_and_templates_that_cannot_be_told_are_refused() {
        let text = encoder(None).encode(&Conversation::text("one two"), true).unwrap();
        assert_eq!((text.ids.as_slice(), text.marks.as_slice()), (&[505, 734, 50_256][..], &[3, 1, 1][..]));
        let two = Conversation::turns(vec![Message::user("a"), Message::assistant("b"), Message::user("c")]);
        let backwards = encoder(Some("{% for m in messages | reverse %}{{ m.content }}{% endfor %}"));
        assert!(backwards.encode(&two, true).unwrap_err().contains("mark it with {% generation %}"));
        assert_eq!(backwards.encode(&two, false).unwrap().ids, Tokenizer::gpt2().encode("cba").unwrap());
        let nested = "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}";
        // The start of the third turn cannot be identified, so the first token is not marked.
        let once = "{{ messages | length }}{% for m in messages %} {{ m.content }}{% endfor %}";
        let encoded = encoder(Some(once)).encode(&two, false).unwrap();
        assert!(encoded.marks.iter().all(|mark| mark & marks::TURN_START == 0), "{:?}", encoded.marks);
        assert!(encoder(Some(nested)).encode(&two, true).unwrap_err().contains("nests"));
        assert_eq!(encoder(Some("{# #}")).encode(&two, true).unwrap_err(), "the chat template renders no text");
    }

    proptest! {
        #[test]
        fn everything_that_the_assistant_says_and_nothing_else_is_learned(
            said in prop::collection::vec("[a-c\u{e9}\u{4e00} \\n<|]{0,8}[a-c\u{e9}]|<\\|endoftext\\|>|\\PC{1,4}x", 1..7), first: bool,
        ) {
            let roles = [Role::User, Role::Assistant].into_iter().cycle().skip(usize::from(first));
            let messages: Vec<_> = said.iter().zip(roles).map(|(said, role)| Message::new(role, said.as_str())).collect();
            let encoder = encoder(None);
            let encoded = encoder.encode(&Conversation::turns(messages.clone()), true).unwrap();
            let expected: String = messages
                .iter()
                .filter(|message| message.role == Role::Assistant)
                .map(|message| format!("[{}<|endoftext|>]", message.content.as_ref().unwrap().trim()))
                .collect();
            prop_assert_eq!(marked(&encoder, &encoded, marks::TARGET), expected);
            prop_assert_eq!(encoded.marks.iter().filter(|&&mark| mark & marks::TURN_START != 0).count(), messages.len());
        }
    }
}
