//! Reads a file of conversations, one after the other.
//!
//! JSON lines (one conversation each), one JSON list of conversations, JSON values of several lines (one conversation each, as
//! pretty-printed), or text (one dialogue per line). The extension `.jsonl`, `.json` or `.txt` tells JSON from text, otherwise
//! the first character does. Empty lines are skipped.

use std::fmt;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::parse::{ChatParser, ParsedChat, TURNS};
use crate::Error;
use crate::hf::TURN_FIELDS;
use crate::source::bytes::archive::{Content, look_inside};
use crate::source::bytes::kind::{advice, binary_of, table_of};
use crate::source::bytes::limited::read_line;
use crate::source::bytes::members::{TextMember, each_text_member};
use crate::source::bytes::open::{ByteSource, open, open_file, peek, without_compression};
use crate::source::bytes::read_error::read_error;
use crate::source::text::encoding::{TextSource, open_text};
use crate::source::{TextEncoding, TextOptions};

/// Bytes inspected to detect the form of a file.
const LOOK: usize = 1 << 16;
const BUFFER: usize = 1 << 18;

/// Position of a conversation in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::chat) struct RecordPosition {
    /// Unit of the position: `line`, `record` or `conversation`.
    pub unit: &'static str,
    /// Number of the unit, from 1.
    pub number: u64,
}

impl fmt::Display for RecordPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.unit, self.number)
    }
}

/// Receives a conversation, or the reason why there is none at this position.
type ConversationFn<'a> = dyn FnMut(RecordPosition, Result<ParsedChat, String>) -> Result<(), Error> + 'a;

/// Receives the same with the name of the file, or of the member of an archive.
pub(in crate::chat) type NamedConversationFn<'a> =
    dyn FnMut(&str, RecordPosition, Result<ParsedChat, String>) -> Result<(), Error> + 'a;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileForm {
    JsonLines,
    JsonList,
    /// Values that span several lines.
    JsonValues,
    Lines,
}

/// Reads the conversations of a file, or of stdin if the path is `-`; compressed ones are decompressed, and the members of an archive
/// are read in turn. `note` receives messages for the user.
///
/// # Errors
/// [`Error::Read`] for a file that is missing or unreadable, or a malformed JSON list; any error of `take`.
pub(in crate::chat) fn read_file(
    path: &Path,
    parser: &ChatParser,
    encoding: Option<TextEncoding>,
    note: &mut dyn FnMut(String),
    take: &mut NamedConversationFn,
) -> Result<(), Error> {
    let (name, source) = if path == Path::new("-") {
        ("stdin".to_owned(), open("stdin", io::stdin(), false)?)
    } else {
        let name = path.display().to_string();
        if path.is_dir() {
            let reason = "expected a file of conversations or the data.bin of a dataset, got a folder";
            return Err(Error::read(name, reason));
        }
        let source = open_file(&name, path)?;
        (name, source)
    };
    match look_inside(&name, source, &std::env::temp_dir())? {
        Content::Document(source) => {
            read(&name, &name, source, parser, encoding, note, &mut |at, found| take(&name, at, found))
        }
        Content::Archive(archive) => {
            let refuse = |path: &str| {
                let format = table_of(path).filter(|format| !format.starts_with("JSON"))?;
                Some(format!("expected conversations, got {format} by its name; use ngen3 hf_tokenize --chats"))
            };
            let skipped = each_text_member(&name, archive, &refuse, &mut |TextMember { name, path, source }| {
                read(&name, path, source, parser, encoding, note, &mut |at, found| take(&name, at, found))?;
                Ok(true)
            })?;
            skipped.note(&name).into_iter().for_each(note);
            Ok(())
        }
    }
}

