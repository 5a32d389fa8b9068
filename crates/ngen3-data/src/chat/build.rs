//! Builds the folder `_data_NAME_` from conversations.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::encode::ChatEncoder;
use super::gather::{ChatInput, ChatReading, gather};
use super::marks;
use crate::dataset::{DatasetBuilder, DatasetFolder, commit_dataset};
use crate::source::Event;
use crate::token_file::{ChatMeta, DATA_FILE, DatasetMeta, Dtype, MASK_FILE};
use crate::{Error, TokenizerFile};

/// Arguments of [`build_chats`].
#[derive(Debug)]
pub struct ChatSpec<'a> {
    /// Dataset name.
    pub name: &'a str,
    /// The conversations.
    pub input: ChatInput<'a>,
    /// Hugging Face tokenizer.json; `None` for the built-in GPT-2 tokenizer.
    pub tokenizer: Option<TokenizerFile<'a>>,
    /// Jinja chat template; `None` for the default.
    pub template: Option<&'a str>,
    /// How to read the conversations.
    pub reading: ChatReading,
    /// Parent of the dataset's folder.
    pub root: &'a Path,
}

/// Result of [`build_chats`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatSummary {
    /// Path of the token file.
    pub data: PathBuf,
    /// Number of conversations.
    pub conversations: u64,
    /// Number of tokens.
    pub tokens: u64,
    /// Number of tokens that count toward the loss.
    pub num_target_tokens: u64,
}

/// Builds a dataset of conversations as [`crate::build_dataset`] does, with `mask.bin` beside `data.bin`.
///
/// # Errors
/// As [`crate::build_dataset`]; [`Error::Read`] naming a bad conversation.
pub fn build_chats(spec: &ChatSpec, stop: &AtomicBool, progress: &mut dyn FnMut(Event)) -> Result<ChatSummary, Error> {
    let DatasetBuilder { folder, tokenizer, .. } = DatasetBuilder::new(spec.name, spec.root, spec.tokenizer, 1, stop)?;
    let folder = DatasetFolder::create(folder)?;
    let data = folder.path.join(DATA_FILE);
    let encoder = ChatEncoder::with_template(tokenizer.clone(), spec.template)?;
    let mut ids = folder.writer(DATA_FILE, Dtype::for_vocab(tokenizer.vocab_size()))?;
    let mut mask = folder.writer(MASK_FILE, Dtype::Uint16)?;
    let (mut conversations, mut num_target_tokens) = (0, 0);
    let gathered = gather(spec.input, &encoder, &spec.reading, stop, progress, &mut |found| {
        conversations += 1;
        num_target_tokens += found.encoded.marks.iter().filter(|&&mark| mark & marks::TARGET != 0).count() as u64;
        ids.push(&found.encoded.ids)?;
        mask.push_bytes(&found.encoded.marks)
    })?;
    if conversations == 0 {
        return Err(Error::Input("the input contains no conversations; nothing was written".into()));
    }
    if num_target_tokens == 0 {
        return Err(Error::Input(
            "the conversations have no tokens to train on: expected assistant turns, rendered by the chat template; \
             nothing was written (to train on every turn, give the conversations to finetune with --train_on all)"
                .into(),
        ));
    }
    let tokens = ids.tokens;
    let meta = DatasetMeta {
        tokenizer: tokenizer.name().into(),
        vocab_size: tokenizer.vocab_size(),
        dtype: Dtype::for_vocab(tokenizer.vocab_size()),
        tokens,
        documents: conversations,
        source: gathered.files,
        sha256: String::new(),
        tokenizer_sha256: None,
        missing_characters: Some(encoder.missing().count).filter(|&count| count > 0),
        chat: Some(Box::new(ChatMeta {
            mask_sha256: String::new(),
            mask: MEANING.into(),
            format: encoder.template().format().clone(),
        })),
    };
    commit_dataset(folder, ids, Some(mask), meta, &tokenizer)?;
    Ok(ChatSummary { data, conversations, tokens, num_target_tokens })
}

