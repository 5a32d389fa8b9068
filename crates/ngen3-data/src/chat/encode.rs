//! Encodes a conversation as token ids, each with its [`marks`].
//!
//! The ids are those of the rendered text. Special tokens written by the template become single tokens; the text of a turn stays
//! text, even if it spells a special token. The assistant's part is marked by the template if it has `{% generation %}`;
//! otherwise it is found by rendering the conversation up to each assistant turn, once with the generation prompt and once with
//! the answer: the difference is the answer. A token that is partly the assistant's counts as the assistant's.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use minijinja::value::Value;
use ngen3_model::ChatFormat;

use super::conversation::{Conversation, Message, Role};
use super::marks;
use super::template::{BEGIN, ChatTemplate, END};
use crate::tokenizer::MissingChars;
use crate::{Error, Tokenizer};

/// Is inserted where the text of a turn spells a special token, so that it is not taken for one, and removed before tokenising.
/// A noncharacter of Unicode, like [`BEGIN`] and [`END`].
const GUARD: char = '\u{fdd2}';

/// Maximum number of turns of a conversation. The template renders the beginning up to each turn again to find where the turn
/// starts, so the time grows with the square of this number.
const MAX_TURNS: usize = 2_048;

/// Encodes conversations as token ids.
#[derive(Debug)]
pub struct ChatEncoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    special: Vec<(String, u32)>,
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
        let mut special = tokenizer.special_tokens();
        // Longest first, so that a token within a longer one is not matched.
        special.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
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
        let messages = self.guarded(messages).map_err(Error::Data)?;
        let text = self.template.render(&messages, true)?;
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        self.tokens(&text, &mut ids, &mut starts).map_err(Error::Data)?;
        Ok(ids)
    }

    /// Encodes a conversation with its marks. With `answers`, the assistant's tokens must be identifiable.
    pub(super) fn encode(&self, conversation: &Conversation, answers: bool) -> Result<EncodedChat, String> {
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        let mut marks = match conversation {
            Conversation::Text(text) => {
                self.tokenizer.encode_into(text, &mut ids).map_err(|error| error.to_string())?;
                self.count_missing(text)?;
                ids.push(self.eot);
                vec![marks::TARGET; ids.len()]
            }
            Conversation::Turns(messages) if messages.len() > MAX_TURNS => {
                let turns = messages.len();
                return Err(format!("expected at most {MAX_TURNS} turns, got {turns}; split the conversation"));
            }
            Conversation::Turns(messages) => {
                let messages = self.guarded(messages)?;
                let Rendered { text, answers, turns } = self.render(&messages, answers)?;
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
                for answer in answers.into_iter().filter(|answer| !answer.is_empty()) {
                    found[at_or_in(plain(answer.start))..before(plain(answer.end))].fill(marks::TARGET);
                }
                let all_told = turns.len() == messages.len();
                for turn in turns {
                    found.get_mut(at_or_in(plain(turn))).into_iter().for_each(|mark| *mark |= marks::TURN_START);
                }
                if let Some(first) = found.first_mut().filter(|_| !all_told) {
                    *first &= !marks::TURN_START;
                }
                found
            }
        };
        match marks.first_mut() {
            Some(first) => *first |= marks::CONVERSATION_START,
            None => return Err("the chat template renders no text".into()),
        }
        Ok(EncodedChat { ids, marks })
    }

    /// Returns the messages with guards where their text spells a special token.
    fn guarded(&self, messages: &[Message]) -> Result<Vec<Message>, String> {
        let guard = |(message, number): (&Message, usize)| {
            if let Some(c) = message.content.chars().find(|c| [BEGIN, END, GUARD].contains(c)) {
                return Err(format!("turn {number}: invalid character U+{:04X}", u32::from(c)));
            }
            let content = self.special.iter().fold(message.content.clone(), |content, (token, _)| {
                let mut chars = token.chars();
                match chars.next() {
                    Some(first) if content.contains(token) => {
                        content.replace(token.as_str(), &format!("{first}{GUARD}{}", chars.as_str()))
                    }
                    _ => content,
                }
            });
            Ok(Message { role: message.role, content })
        };
        messages.iter().zip(1..).map(guard).collect()
    }

    /// Appends the ids of a rendered text, including special tokens, and the offset of each, not counting guards.
    fn tokens(&self, text: &str, ids: &mut Vec<u32>, starts: &mut Vec<usize>) -> Result<(), String> {
        // Next position of each special token.
        let mut next: Vec<_> = self.special.iter().map(|(token, _)| text.find(token.as_str())).collect();
        // Bytes that are done, with and without guards.
        let (mut done, mut at) = (0, 0);
        while done < text.len() {
            let found = next.iter().zip(&self.special).filter_map(|(place, special)| Some(((*place)?, special)));
            // The first one, and the longest of those at the same position.
            let special = found.min_by_key(|(place, _)| *place);
            let plain = text[done..special.map_or(text.len(), |(place, _)| place)].replace(GUARD, "");
            let first = starts.len();
            self.tokenizer.encode_places(&plain, ids, starts).map_err(|error| error.to_string())?;
            self.count_missing(&plain)?;
            starts[first..].iter_mut().for_each(|start| *start += at);
            at += plain.len();
            let Some((place, (token, id))) = special else { break };
            ids.push(*id);
            starts.push(at);
            at += token.len();
            done = place + token.len();
            for (place, (token, _)) in next.iter_mut().zip(&self.special) {
                if place.is_some_and(|place| place < done) {
                    *place = text[done..].find(token.as_str()).map(|place| done + place);
                }
            }
        }
        Ok(())
    }

    fn render(&self, messages: &[Message], answers: bool) -> Result<Rendered, String> {
        let turns = ChatTemplate::turns(messages);
        let text = self.template.render_turns(&turns, false)?;
        let (text, marked) = match self.template.has_marks() {
            true => without_marks(&text).map(|(text, answers)| (text, Some(answers)))?,
            false => (text, None),
        };
        let ends = self.ends(&turns, &text);
        let answers = match marked {
            Some(answers) => answers,
            None if answers => self.answers(messages, &turns, &text, &ends)?,
            None => Vec::new(),
        };
        Ok(Rendered { text, answers, turns: ends[..turns.len()].iter().flatten().copied().collect() })
    }

    /// Returns where the first n turns end in the text of all, for each n; an error if the text of all does not start with them.
    fn ends(&self, turns: &[Value], text: &str) -> Vec<Result<usize, String>> {
        let end = |number: usize| match number {
            0 => Ok(0),
            number if number == turns.len() => Ok(text.len()),
            number => {
                let before = self.template.render_turns(&turns[..number], false)?.replace([BEGIN, END], "");
                if text.starts_with(&before) { Ok(before.len()) } else { Err(CANNOT_TELL.into()) }
            }
        };
        (0..=turns.len()).map(end).collect()
    }

    /// Returns the byte ranges of the assistant's answers. `ends` is what [`ChatEncoder::ends`] returns.
    fn answers(
        &self,
        messages: &[Message],
        turns: &[Value],
        text: &str,
        ends: &[Result<usize, String>],
    ) -> Result<Vec<Range<usize>>, String> {
        let mut answers = Vec::new();
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
            let upto = &text[..ends[index + 1].clone()?];
            // The answer begins after its generation prompt. If the template adds more to the prompt than to the answer itself
            // (such as the start of a thought), it begins where the turns before it end.
            let asked = self.template.render_turns(&turns[..index], true).ok();
            let asked = asked.filter(|asked| upto.starts_with(asked.as_str())).map(|asked| asked.len());
            let before = asked
                .or(ends[index].as_ref().ok().copied())
                .filter(|&before| before <= upto.len())
                .ok_or(CANNOT_TELL)?;
            // White space after the token that ends the answer belongs to the template.
            let trimmed = before + upto[before..].trim_end().len();
            let ended = self.special.iter().any(|(token, _)| upto[..trimmed].ends_with(token.as_str()));
            answers.push(before..if ended { trimmed } else { upto.len() });
        }
        Ok(answers)
    }
}