/// Reads one file, whose form its `path` may tell.
fn read(
    name: &str,
    path: &str,
    opened: ByteSource,
    parser: &ChatParser,
    encoding: Option<TextEncoding>,
    note: &mut dyn FnMut(String),
    take: &mut ConversationFn,
) -> Result<(), Error> {
    let file = path.to_ascii_lowercase();
    let ending = without_compression(&file).rsplit_once('.').map_or("", |(_, ending)| ending);
    let TextSource { mut bytes, compressed, note: detected, .. } =
        open_text(name, opened, TextOptions { encoding, lossy: false })?;
    detected.into_iter().for_each(note);
    let failed = |error: io::Error| read_error(name, compressed, &error);
    let start = peek(&mut bytes, LOOK).map_err(failed)?;
    if let Some(what) = binary_of(&start) {
        return Err(Error::read(name, format!("expected conversations, got {what}; {}", advice(what, name))));
    }
    let form = form_of(ending, &start);
    let mut bytes = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(bytes));
    match form {
        FileForm::JsonList => return read_list(name, compressed, &mut bytes, parser, take),
        FileForm::JsonValues => return read_values(name, compressed, &mut bytes, parser, take),
        FileForm::JsonLines | FileForm::Lines => {}
    }
    let (mut line, mut number) = (Vec::new(), 0);
    while read_line(name, compressed, &mut bytes, &mut line, &mut number)? {
        let found = match std::str::from_utf8(&line) {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) if form == FileForm::JsonLines => parser.json_line(line),
            Ok(line) => parser.line(line),
            Err(error) => Err(format!("invalid UTF-8 at byte {} of the line", error.valid_up_to() + 1)),
        };
        take(RecordPosition { unit: "line", number }, found)?;
    }
    Ok(())
}

/// Detects the form of a file by its extension and its first bytes.
fn form_of(ending: &str, start: &[u8]) -> FileForm {
    let text = String::from_utf8_lossy(start);
    let text = text.trim_start();
    let json = match ending {
        "txt" => false,
        "jsonl" | "json" => true,
        _ => text.starts_with(['{', '[']),
    };
    // A complete value ends with a quote or a closing bracket.
    let goes_on = || text.split_once('\n').is_some_and(|(line, _)| line.trim_end().ends_with(['{', '[', ',']));
    match text.strip_prefix('[') {
        _ if !json => FileForm::Lines,
        // A list of strings or of turns is one conversation. Any other list holds all conversations.
        Some(inside) if !is_turn(inside.trim_start()) => FileForm::JsonList,
        _ if ending != "jsonl" && goes_on() => FileForm::JsonValues,
        _ => FileForm::JsonLines,
    }
}

/// True if a list is empty or its first item is a turn: a string, or an object with a turn's keys and none of a conversation's.
fn is_turn(text: &str) -> bool {
    if !text.starts_with('{') {
        return text.starts_with(['"', ']']);
    }
    let mut keys = Vec::new();
    // The text may be truncated: the keys up to there have to do.
    let _ = Keys(&mut keys).deserialize(&mut serde_json::Deserializer::from_str(text));
    let has = |name: &str| keys.iter().any(|key| key == name);
    let is_conversation = has("text") || TURNS.into_iter().any(has);
    !is_conversation && TURN_FIELDS.into_iter().any(|(speaker, content)| has(speaker) || has(content))
}