/// Explains the marks in `meta.json`; see [`marks`].
const MEANING: &str = "one byte for each token of data.bin, the sum of: 1 the token is learned (it is the assistant's, or of a text \
     without turns), 2 first token of a conversation, 4 first token of a turn, 8 the token is never learned";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::TokenFile;
    use crate::chat::{ChatTemplate, Chats};

    static GO: AtomicBool = AtomicBool::new(false);

    fn reading(skip_bad: bool) -> ChatReading {
        ChatReading { answers: true, skip_bad, ..ChatReading::default() }
    }

    fn spec<'a>(root: &'a Path, files: &'a [PathBuf]) -> ChatSpec<'a> {
        ChatSpec {
            name: "x",
            input: ChatInput::Files(files, None),
            tokenizer: None,
            template: None,
            reading: reading(false),
            root,
        }
    }

    fn error(result: Result<ChatSummary, Error>, root: &Path) -> String {
        result.unwrap_err().to_string().replace(&format!("{}/", root.display()), "")
    }

    #[test]
    fn a_dataset_has_the_tokens_and_the_mask_of_what_was_read() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let files = [root.join("a.jsonl"), root.join("b.txt")];
        fs::write(&files[0], "[\"Hi\", \"Yes\"]\n").unwrap();
        fs::write(&files[1], "plain text\n").unwrap();
        let made = build_chats(&spec(root, &files), &GO, &mut |_| {}).unwrap();
        assert_eq!((made.conversations, made.tokens, made.num_target_tokens), (2, 12, 5));
        let file = TokenFile::open(&made.data).unwrap();
        let meta = file.meta().unwrap();
        assert_eq!((meta.documents, meta.tokens), (2, 12));
        let chat = meta.chat.as_ref().unwrap();
        assert_eq!(chat.format, ChatTemplate::default_format("<|endoftext|>"));
        assert!(chat.mask.contains("1 the token is learned"));
        let mask = fs::read(root.join("_data_x_/mask.bin")).unwrap();
        assert_eq!(mask, [6, 0, 0, 0, 4, 0, 0, 1, 1, 3, 1, 1]);
        let chats = Chats::open(&made.data).unwrap().unwrap();
        assert_eq!((chats.count(), chats.have_turns()), (2, true));
        assert_eq!(chats.source(), files.each_ref().map(|path| path.display().to_string()));

        // The same in memory.
        let encoder = ChatEncoder::new(crate::Tokenizer::gpt2(), None).unwrap();
        let input = ChatInput::Files(&files, None);
        let read = Chats::read("x", input, &encoder, &reading(false), &GO, &mut |_| {}).unwrap();
        assert_eq!(read.marks(), mask);
        let tokens = |chats: &Chats| {
            let mut ids = Vec::new();
            chats.copy(0..chats.marks().len(), &mut ids);
            ids
        };
        assert_eq!(tokens(&read), tokens(&chats));
        read.check_vocab(50_257).unwrap();
        assert!(read.check_vocab(50_256).unwrap_err().to_string().contains("x: token 50256 is outside"));

        // A mask that does not match is refused; a dataset of plain text has none.
        fs::write(root.join("_data_x_/mask.bin"), &mask[1..]).unwrap();
        let told = Chats::open(&made.data).unwrap_err().to_string();
        assert!(told.ends_with("mask.bin: expected one byte for each of 12 tokens, got 11 bytes; tokenize again"));
        fs::write(root.join("_data_x_/mask.bin"), [2; 12]).unwrap();
        assert!(Chats::open(&made.data).unwrap_err().to_string().contains("has changed since it was made"));
        fs::remove_file(root.join("_data_x_/mask.bin")).unwrap();
        assert!(Chats::open(&made.data).unwrap_err().to_string().contains("mask.bin: No such file"));
        let sources = [crate::source::Source::Shakespeare];
        build_chats(&spec(root, &files), &GO, &mut |_| {}).unwrap();
        let plain = crate::DatasetSpec {
            name: "x",
            sources: &sources,
            tokenizer: None,
            text: crate::source::TextOptions::default(),
            split_by: crate::source::SplitBy::Document,
            eot_splits: None,
            threads: 1,
            root,
        };
        crate::build_dataset(&plain, &GO, &mut |_| {}).unwrap();
        assert!(!root.join("_data_x_/mask.bin").exists());
        assert!(Chats::open(&made.data).unwrap().is_none());
    }

    #[test]
    fn completions_have_no_turns_and_so_no_template() {
        let root = tempfile::tempdir().unwrap();
        let files = [root.path().join("a.jsonl")];
        let encoder = ChatEncoder::new(crate::Tokenizer::gpt2(), None).unwrap();
        for (line, turns) in [
            ("{\"prompt\": \"one\", \"completion\": \" two\"}", false),
            ("{\"prompt\": \"one\", \"response\": \" two\"}", true),
        ] {
            fs::write(&files[0], line).unwrap();
            let input = ChatInput::Files(&files, None);
            let read = Chats::read("x", input, &encoder, &reading(false), &GO, &mut |_| {}).unwrap();
            assert_eq!(read.have_turns(), turns, "{line}");
        }
    }

    #[test]
    fn the_first_bad_conversation_is_named_or_all_are_counted() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let files = [root.join("a.jsonl")];
        let mut lines = vec!["[\"Hi\", \"Yes\"]"; 3_000];
        lines[1_499] = "[\"Hi\", \"x\u{fdd0}\"]";
        lines[2_499] = "{\"messages\": []}";
        lines[2_999] = "{\"messages\": [";
        fs::write(&files[0], lines.join("\n")).unwrap();
        let told = error(build_chats(&spec(root, &files), &GO, &mut |_| {}), root);
        assert_eq!(
            told,
            "a.jsonl: line 1500: turn 2: invalid character U+FDD0 (use --skip_bad to skip such conversations)"
        );
        assert!(!root.join("_data_x_").exists());
        let mut notes = Vec::new();
        let skipping = ChatSpec { reading: reading(true), ..spec(root, &files) };
        let made = build_chats(&skipping, &GO, &mut |event| {
            if let Event::Note(note) = event {
                notes.push(note.replace(&format!("{}/", root.display()), ""));
            }
        });
        assert_eq!(made.unwrap().conversations, 2_997);
        let first = "a.jsonl: line 1500: turn 2: invalid character U+FDD0";
        assert_eq!(notes, [format!("skipped 3 bad conversations; the first: {first}")]);
        let asked = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}";
        for (line, template) in [(asked, None), ("[\"Hi\", \"Yes\"]", Some("layers = 2"))] {
            fs::write(&files[0], line).unwrap();
            let told =
                error(build_chats(&ChatSpec { template, reading: reading(true), ..skipping }, &GO, &mut |_| {}), root);
            assert!(told.starts_with("the conversations have no tokens to train on: expected assistant"), "{told}");
        }
        fs::write(&files[0], "\n\n").unwrap();
        assert!(error(build_chats(&skipping, &GO, &mut |_| {}), root).contains("contains no conversations"));
        let stopped = build_chats(&skipping, &AtomicBool::new(true), &mut |_| {});
        assert!(matches!(stopped, Err(Error::Input(_))), "there is nothing to interrupt");
        fs::write(&files[0], "[\"Hi\", \"Yes\"]").unwrap();
        assert!(matches!(build_chats(&skipping, &AtomicBool::new(true), &mut |_| {}), Err(Error::Interrupted)));
    }
}
