//! Finds the turns of a conversation in its rendered text: which part is the assistant's answer, and where each turn starts.
//!
//! A template may mark the answers itself with `{% generation %}`. If not, the first n turns are rendered alone, and the text of all
//! starts with theirs. Templates that change earlier text as a conversation continues (Qwen3 drops earlier thoughts) are rendered
//! once more with marks around the content of each answer.

use std::ops::Range;

use minijinja::value::Value;
use serde_json::{Map, Value as Json};

use super::special::SpecialTokens;
use super::template::{BEGIN, ChatTemplate, END, TurnStarts};
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
        let starts = self.template.turn_starts(&turns, &context, &text);
        let whole = Whole { template: self.template, turns: &turns, context: &context, text: &text, starts };
        let ends: Vec<_> = (0..=turns.len()).map(|number| whole.end(number)).collect();
        let mut by_content = None;
        let mut answer = |index: usize| {
            let found = self.answer(index, &whole, &ends);
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
                learned.push(self.without_space(&text, place_of(&ends, index..index + 1)?));
            } else if learns && marked.is_none() {
                learned.push(answer(index)?);
            }
        }
        let mut first = 0;
        for run in messages.chunk_by(|message, next| message.train == next.train) {
            let turns = first..first + run.len();
            first = turns.end;
            if run[0].train != Some(false) {
                continue;
            }
            // A template that changes earlier text may still begin the whole text with that of a prompt.
            if let Ok(place) = place_of(&ends, turns.clone()) {
                never.push(place);
                continue;
            }
            for index in turns {
                never.push(place_of(&ends, index..index + 1).or_else(|reason| match messages[index].role {
                    Role::Assistant => answer(index),
                    _ => Err(reason),
                })?);
            }
        }
        learned.extend(marked.into_iter().flatten());
        // Templates drop parts of earlier answers (thoughts) on purpose.
        let others = messages.iter().enumerate().filter(|(_, message)| message.role != Role::Assistant);
        // The usual turn ends with its content and a token, which is quicker to check than a search.
        let ends_turn = |index: usize, content: &str| {
            let turn = place_of(&ends, index..index + 1).map_or("", |turn| text[turn].trim_end());
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

    /// Returns the byte range of an assistant's answer. `ends` is what [`Whole::end`] returns for each turn.
    fn answer(&self, index: usize, whole: &Whole, ends: &[Result<usize, String>]) -> Result<Range<usize>, String> {
        let end = ends[index + 1].clone()?;
        // The answer begins after its generation prompt. If the template adds more to the prompt than to the answer itself
        // (such as the start of a thought), it begins where the turns before it end.
        let asked = whole.length(index, true).ok().filter(|&asked| asked <= end);
        let before = asked.or(ends[index].as_ref().ok().copied()).filter(|&before| before <= end).ok_or(CANNOT_TELL)?;
        Ok(self.without_space(whole.text, before..end))
    }

    /// Returns the byte range of each message that is an answer, from after its generation prompt to the token that ends it, if the
    /// content of all answers is found in the text, once and in order. Without a generation prompt, an answer begins as it does when
    /// it is the last turn.
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
            let marked = ChatTemplate::turns(&messages.iter().map(mark).collect::<Option<Vec<_>>>()?);
            let (plain, contents) = without_marks(&self.template.render_turns(&marked, context, false).ok()?).ok()?;
            let indices: Vec<_> = (0..messages.len()).filter(|&index| is_answer(&messages[index])).collect();
            if plain != text || contents.len() != indices.len() {
                return None;
            }
            let asked = self.template.render_turns(turns, context, true).ok()?;
            let prompt = asked.strip_prefix(text)?;
            let answer = |number: usize| {
                let (content, index) = (&contents[number], indices[number]);
                let before = if number == 0 { 0 } else { contents[number - 1].end };
                let start = match prompt {
                    "" => {
                        let lead = self.lead(&turns[..index], &marked[..=index], context);
                        let lead = lead.filter(|lead| text[before..content.start].ends_with(lead.as_str()));
                        // Nothing else tells where the text around a call begins.
                        let said = messages[index].content.as_ref().filter(|content| !content.trim().is_empty());
                        content.start - lead.map(|lead| lead.len()).or(said.map(|_| 0))?
                    }
                    _ => before + text[before..content.start].rfind(prompt)? + prompt.len(),
                };
                let after = contents.get(number + 1).map_or(text.len(), |next| next.start);
                let end = content.end + text[content.end..after].find(self.end)? + self.end.len();
                Some(start..end)
            };
            let mut answers = (0..contents.len()).map(answer);
            Some(messages.iter().map(|message| if is_answer(message) { answers.next()? } else { None }).collect())
        };
        found().unwrap_or_default()
    }

    /// Returns the text between the turns before an answer and its content, as they are rendered without later turns. `marked` are
    /// those turns and the answer, with marks around the content of answers.
    fn lead(&self, before: &[Value], marked: &[Value], context: &[(String, Value)]) -> Option<String> {
        let (alone, contents) = without_marks(&self.template.render_turns(marked, context, false).ok()?).ok()?;
        let before = self.template.render_turns(before, context, true).ok()?;
        alone[..contents.last()?.start].strip_prefix(before.as_str()).map(str::to_owned)
    }

    /// Returns a turn's range without the white space after the token that ends it, which belongs to the template.
    fn without_space(&self, text: &str, turn: Range<usize>) -> Range<usize> {
        let trimmed = turn.start + text[turn.clone()].trim_end().len();
        let ended = self.special.end(&text[turn.start..trimmed]);
        turn.start..if ended { trimmed } else { turn.end }
    }
}