/// Collects the keys of an object, in order, until it ends or is malformed.
struct Keys<'a>(&'a mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key()? {
            self.0.push(key);
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// Reads JSON values that span several lines, one conversation each.
fn read_values(
    name: &str,
    compressed: bool,
    bytes: &mut impl Read,
    parser: &ChatParser,
    take: &mut ConversationFn,
) -> Result<(), Error> {
    let values = serde_json::Deserializer::from_reader(bytes).into_iter::<Value>();
    for (before, value) in (0..).zip(values) {
        let value = value.map_err(|error| broken(name, compressed, before, error))?;
        take(RecordPosition { unit: "conversation", number: before + 1 }, parser.json(&value))?;
    }
    Ok(())
}

/// Makes the error for invalid JSON after `number` conversations.
fn broken(name: &str, compressed: bool, number: u64, error: serde_json::Error) -> Error {
    if error.is_io() {
        return read_error(name, compressed, &io::Error::from(error));
    }
    Error::Read { name: name.into(), reason: format!("invalid JSON after conversation {number}: {error}") }
}

/// Reads one JSON list of conversations, which need not fit in memory.
fn read_list(
    name: &str,
    compressed: bool,
    bytes: &mut impl Read,
    parser: &ChatParser,
    take: &mut ConversationFn,
) -> Result<(), Error> {
    let (mut number, mut outcome) = (0, Ok(()));
    let mut json = serde_json::Deserializer::from_reader(bytes);
    let result = Items { number: &mut number, outcome: &mut outcome, parser, take }.deserialize(&mut json);
    outcome?;
    result.and_then(|()| json.end()).map_err(|error| broken(name, compressed, number, error))
}

/// Reads the items of a list and passes each to `take` at once.
struct Items<'a, 'b> {
    number: &'a mut u64,
    outcome: &'a mut Result<(), Error>,
    parser: &'a ChatParser,
    take: &'a mut ConversationFn<'b>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of conversations")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<(), S::Error> {
        while let Some(value) = seq.next_element::<Value>()? {
            *self.number += 1;
            let place = RecordPosition { unit: "conversation", number: *self.number };
            *self.outcome = (self.take)(place, self.parser.json(&value));
            if self.outcome.is_err() {
                return Err(S::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, slice};

    use serde_json::json;

    use super::*;
    use crate::chat::{Conversation, Message};

    /// A position, and a conversation or the reason why there is none.
    type Entry = (String, Result<Conversation, String>);

    /// Returns the conversations of a file with this name and content.
    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Entry>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let mut found = Vec::new();
        read_file(&path, &ChatParser::default(), None, &mut |_| (), &mut |_, place, parsed| {
            // Other keys of turns are no matter of files.
            let conversation = parsed.map(|parsed| match parsed.conversation {
                Conversation::Turns { mut messages, context } => {
                    messages.iter_mut().for_each(|message| message.fields.clear());
                    Conversation::Turns { messages, context }
                }
                text => text,
            });
            found.push((place.to_string(), conversation));
            Ok(())
        })
        .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))?;
        Ok(found)
    }

    fn two_turns() -> Result<Conversation, String> {
        Ok(Conversation::turns(vec![Message::user("a"), Message::assistant("b")]))
    }

    #[test]
    fn every_kind_of_file_is_told_by_its_name_and_its_beginning() {
        let object = r#"{"messages": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]}"#;
        let turns = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
        let list = r#"["a", "b"]"#;
        for one in [object, turns, list] {
            for name in ["x.jsonl", "x.json", "x"] {
                let lines = read(name, format!("\u{feff}{one}\n\n  {one}\r\n{one}")).unwrap();
                let expected = ["line 1", "line 3", "line 4"].map(|place| (place.to_string(), two_turns()));
                assert_eq!(lines, expected, "{name}: {one}");
            }
            for all in [format!("[\n  {one},\n  {one}\n]\n"), format!("[{one},{one}]")] {
                let expected = ["conversation 1", "conversation 2"].map(|place| (place.to_string(), two_turns()));
                assert_eq!(read("x.json", &all).unwrap(), expected, "{all}");
            }
        }
        for name in ["x.TXT", "x"] {
            let lines = read(name, "a\tb\n\na __eou__ b __eou__\nplain").unwrap();
            assert_eq!(lines[..2], [("line 1".into(), two_turns()), ("line 3".into(), two_turns())]);
            assert_eq!(lines[2], ("line 4".into(), Ok(Conversation::text("plain"))));
        }
        assert_eq!(read("x.txt", "[aside] a").unwrap()[0].1, Ok(Conversation::text("[aside] a")));
        assert_eq!(read("x.jsonl", "").unwrap(), []);
        assert_eq!(read("x.json", "[]").unwrap()[0].1, Err("expected at least one turn, got none".into()));
    }

