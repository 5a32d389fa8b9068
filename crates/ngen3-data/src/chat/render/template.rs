//! Renders conversations with a Jinja template, as `transformers` does.
//!
//! [`ChatTemplate`] gives the text of `tokenizer.apply_chat_template(messages, tokenize=False)`, byte for byte: blocks are
//! trimmed, `raise_exception` and `tojson` exist, values print as in Python (`python.rs`), strings have Python's methods, and
//! `{% generation %}` marks the assistant's part. A template may come from an untrusted source, so its work is limited.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, merge_maps};
use minijinja::{Environment, ErrorKind, context};
use ngen3_model::ChatFormat;
use serde_json::Map;

use super::growing::with_turn_marks;
use super::python;
use super::tags::{Piece, inside, pieces};
use crate::Error;
use crate::chat::conversation::Message;

/// Work of the template engine allowed for a conversation: an instruction is 1, and so are 64 bytes of text that it makes. A turn
/// usually takes about a hundred. The engine may hold all that it made, so this bounds memory too.
const FUEL: u64 = 8_000_000;
/// Maximum size of a template, in bytes: ten times the largest in use.
const MAX_TEMPLATE: usize = 128 << 10;
/// Stack of the thread that compiles a template, for each of its bytes, and for none.
const STACK_PER_BYTE: usize = 4 << 10;
const STACK: usize = 2 << 20;
const NAME: &str = "chat_template";
/// Name of the template with [`BEGIN`] before each turn and after the last.
const WITH_TURN_MARKS: &str = "chat_template with turn marks";

/// Names of a turn's reasoning: the two that templates read, and another that data have.
pub(in crate::chat) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Mark the assistant's part in a rendered text. They are noncharacters of Unicode, which no text contains.
pub(in crate::chat) const BEGIN: char = '\u{fdd0}';
pub(in crate::chat) const END: char = '\u{fdd1}';

/// Template of a model without its own: `role`, a line break, the text, the end-of-text token. ChatML in form, with the tokens of
/// GPT-2's vocabulary.
const DEFAULT: &str = include_str!("default.jinja");

/// Names that no record may give another meaning.
const OWN: [&str; 4] = ["messages", "add_generation_prompt", "bos_token", "eos_token"];

/// Names and values that a template reads apart from the messages and the tokens.
pub(super) type TemplateContext = Vec<(String, Value)>;

/// Renders conversations.
#[derive(Debug)]
pub struct ChatTemplate {
    format: ChatFormat,
    environment: Environment<'static>,
    /// True if the template itself marks the assistant's part.
    has_marks: bool,
    /// True if a turn never depends on later ones.
    is_growing: bool,
    /// Names that it reads: see [`ChatTemplate::context_names`].
    context_names: Vec<String>,
}

/// Starts of the turns in the text of a template in which no turn depends on later ones.
pub(super) struct TurnStarts {
    /// Start of each turn, and the end of the last.
    starts: Vec<usize>,
    /// Text after the turns, without and with the generation prompt.
    ends: [String; 2],
}

impl TurnStarts {
    /// Returns the length of the first `number` turns rendered alone, at least one; `None` if `text`, that of all turns, does not start
    /// with them.
    pub(super) fn length(&self, number: usize, add_generation_prompt: bool, text: &str) -> Option<usize> {
        let (start, end) = (self.starts[number], &self.ends[usize::from(add_generation_prompt)]);
        text[start..].starts_with(end.as_str()).then(|| start + end.len())
    }
}