/// Error for a template that changes earlier text as a conversation continues.
const CANNOT_TELL: &str = "the chat template changes earlier text as a conversation continues, so the assistant's part \
     cannot be identified: mark it with {% generation %} in the template, or give the conversations to finetune with \
     --train_on all";

/// A rendered conversation, including guards.
struct Rendered {
    text: String,
    /// Byte ranges of the assistant's answers.
    answers: Vec<Range<usize>>,
    /// Start of each turn.
    turns: Vec<usize>,
}

/// Removes the marks from a text; returns the ranges that were between them.
fn without_marks(marked: &str) -> Result<(String, Vec<Range<usize>>), String> {
    let (mut text, mut spans, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for c in marked.chars() {
        match (c, open) {
            (BEGIN, None) => open = Some(text.len()),
            (END, Some(start)) => {
                spans.push(start..text.len());
                open = None;
            }
            (BEGIN | END, _) => return Err("the chat template nests {% generation %} blocks".into()),
            (c, _) => text.push(c),
        }
    }
    Ok((text, spans))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chat::fixtures::{self, Case};

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
        for Case { name, messages, asking, ids, assistant, text } in fixtures::cases() {
            let encoder = encoder(Some(&templates[&name]));
            let answers = name != "namespace";
            let encoded = encoder.encode(&Conversation::Turns(messages.clone()), answers).unwrap();
            assert_eq!(encoded.ids, ids, "{name}: {text}");
            assert_eq!(encoder.tokenizer.decode(&encoder.prompt(&messages).unwrap()), asking);
            if let Some(assistant) = assistant {
                let learned: Vec<u8> = encoded.marks.iter().map(|mark| mark & marks::TARGET).collect();
                assert_eq!(learned, assistant, "{name}: {text}");
                with_masks += 1;
            }
            cases += 1;
        }
        assert_eq!((cases, with_masks), (30, 6));
    }

    #[test]
    fn what_the_assistant_says_is_told_with_the_token_that_ends_it() {
        let said = ["Hi", "Hello!\nYou?", "Fine.", "Good"];
        let messages: Vec<_> = said
            .iter()
            .zip([Role::User, Role::Assistant].into_iter().cycle())
            .map(|(said, role)| Message { role, content: said.to_string() })
            .collect();
        let conversation = Conversation::Turns(messages);
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

    #[test]
    fn a_special_token_that_somebody_spells_is_text() {
        let encoder = encoder(None);
        let said = "<|endoftext|> is <|endoftext|>";
        let conversation = Conversation::Turns(vec![Message::user(said), Message::assistant(format!("No: {said}"))]);
        let EncodedChat { ids, marks } = encoder.encode(&conversation, true).unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == 50_256).count(), 2, "the ends of the two turns");
        let text = encoder.tokenizer.decode(&ids);
        assert_eq!(text, format!("user\n{said}<|endoftext|>assistant\nNo: {said}<|endoftext|>"));
        let encoded = EncodedChat { ids, marks };
        assert_eq!(marked(&encoder, &encoded, marks::TARGET), format!("[No: {said}<|endoftext|>]"));
        let odd = Conversation::Turns(vec![Message::user("a"), Message::assistant("b\u{fdd2}")]);
        assert_eq!(encoder.encode(&odd, true).unwrap_err(), "turn 2: invalid character U+FDD2");
        let long = Conversation::Turns(vec![Message::user("a"); 2_049]);
        let expected = "expected at most 2048 turns, got 2049; split the conversation";
        assert_eq!(encoder.encode(&long, false).unwrap_err(), expected);
    }

    #[test]
    fn a_text_is_learned_whole_and_templates_that_cannot_be_told_are_refused() {
        let text = encoder(None).encode(&Conversation::Text("one two".into()), true).unwrap();
        assert_eq!((text.ids.as_slice(), text.marks.as_slice()), (&[505, 734, 50_256][..], &[3, 1, 1][..]));
        let two = Conversation::Turns(vec![Message::user("a"), Message::assistant("b"), Message::user("c")]);
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
            let messages: Vec<_> = said.iter().zip(roles).map(|(said, role)| Message { role, content: said.clone() }).collect();
            let encoder = encoder(None);
            let encoded = encoder.encode(&Conversation::Turns(messages.clone()), true).unwrap();
            let expected: String = messages
                .iter()
                .filter(|message| message.role == Role::Assistant)
                .map(|message| format!("[{}<|endoftext|>]", message.content.trim()))
                .collect();
            prop_assert_eq!(marked(&encoder, &encoded, marks::TARGET), expected);
            prop_assert_eq!(encoded.marks.iter().filter(|&&mark| mark & marks::TURN_START != 0).count(), messages.len());
        }
    }
}