    #[test]
    fn the_whole_first_element_tells_what_a_list_is() {
        let turns = r#"[{"id": 1, "role": "user", "content": "a"}, {"id": 2, "role": "assistant", "content": "b"}]"#;
        let line = ("line 1".to_owned(), two_turns());
        assert_eq!(read("x.jsonl", turns).unwrap(), slice::from_ref(&line));
        // The object ends far beyond the inspected bytes.
        let long = format!(r#"[{{"id": 1, "role": "user", "content": "{}"}}]"#, "long ".repeat(LOOK));
        assert_eq!(read("x.jsonl", format!("{long}\n{long}")).unwrap().len(), 2);
        let list = r#"[{"from": "wiki", "messages": ["a", "b"]}, {"from": "web", "text": "a\tb"}]"#;
        let expected = ["conversation 1", "conversation 2"].map(|place| (place.to_owned(), two_turns()));
        assert_eq!(read("x.json", list).unwrap(), expected);
        let long = format!(r#"[{{"from": "wiki", "messages": ["{}"]}}]"#, "long ".repeat(LOOK));
        assert_eq!(read("x.json", long).unwrap()[0].0, "conversation 1");
    }

    #[test]
    fn json_that_is_printed_for_people_is_read() {
        for one in [
            json!({"id": 1, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
            json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]),
            json!(["a", "b"]),
        ] {
            let expected = ["conversation 1", "conversation 2"].map(|place| (place.to_owned(), two_turns()));
            assert_eq!(read("x.json", format!("{one:#}\n")).unwrap(), expected[..1], "{one}");
            assert_eq!(read("x", format!("\n{one:#}\n\n{one:#}")).unwrap(), expected, "{one}");
        }
        let error = read("x.json", "{\n  \"messages\": [\n").unwrap_err();
        assert!(error.starts_with("x.json: invalid JSON after conversation 0: EOF"), "{error}");
        // In a `.jsonl` file each line is parsed on its own.
        let found = read("x.jsonl", "{\n[\"a\", \"b\"]").unwrap();
        assert_eq!((found.len(), &found[1]), (2, &("line 2".to_owned(), two_turns())));
    }

    #[test]
    fn a_bad_line_far_down_is_named_and_the_rest_is_read() {
        let mut text = "[\"a\", \"b\"]\n".repeat(39_999);
        text += "{\"messages\": [{\"role\": \"user\", \"content\": \"a\n[\"a\", \"b\"]\n";
        let found = read("x.jsonl", &text).unwrap();
        assert_eq!(found.len(), 40_001);
        let (place, reason) = &found[39_999];
        assert_eq!(place, "line 40000");
        assert!(reason.as_ref().unwrap_err().starts_with("invalid JSON: "), "{reason:?}");
        assert_eq!(found[40_000], ("line 40001".into(), two_turns()));
        let found = read("x.txt", b"a\tb\nc\xff\td\n").unwrap();
        assert_eq!(found[1], ("line 2".into(), Err("invalid UTF-8 at byte 2 of the line".into())));
    }

    #[test]
    fn a_broken_list_is_an_error_of_the_file() {
        let error = read("x.json", r#"[["a", "b"], ["a", "#).unwrap_err();
        assert_eq!(error, "x.json: invalid JSON after conversation 1: EOF while parsing a value at line 1 column 19");
        let error = read("x.json", r#"[["a", "b"]] more"#).unwrap_err();
        assert!(error.contains("after conversation 1") && error.contains("trailing characters"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let fail = |path: &Path| {
            let result = read_file(path, &ChatParser::default(), None, &mut |_| (), &mut |_, _, _| Ok(()));
            result.unwrap_err().to_string()
        };
        let error = fail(folder.path());
        assert!(error.contains("got a folder"), "{error}");
        let error = fail(&folder.path().join("no"));
        assert!(error.contains("no such file"), "{error}");
    }
}
