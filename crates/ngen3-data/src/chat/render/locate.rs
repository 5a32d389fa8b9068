//! Finds the turns of a conversation in its rendered text: which part is the assistant's answer, and where each turn starts.
//!
//! A template may mark the answers itself with `{% generation %}`. If not, the first n turns are rendered alone, and the text of all
//! starts with theirs. Templates that change earlier text as a conversation continues (Qwen3 drops earlier thoughts) are rendered
//! once more with marks around the content of each answer.

use std::ops::Range;

use minijinja::value::Value;
use serde_json::{Map, Value as Json};

use super::special::SpecialTokens;
use super::template::{BEGIN, ChatTemplate, END};
use crate::chat::conversation::{Message, Role};

/// Error for a template that changes earlier text as a conversation continues.
const CANNOT_TELL: &str = "the chat template changes earlier text as a conversation continues, so the assistant's part \
     cannot be identified: mark it with {% generation %} in the template, or give the conversations to finetune with \
     --train_on all";

/// End of a thought in the content of an answer.
const THOUGHT: &str = "</think>";

/// A rendered conversation, including guards.
pub(in crate::chat) struct Rendered {
    pub text: String,
    /// Byte ranges of the answers and other turns that are learned.
    pub answers: Vec<Range<usize>>,
    /// Byte ranges of the turns that are never learned.
    pub never: Vec<Range<usize>>,
    /// Start of each turn.
    pub turns: Vec<usize>,
    /// Roles of the turns whose text the template leaves out.
    pub left_out: Vec<Role>,
}

/// Finds turns in what a template renders.
pub(in crate::chat) struct Locator<'a> {
    pub template: &'a ChatTemplate,
    /// Special tokens.
    pub special: &'a SpecialTokens,
    /// Token that ends an answer.
    pub end: &'a str,
}