impl ChatTemplate {
    /// Returns the format of a model without its own. `end` is the end-of-text token.
    pub fn default_format(end: &str) -> ChatFormat {
        ChatFormat { template: DEFAULT.into(), bos_token: Some(end.into()), eos_token: Some(end.into()) }
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::Data`] with the line, if the template is invalid.
    pub fn new(format: ChatFormat) -> Result<Self, Error> {
        if format.template.len() > MAX_TEMPLATE {
            let len = format.template.len();
            return Err(Error::Data(format!("chat template: expected at most {MAX_TEMPLATE} bytes, got {len}")));
        }
        // The engine's compiler recurses: once for each `not` in a row, each operand of a sum, each filter of a chain.
        std::thread::scope(|scope| {
            let stack = STACK + format.template.len() * STACK_PER_BYTE;
            let compiler = std::thread::Builder::new().name("template".into()).stack_size(stack);
            let compiled = compiler.spawn_scoped(scope, || Self::compile(format));
            let compiled =
                compiled.map_err(|error| Error::Data(format!("cannot compile the chat template: {error}")))?;
            compiled.join().unwrap_or_else(|_| Err(Error::Data("the template engine panicked".into())))
        })
    }

    /// [`ChatTemplate::new`], on a stack that is large enough.
    pub(crate) fn compile(format: ChatFormat) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<(), minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("_generation", |state: &mut minijinja::State, kwargs: Kwargs| {
            let content: Value = kwargs.get::<Value>("caller")?.call(state, &[])?;
            Ok::<_, minijinja::Error>(format!("{BEGIN}{content}{END}"))
        });
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("string", python::string);
        // As in Python: templates ask this of `tools`, which may be none.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.set_formatter(python::print);
        let template = with_calls(&format.template);
        let has_marks = template != format.template;
        let marked = with_turn_marks(&template, BEGIN).filter(|_| !has_marks);
        environment
            .add_template_owned(NAME, template)
            .map_err(|error| Error::Data(format!("invalid chat template: {}", one_line(&error))))?;
        let is_growing = marked.is_some_and(|marked| environment.add_template_owned(WITH_TURN_MARKS, marked).is_ok());
        let context_names = context_names(&environment);
        Ok(Self { format, environment, has_marks, is_growing, context_names })
    }

    /// Returns the same template, whose turns are found as those of any other.
    #[cfg(test)]
    pub(super) fn like_any_other(self) -> Self {
        Self { is_growing: false, ..self }
    }

    /// Format that it was made from.
    pub fn format(&self) -> &ChatFormat {
        &self.format
    }

    /// True if the template itself marks the assistant's part.
    pub(super) fn has_marks(&self) -> bool {
        self.has_marks
    }

    /// Returns the names that the template reads apart from the messages, the flag of the generation prompt and the tokens.
    pub fn context_names(&self) -> Vec<String> {
        self.context_names.clone()
    }

    /// Renders a conversation; `add_generation_prompt` adds the text that begins the assistant's answer.
    ///
    /// # Errors
    /// [`Error::Data`] with the template's error.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        self.render_with(messages, &Map::new(), add_generation_prompt)
    }

    /// Renders a conversation as [`ChatTemplate::render`], with other values that the template reads.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        context: &Map<String, serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let text = self.render_turns(&Self::turns(messages), &Self::context(context), add_generation_prompt);
        Ok(text.map_err(Error::Data)?.replace([BEGIN, END], ""))
    }

    /// Converts messages to values for a template.
    pub(super) fn turns(messages: &[Message]) -> Vec<Value> {
        let turn = |message: &Message| {
            // As `transformers`: templates read the reasoning under one of two names, whatever the data call it.
            let reasoning = REASONING.iter().find_map(|name| message.fields.get(*name));
            let reasoning = reasoning.into_iter().flat_map(|text| REASONING[..2].iter().map(move |&name| (name, text)));
            let fields = message.fields.iter().map(|(key, value)| (key.as_str(), value)).chain(reasoning);
            let role = message.role.name();
            match message.content.as_deref() {
                // The usual turn: lookups in a map of static keys are much faster.
                Some(content) if message.fields.is_empty() => context! { role => role, content => content },
                content => {
                    let own = [("role", Some(role)), ("content", content)];
                    let own = own.into_iter().filter_map(|(key, text)| Some((key, Value::from(text?))));
                    Value::from_pairs(own.chain(fields.map(|(key, value)| (key, Value::from(Serde(value))))))
                }
            }
        };
        messages.iter().map(turn).collect()
    }

    /// Converts other values for a template.
    pub(super) fn context(context: &Map<String, serde_json::Value>) -> TemplateContext {
        let others = context.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
        others.map(|(name, value)| (name.clone(), Value::from(Serde(value)))).collect()
    }

    /// Renders turns, with [`BEGIN`] and [`END`] around what the template itself marks.
    pub(super) fn render_turns(
        &self,
        turns: &[Value],
        context: &[(String, Value)],
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        self.render_template(NAME, turns, context, add_generation_prompt)
    }

    /// Returns where turns start in `text`, which [`ChatTemplate::render_turns`] returns for them; `None` if a turn may depend on
    /// later ones.
    pub(super) fn turn_starts(&self, turns: &[Value], context: &[(String, Value)], text: &str) -> Option<TurnStarts> {
        if !self.is_growing {
            return None;
        }
        let marked = self.render_template(WITH_TURN_MARKS, turns, context, true).ok()?;
        let (marked, prompt) = marked.rsplit_once(BEGIN)?;
        let (mut starts, mut at) = (Vec::with_capacity(turns.len() + 1), 0);
        for part in marked.split(BEGIN) {
            // The generation prompt comes after all turns.
            if !text[at..].starts_with(part) {
                return None;
            }
            at += part.len();
            starts.push(at);
        }
        let ends = [text[at..].to_owned(), prompt.to_owned()];
        (starts.len() == turns.len() + 1).then_some(TurnStarts { starts, ends })
    }

    fn render_template(
        &self,
        name: &str,
        turns: &[Value],
        context: &[(String, Value)],
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        let ChatFormat { bos_token, eos_token, .. } = &self.format;
        let template = self.environment.get_template(name).map_err(|error| one_line(&error))?;
        // A token that the tokenizer lacks is undefined rather than empty.
        let token = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let own = context! {
            messages => turns,
            add_generation_prompt => add_generation_prompt,
            bos_token => token(bos_token),
            eos_token => token(eos_token),
            // `transformers` defines these two in any case.
            tools => (),
            documents => (),
        };
        template
            .render(match context {
                [] => own,
                more => merge_maps([own, Value::from_pairs(more.iter().cloned())]),
            })
            .map_err(|error| format!("the chat template failed: {}", one_line(&error)))
    }
}

/// Returns the names that a template reads apart from those that are always there. The engine parses the template again.
fn context_names(environment: &Environment) -> Vec<String> {
    let Ok(template) = environment.get_template(NAME) else { return Vec::new() };
    let mut names: Vec<_> = template.undeclared_variables(false).into_iter().collect();
    names.retain(|name| !OWN.contains(&name.as_str()) && environment.globals().all(|(known, _)| known != name));
    names.sort();
    names
}

/// Rewrites `{% generation %}` and `{% endgeneration %}`, which the engine does not know, as calls of a function that adds marks
/// around its content. White space is trimmed as around the tags. Comments, raw blocks and strings stay unchanged.
fn with_calls(template: &str) -> String {
    let rewritten = |piece| match piece {
        Piece::Text(text) => Cow::Borrowed(text),
        Piece::Tag(tag) => match inside(tag) {
            Some("generation") => tag.replacen("generation", "call _generation()", 1).into(),
            Some("endgeneration") => tag.replacen("endgeneration", "endcall", 1).into(),
            _ => tag.into(),
        },
    };
    pieces(template).into_iter().map(rewritten).collect()
}

/// Formats an error of the engine in one line, with the line of the template.
fn one_line(error: &minijinja::Error) -> String {
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    format!("{}{line}", what.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::fixtures::{self, Case};

    fn error(template: &str) -> String {
        let format = ChatFormat { template: template.into(), bos_token: None, eos_token: Some("</s>".into()) };
        let error = match ChatTemplate::new(format) {
            Ok(template) => template.render(&[Message::user("Hi")], true).unwrap_err(),
            Err(error) => error,
        };
        error.to_string()
    }

    #[test]
    fn the_text_is_that_of_transformers_byte_for_byte() {
        let (mut cases, templates) = (0, fixtures::templates());
        for Case { name, messages, context, text, asking, .. } in fixtures::cases() {
            let eot = Some("<|endoftext|>".to_owned());
            let format = ChatFormat { template: templates[&name].clone(), bos_token: eot.clone(), eos_token: eot };
            let template = ChatTemplate::new(format).unwrap();
            assert_eq!(template.render_with(&messages, &context, false).unwrap(), text, "{name}");
            assert_eq!(template.render_with(&messages, &context, true).unwrap(), asking, "{name}");
            cases += 1;
        }
        assert_eq!(cases, 49);
        assert_eq!(templates["default"], ChatTemplate::default_format("").template, "the script reads the same file");
    }

    #[test]
    fn a_template_that_fails_says_why_and_where() {
        assert_eq!(
            error("{{ messages }}\n{{ raise_exception('no ' ~ messages[0].role) }}"),
            "the chat template failed: no user (line 2 of the template)"
        );
        let broken = error("a\n{% for x in %}");
        assert!(broken.starts_with("invalid chat template: ") && broken.contains("(line 2 of"), "{broken}");
        assert!(error("{{ messages[0].content.nonsense() }}").contains("has no method named nonsense"));
        assert!(error("{{ bos_token.x }}").contains("undefined value"));
        assert!(error("{% include 'other' %}").starts_with("invalid chat template: "));
        for endless in [
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ 'x' * 99999999999 }}",
            // Lists that hold another twice: what they print doubles with each.
            "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
            "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
            "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | string }}",
        ] {
            assert!(error(endless).contains("the chat template failed"), "{endless}");
        }
    }

    #[test]
    fn a_long_chain_of_operators_overflows_no_stack() {
        for (template, is_fine) in [
            (format!("{{{{ {}1 }}}}", "not ".repeat(30_000)), true),
            (format!("{{{{ {}1 }}}}", "-".repeat(100_000)), true),
            (format!("{{{{ 1{} }}}}", "|string".repeat(15_000)), true),
            (format!("{{{{ 1{} }}}}", " ~ 1".repeat(30_000)), true),
            (format!("{{{{ {}", "not ".repeat(30_000)), false),
            (" ".repeat(MAX_TEMPLATE + 1), false),
        ] {
            let format = ChatFormat { template, bos_token: None, eos_token: None };
            assert_eq!(ChatTemplate::new(format).is_ok(), is_fine);
        }
    }

    #[test]
    fn none_is_not_iterable() {
        let tests = "{% for x in [tools, 1, '', [], {}] %}{{ x is iterable }} {% endfor %}";
        let format = ChatFormat { template: tests.into(), bos_token: None, eos_token: None };
        assert_eq!(ChatTemplate::new(format).unwrap().render(&[], false).unwrap(), "False False True True True ");
    }

    #[test]
    fn tags_that_overlap_or_never_close_are_an_error() {
        for template in ["{%}", "a {%} b {% generation %}", "{%", "{%%", "{% é"] {
            let format = ChatFormat { template: template.into(), bos_token: None, eos_token: None };
            assert!(ChatTemplate::new(format).is_err(), "{template}");
        }
    }

    #[test]
    fn what_only_looks_like_a_mark_is_none() {
        for (template, text) in [
            ("{# {% generation %} #}a{#- {% endgeneration %} {% raw %} -#}", "a"),
            (
                "{% raw %}{% generation %}{% endgeneration %}{# {{{% endraw %}",
                "{% generation %}{% endgeneration %}{# {{",
            ),
            ("{%- raw -%} {% generation %}{%- endraw -%}", "{% generation %}"),
            ("{{ '{% generation %}' }}{{ \"'{%\" }}", "{% generation %}'{%"),
            ("{{ {'a': {'b': 'c\\'}}{% generation %}'}}.a.b }}", "c'}}{% generation %}"),
            ("{% set x = '%}{% generation %}' %}{{ x }} { % { { }", "%}{% generation %} { % { { }"),
        ] {
            let format = ChatFormat { template: template.into(), bos_token: None, eos_token: None };
            let template = ChatTemplate::new(format).unwrap();
            assert!(!template.has_marks(), "{text}");
            assert_eq!(template.render_turns(&[], &[], false).unwrap(), text);
        }
        let both = "{# {% generation %} #}{% raw %}{%{% endraw %}{{ '{#' }}{% generation %}a{% endgeneration %}";
        let format = ChatFormat { template: both.into(), bos_token: None, eos_token: None };
        assert_eq!(
            ChatTemplate::new(format).unwrap().render_turns(&[], &[], false).unwrap(),
            format!("{{%{{#{BEGIN}a{END}")
        );
    }

    #[test]
    fn marks_of_what_is_generated_are_seen_however_they_are_written() {
        for (tags, text) in [
            ("a {% generation %} b {% endgeneration %} c", "a [ b ] c"),
            ("a {%- generation -%} b {%- endgeneration -%} c", "a[b]c"),
            ("{%generation%}{% if true %}b{% endif %}{%   endgeneration%}", "[b]"),
        ] {
            let format = ChatFormat { template: tags.into(), bos_token: None, eos_token: None };
            let template = ChatTemplate::new(format).unwrap();
            assert!(template.has_marks());
            let marked = template.render_turns(&[], &[], false).unwrap();
            assert_eq!(marked.replace(BEGIN, "[").replace(END, "]"), text, "{tags}");
            assert_eq!(template.render(&[], false).unwrap(), text.replace(['[', ']'], ""));
        }
    }
}
