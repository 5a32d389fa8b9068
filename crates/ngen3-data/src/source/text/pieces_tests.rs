use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;
use crate::source::DocumentReader;

/// Returns the documents and the number of blank ones, for a text that comes in parts of `step` bytes.
fn split(text: &str, by: &SplitBy, marker: Option<&str>, step: usize) -> (Vec<String>, u64) {
    let (text, by, marker) = (text.to_owned(), by.clone(), marker.map(str::to_owned));
    let (result, blank) = std::sync::mpsc::channel();
    let mut reader = DocumentReader::spawn(move |sender| {
        let cut = |text: &str| text.rfind(' ');
        let mut splitter = Splitter::new(&sender, &cut, &by, marker.as_deref());
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.ceil_char_boundary(step.min(rest.len())));
            splitter.buffer().push_str(part);
            splitter.push()?;
            rest = after;
        }
        splitter.finish()?;
        result.send(splitter.blank).unwrap();
        Ok(())
    })
    .unwrap();
    let (mut documents, mut current) = (Vec::new(), String::new());
    while let Some(chunk) = reader.next(&AtomicBool::new(false), &mut |_| ()).unwrap() {
        match chunk {
            TextChunk::Text(text) => current.push_str(&text),
            TextChunk::EndOfDocument => documents.push(std::mem::take(&mut current)),
            TextChunk::Documents { text, ends } => {
                let mut start = 0;
                for end in ends {
                    documents.push(text[start..end].to_owned());
                    start = end;
                }
            }
        }
    }
    assert!(current.is_empty());
    (documents, blank.recv().unwrap())
}

const END: &str = "<|endoftext|>";

#[test]
fn texts_are_split_where_asked() {
    let separator = |text: &str| SplitBy::Separator(text.into());
    for (text, by, marker, expected, blank) in [
        ("a\n\nb\n", SplitBy::Document, None, vec!["a\n\nb\n"], 0),
        ("a\nb\r\n\r\nc", SplitBy::Line, None, vec!["a", "b", "c"], 1),
        ("a\n", SplitBy::Line, None, vec!["a"], 0),
        ("\n\n  a\nb\n \t\n\n\n  c\r\n\r\nd\n", SplitBy::Paragraph, None, vec!["  a\nb", "  c", "d"], 0),
        ("a===b======c===", separator("==="), None, vec!["a", "b", "c"], 1),
        ("a\n---\nb", separator("\n---\n"), None, vec!["a", "b"], 0),
        ("a<|endoftext|>\nb<|endoftext|>\n", SplitBy::Document, Some(END), vec!["a", "\nb"], 0),
        ("<|endoftext|>a<|endoftext|> <|endoftext|>b", SplitBy::Document, Some(END), vec!["a", "b"], 2),
        ("a\n\nb<|endoftext|>c", SplitBy::Paragraph, Some(END), vec!["a", "b", "c"], 0),
        ("a<|endoftext|>b", SplitBy::Document, None, vec!["a<|endoftext|>b"], 0),
        ("", SplitBy::Line, None, vec![], 0),
    ] {
        for step in [1, 2, 3, 100] {
            assert_eq!(
                split(text, &by, marker, step),
                (expected.iter().map(|&text| text.into()).collect(), blank),
                "{text:?} {by:?}"
            );
        }
    }
}

#[test]
fn long_documents_between_separators_are_whole() {
    let long = "words and ".repeat(400_000);
    let text = format!("{long}{END}{long}\n\nshort\n\n{long}");
    let (documents, _) = split(&text, &SplitBy::Paragraph, Some(END), 1 << 18);
    assert!(documents == [long.clone(), long.clone(), "short".into(), long], "{}", documents.len());
}

proptest! {
    #[test]
    fn parts_do_not_matter(text in "[ab\r\n <|=]{0,40}", step in 1usize..5, which in 0usize..5, marked: bool) {
        let by = [
            SplitBy::Document,
            SplitBy::Paragraph,
            SplitBy::Line,
            SplitBy::Separator("==".into()),
            SplitBy::Separator("<|\n".into()),
        ][which].clone();
        let marker = marked.then_some("<|");
        prop_assert_eq!(split(&text, &by, marker, step), split(&text, &by, marker, 1000));
    }

    #[test]
    fn a_marker_is_counted_across_parts(parts in prop::collection::vec("[<|e>é]{0,6}", 0..8)) {
        let marker = "<|e|>";
        let mut counted = MarkerCount::new(marker);
        parts.iter().for_each(|part| counted.push(part));
        prop_assert_eq!(counted.count, parts.concat().matches(marker).count() as u64);
    }
}