impl Locator<'_> {
    /// Renders a conversation. With `answers`, an error if the assistant's part cannot be identified.
    pub(in crate::chat) fn render(
        &self,
        messages: &[Message],
        context: &Map<String, Json>,
        answers: bool,
    ) -> Result<Rendered, String> {
        let (turns, context) = (ChatTemplate::turns(messages), ChatTemplate::context(context));
        let text = self.template.render_turns(&turns, &context, false)?;
        let (text, marked) = match self.template.has_marks() {
            true => without_marks(&text).map(|(text, answers)| (text, Some(answers)))?,
            false => (text, None),
        };
        let ends = self.ends(&turns, &context, &text);
        let mut by_content = None;
        let mut answer = |index: usize| {
            let found = self.answer(index, &turns, &context, &text, &ends);
            found.or_else(|reason| {
                let found = by_content.get_or_insert_with(|| self.by_content(messages, &context, &turns, &text));
                found.get(index).cloned().flatten().ok_or(reason)
            })
        };
        let (mut learned, mut never) = (Vec::new(), Vec::new());
        for (index, message) in messages.iter().enumerate() {
            let is_answer = message.role == Role::Assistant;
            let learns = answers && message.train.unwrap_or(is_answer);
            if learns && !is_answer {
                learned.push(self.without_space(&text, turn_of(&ends, index)?));
            } else if learns && marked.is_none() {
                learned.push(answer(index)?);
            }
            if message.train == Some(false) {
                never.push(turn_of(&ends, index).or_else(|reason| match is_answer {
                    true => answer(index),
                    false => Err(reason),
                })?);
            }
        }
        learned.extend(marked.into_iter().flatten());
        // Templates drop parts of earlier answers (thoughts) on purpose.
        let others = messages.iter().enumerate().filter(|(_, message)| message.role != Role::Assistant);
        // The usual turn ends with its content and a token, which is quicker to check than a search.
        let ends_turn = |index: usize, content: &str| {
            let turn = turn_of(&ends, index).map_or("", |turn| text[turn].trim_end());
            turn.strip_suffix(self.end).unwrap_or(turn).trim_end().ends_with(content)
        };
        // As it is, or else as JSON.
        let is_in_json = |content: &str| text.contains(Json::from(content).to_string().trim_matches('"'));
        let is_shown =
            |index: usize, content: &str| ends_turn(index, content) || text.contains(content) || is_in_json(content);
        let left_out = others.filter(|&(index, message)| {
            message.content.as_deref().is_some_and(|content| !is_shown(index, content.trim()))
        });
        let left_out = left_out.map(|(_, message)| message.role).collect();
        let turns = ends[..turns.len()].iter().flatten().copied().collect();
        Ok(Rendered { text, answers: learned, never, turns, left_out })
    }

    /// Returns where the first n turns end in the text of all, for each n; an error if the text of all does not start with them.
    fn ends(&self, turns: &[Value], context: &[(String, Value)], text: &str) -> Vec<Result<usize, String>> {
        let end = |number: usize| match number {
            0 => Ok(0),
            number if number == turns.len() => Ok(text.len()),
            number => {
                let before = self.template.render_turns(&turns[..number], context, false)?;
                let before = if self.template.has_marks() { before.replace([BEGIN, END], "") } else { before };
                if text.starts_with(&before) { Ok(before.len()) } else { Err(CANNOT_TELL.into()) }
            }
        };
        (0..=turns.len()).map(end).collect()
    }

    /// Returns the byte range of an assistant's answer. `ends` is what [`Locator::ends`] returns.
    fn answer(
        &self,
        index: usize,
        turns: &[Value],
        context: &[(String, Value)],
        text: &str,
        ends: &[Result<usize, String>],
    ) -> Result<Range<usize>, String> {
        let end = ends[index + 1].clone()?;
        let upto = &text[..end];
        // The answer begins after its generation prompt. If the template adds more to the prompt than to the answer itself
        // (such as the start of a thought), it begins where the turns before it end.
        let asked = self.template.render_turns(&turns[..index], context, true).ok();
        let asked = asked.filter(|asked| upto.starts_with(asked.as_str())).map(|asked| asked.len());
        let before =
            asked.or(ends[index].as_ref().ok().copied()).filter(|&before| before <= upto.len()).ok_or(CANNOT_TELL)?;
        Ok(self.without_space(text, before..end))
    }

    /// Returns the byte range of each message that is an answer, from after its generation prompt to the token that ends it, if the
    /// content of all answers is found in the text, once and in order.
    fn by_content(
        &self,
        messages: &[Message],
        context: &[(String, Value)],
        turns: &[Value],
        text: &str,
    ) -> Vec<Option<Range<usize>>> {
        let is_answer = |message: &Message| message.role == Role::Assistant;
        let mark = |message: &Message| if is_answer(message) { with_marks(message) } else { Some(message.clone()) };
        let found = || {
            let marked = messages.iter().map(mark).collect::<Option<Vec<_>>>()?;
            let marked = self.template.render_turns(&ChatTemplate::turns(&marked), context, false).ok()?;
            let (plain, contents) = without_marks(&marked).ok()?;
            if plain != text || contents.len() != messages.iter().filter(|message| is_answer(message)).count() {
                return None;
            }
            let asked = self.template.render_turns(turns, context, true).ok()?;
            let prompt = asked.strip_prefix(text)?;
            let answer = |index: usize| {
                let content = &contents[index];
                let before = if index == 0 { 0 } else { contents[index - 1].end };
                let start = match prompt {
                    "" => content.start,
                    _ => before + text[before..content.start].rfind(prompt)? + prompt.len(),
                };
                let after = contents.get(index + 1).map_or(text.len(), |next| next.start);
                let end = content.end + text[content.end..after].find(self.end)? + self.end.len();
                Some(start..end)
            };
            let mut answers = (0..contents.len()).map(answer);
            Some(messages.iter().map(|message| if is_answer(message) { answers.next()? } else { None }).collect())
        };
        found().unwrap_or_default()
    }

    /// Returns a turn's range without the white space after the token that ends it, which belongs to the template.
    fn without_space(&self, text: &str, turn: Range<usize>) -> Range<usize> {
        let trimmed = turn.start + text[turn.clone()].trim_end().len();
        let ended = self.special.end(&text[turn.start..trimmed]);
        turn.start..if ended { trimmed } else { turn.end }
    }
}

/// Returns the byte range of a whole turn.
fn turn_of(ends: &[Result<usize, String>], index: usize) -> Result<Range<usize>, String> {
    Ok(ends[index].clone()?..ends[index + 1].clone()?)
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

/// Returns a message with marks within the white space around its content, or around the name of the tool that it calls first;
/// `None` if it has neither.
fn with_marks(message: &Message) -> Option<Message> {
    let mut message = message.clone();
    match message.content.as_mut().filter(|content| !content.trim().is_empty()) {
        Some(content) => {
            // Templates show what follows a thought.
            let thought = content.rfind(THOUGHT).map_or(0, |at| at + THOUGHT.len());
            let start = content.len() - content[thought..].trim_start().len();
            let end = content.trim_end().len().max(start);
            content.insert(end, END);
            content.insert(start, BEGIN);
        }
        None => {
            let call = message.fields.get_mut("tool_calls")?.get_mut(0)?;
            let call = if call.get("function").is_some() { call.get_mut("function")? } else { call };
            let name = call.get_mut("name")?;
            *name = format!("{BEGIN}{}{END}", name.as_str()?).into();
        }
    }
    Some(message)
}