/// All turns of a conversation, and their text.
struct Whole<'a> {
    template: &'a ChatTemplate,
    turns: &'a [Value],
    context: &'a [(String, Value)],
    text: &'a str,
    /// Starts of the turns, if the template tells.
    starts: Option<TurnStarts>,
}

impl Whole<'_> {
    /// Returns where the first `number` turns end in the text of all; an error if that does not start with them.
    fn end(&self, number: usize) -> Result<usize, String> {
        match number {
            0 => Ok(0),
            number if number == self.turns.len() => Ok(self.text.len()),
            number => self.length(number, false),
        }
    }

    /// Returns the length of the first `number` turns rendered alone; an error if the text of all does not start with them.
    fn length(&self, number: usize, add_generation_prompt: bool) -> Result<usize, String> {
        if let Some(starts) = self.starts.as_ref().filter(|_| number > 0) {
            return starts.length(number, add_generation_prompt, self.text).ok_or_else(|| CANNOT_TELL.into());
        }
        let before = self.template.render_turns(&self.turns[..number], self.context, add_generation_prompt)?;
        let before = if self.template.has_marks() { before.replace([BEGIN, END], "") } else { before };
        if self.text.starts_with(&before) { Ok(before.len()) } else { Err(CANNOT_TELL.into()) }
    }
}

