//! Reads what a user types at a terminal: a line with editing, history and completion, or several lines at once.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{
    Cmd, ColorMode, CompletionType, ConditionalEventHandler, Config, Context, Editor, Event, EventContext,
    EventHandler, Helper, KeyEvent, Movement, RepeatCount,
};

use crate::progress::write_line;

/// Entries that the history file keeps.
const MAX_HISTORY: usize = 1_000;

/// Opens and closes a text of several lines.
const QUOTES: &str = "\"\"\"";

/// The end of a line as it was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// Enter; the text may have several lines.
    Text(String),
    /// Ctrl-C on an empty line. On any other it clears the line.
    Interrupted,
    /// Ctrl-D on an empty line.
    End,
}

/// A line editor for stdin and stdout, both of which are a terminal.
///
/// A line that ends in `\`, or begins with `"""` that is not closed yet, continues on the next one. A paste arrives as one
/// text, however many lines it has, where the terminal marks pastes.
pub struct LineEditor {
    editor: Editor<Commands, FileHistory>,
    /// File that every entry is added to; `None` keeps the history in memory.
    history: Option<PathBuf>,
}

impl LineEditor {
    /// Returns an editor that completes these `/commands`, with the history of earlier sessions.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub fn new(commands: &'static [&'static str]) -> anyhow::Result<Self> {
        let config = Config::builder()
            .max_history_size(MAX_HISTORY)?
            .history_ignore_dups(true)?
            .history_ignore_space(true)
            .auto_add_history(true)
            .completion_type(CompletionType::List)
            .color_mode(ColorMode::Enabled)
            .build();
        let mut editor = Editor::with_config(config).context("cannot read from the terminal")?;
        editor.set_helper(Some(Commands(commands)));
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(ClearOrInterrupt)));
        for key in [KeyEvent::from('\r'), KeyEvent::ctrl('J')] {
            editor.bind_sequence(key, EventHandler::Conditional(Box::new(ContinueOrAccept)));
        }
        let mut history = history_file();
        if let Some(path) = &history
            && let Err(error) = open_history(&mut editor, path)
        {
            write_line(&format!("note: the history is not saved: {}: {error}", path.display()));
            history = None;
        }
        Ok(Self { editor, history })
    }

    /// Reads a text after a prompt; `styled` is the same with colours.
    ///
    /// # Errors
    /// A terminal that cannot be read.
    pub fn read(&mut self, prompt: &str, styled: &str) -> anyhow::Result<Typed> {
        let text = match self.editor.readline(&(prompt, styled)) {
            Ok(text) => text,
            Err(ReadlineError::Interrupted) => return Ok(Typed::Interrupted),
            Err(ReadlineError::Eof) => return Ok(Typed::End),
            Err(error) => return Err(error).context("cannot read from the terminal"),
        };
        // The file is a convenience: a disk that fills up later does not end the session.
        if self.history.as_ref().is_some_and(|path| self.editor.append_history(path).is_err()) {
            self.history = None;
        }
        Ok(Typed::Text(text))
    }
}

/// Returns the text between `"""` and `"""`, or `None` if `text` is not quoted.
pub fn quoted(text: &str) -> Option<&str> {
    text.trim().strip_prefix(QUOTES)?.strip_suffix(QUOTES)
}

/// Returns true if `text` begins with `"""` that is not closed.
fn is_open(text: &str) -> bool {
    text.trim_start().starts_with(QUOTES) && quoted(text).is_none()
}

/// Path of the history, by the XDG base directory specification: `$XDG_STATE_HOME/ngen3/chat_history`, or below
/// `~/.local/state`. `None` without a home directory.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(std::env::home_dir()?.join(".local/state")))?;
    Some(state.join("ngen3/chat_history"))
}

/// Creates the folder of the history, for its owner only, and loads the file if it exists.
fn open_history(editor: &mut Editor<Commands, FileHistory>, path: &Path) -> Result<(), ReadlineError> {
    let mut folder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
    folder.recursive(true).create(path.parent().expect("the path has two folders at least"))?;
    if path.exists() { editor.load_history(path) } else { Ok(()) }
}

/// Ctrl-C: clears a line, or interrupts on an empty one.
struct ClearOrInterrupt;

impl ConditionalEventHandler for ClearOrInterrupt {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext) -> Option<Cmd> {
        Some(if context.line().is_empty() { Cmd::Interrupt } else { Cmd::Kill(Movement::WholeBuffer) })
    }
}

/// Enter: starts another line of an unfinished text, or accepts it.
struct ContinueOrAccept;

impl ConditionalEventHandler for ContinueOrAccept {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext) -> Option<Cmd> {
        let (line, position) = (context.line(), context.pos());
        if is_open(line) {
            Some(Cmd::Newline)
        } else if line.ends_with('\\') && position == line.len() {
            // Commands::complete replaces the backslash: a handler returns one command, and Cmd::Replace leaves the cursor
            // before its text.
            Some(Cmd::Complete)
        } else {
            None
        }
    }
}

/// Completes the commands of the conversation, and a backslash to a line break.
struct Commands(&'static [&'static str]);

impl Completer for Commands {
    type Candidate = String;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..position];
        if typed.ends_with('\\') {
            return Ok((position - 1, vec!["\n".into()]));
        }
        let matching = self.0.iter().filter(|name| typed.starts_with('/') && name.starts_with(typed));
        Ok((0, matching.map(ToString::to_string).collect()))
    }
}

impl Hinter for Commands {
    type Hint = String;
}

impl Highlighter for Commands {}
impl Validator for Commands {}
impl Helper for Commands {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quotes_open_and_close_a_text() {
        for (text, open, inside) in [
            ("plain", false, None),
            (r#"""""#, true, None),
            (r#"  """one"#, true, None),
            ("\"\"\"one\ntwo\"\"\" ", false, Some("one\ntwo")),
            (r#""""""""#, false, Some("")),
            (r#"say """ and"#, false, None),
        ] {
            assert_eq!((is_open(text), quoted(text)), (open, inside), "{text}");
        }
    }
}