/// Returns the byte range of whole turns. `ends` is what [`Whole::end`] returns for each turn.
fn place_of(ends: &[Result<usize, String>], turns: Range<usize>) -> Result<Range<usize>, String> {
    let place = ends[turns.start].clone()?..ends[turns.end].clone()?;
    if place.start <= place.end { Ok(place) } else { Err(CANNOT_TELL.into()) }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chat::fixtures;
    use ngen3_model::ChatFormat;

    const END_OF_TURN: &str = "</s>";

    fn format(template: &str) -> ChatFormat {
        ChatFormat { template: template.into(), bos_token: Some("<s>".into()), eos_token: Some(END_OF_TURN.into()) }
    }

    /// Returns how the turns are found by a single rendering, if they are, and by one rendering for each.
    fn found(template: &str, messages: &[Message]) -> (Option<Result<String, String>>, Result<String, String>) {
        let special = SpecialTokens::new(vec![(END_OF_TURN.into(), 0)]).unwrap();
        let find = |template: &ChatTemplate| {
            let locator = Locator { template, special: &special, end: END_OF_TURN };
            let found = locator.render(messages, &Map::new(), true)?;
            let Rendered { text, answers, never, turns, left_out } = found;
            Ok(format!("{text:?} {answers:?} {never:?} {turns:?} {left_out:?}"))
        };
        let template = ChatTemplate::new(format(template)).unwrap();
        let turns = ChatTemplate::turns(messages);
        let text = template.render_turns(&turns, &[], false).unwrap_or_default();
        let quick = template.turn_starts(&turns, &[], &text).is_some().then(|| find(&template));
        (quick, find(&template.like_any_other()))
    }

    #[test]
    fn usual_templates_are_rendered_once() {
        let messages = [Message::user("a"), Message::assistant("b"), Message::user("c"), Message::assistant("d")];
        let mut quick = Vec::new();
        for (name, template) in fixtures::templates() {
            let (found, expected) = found(&template, &messages);
            if let Some(found) = found {
                assert_eq!(found, expected, "{name}");
                quick.push(name);
            }
        }
        assert_eq!(quick, ["chatml", "default", "smollm2"]);
    }

    #[test]
    fn a_prompt_is_found_where_its_turns_are_not() {
        let special = SpecialTokens::new(vec![(END_OF_TURN.into(), 0)]).unwrap();
        let never = |template: &str, learned: [Option<bool>; 4]| {
            let template = ChatTemplate::new(format(template)).unwrap();
            let locator = Locator { template: &template, special: &special, end: END_OF_TURN };
            let said = [Message::user("a"), Message::assistant("b"), Message::user("c"), Message::assistant("d")];
            let messages: Vec<_> =
                said.into_iter().zip(learned).map(|(turn, train)| Message { train, ..turn }).collect();
            let found = locator.render(&messages, &Map::new(), true)?;
            Ok::<_, String>(found.never.into_iter().map(|place| found.text[place].to_owned()).collect::<Vec<_>>())
        };
        let (no, other) = (Some(false), None);
        // The last turn is rendered differently if it is an answer, so that the first two turns are not found alone.
        let last = "{% for m in messages %}{% if loop.last and m.role == 'assistant' %}!{% endif %}{{ m.content + eos_token }}{% endfor %}";
        assert_eq!(never(last, [no, no, no, other]).unwrap(), ["a</s>b</s>c</s>"]);
        assert_eq!(never(last, [other, other, no, other]).unwrap_err(), CANNOT_TELL);
        // Two turns are shorter than one.
        let shrinks = "{% if messages | length == 1 %}ab{% elif messages | length == 2 %}a{% else %}abcd{% endif %}";
        assert_eq!(never(shrinks, [other, no, other, other]).unwrap_err(), CANNOT_TELL);
    }

    proptest! {
        #[test]
        fn turns_are_the_same_however_they_are_found(
            before in prop::sample::select(vec!["", "{{ bos_token }}", "{% if messages[0].role == 'user' %}\n{% set x = 1 %}{% endif %}\n"]),
            open in prop::sample::select(vec!["{% for m in messages %}", "{%- for m in messages -%}\n ", "{% for m in messages %}\n  "]),
            body in prop::collection::vec(prop::sample::select(vec![
                "{{ m.role }}", "{{ m.content }}", "{{ m['content'] | trim + eos_token }}\n", " \n ", "{{ loop.index }}",
                "{% if loop.first %}A{% endif %}", "{% if not loop.first %}\n{% endif %}\n", "{{ messages[0].content }}",
                "{% if m.role == 'user' %}\n U{% else %}{% set y = m.content %}{{ y }}{% endif %}", "{%- if true -%} x {%- endif %}",
                "{% for c in m.content %}{{ loop.index0 ~ c }}{% endfor %}", "{% if add_generation_prompt %}G{% endif %}",
                "{% if loop.last %}Z{% endif %}", "{{ messages | length }}", "{{ messages[-1].role }}", "{{ loop.nextitem }}",
                "{% if m.content == 'b' %}{% break %}{% endif %}", "{# {{ messages }} #}", "{{ 'messages' }}",
            ]), 0..6),
            close in prop::sample::select(vec!["{% endfor %}", "{%- endfor -%}\n", "{% endfor %}\n\n", "{% else %}no{% endfor %}"]),
            after in prop::sample::select(vec![
                "", "end", "\n {% if add_generation_prompt %}\n{{ 'assistant\\n' }}{% endif %}", "{% if add_generation_prompt %}a{% else %}b{% endif %}",
                "{{ eos_token }}", "{{ messages[0].role }}", "{% if messages[-1].role == 'user' %}c{% endif %}",
            ]),
            turns in prop::collection::vec((any::<bool>(), "[ab ]{0,2}b", prop::option::of(any::<bool>())), 1..6),
        ) {
            let turn = |(answers, text, train): &(bool, String, Option<bool>)| Message {
                train: *train,
                ..if *answers { Message::assistant(text.as_str()) } else { Message::user(text.as_str()) }
            };
            let messages: Vec<_> = turns.iter().map(turn).collect();
            let template = [before, open, &body.concat(), close, after].concat();
            let (found, expected) = found(&template, &messages);
            if let Some(found) = found {
                prop_assert_eq!(found, expected, "{}", template);
            }
        }
    }
}
