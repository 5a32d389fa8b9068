//! Perplexity of a text.
//!
//! Every token of the text is predicted once, the first one from the token between documents, such as `<|endoftext|>`. A window of one block moves over the text
//! by `stride` tokens; the first window scores all of its tokens, every later one only the new ones. With a stride of one
//! block this is the harness's `loglikelihood_rolling`; a smaller stride gives each token more context.
//!
//! Token perplexity is exp of the mean loss. Byte perplexity and bits per byte exclude the loss of special tokens (ends and
//! beginnings of documents, marks of a chat), which stand for no text, as validation in training does; they count the bytes of the text, also of characters that the vocabulary lacks.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use ngen3_data::source::{DocumentReader, Event, ReadOptions, Source, TextChunk, list};
use ngen3_data::tokenizer::{ByteCounter, MissingChars};
use ngen3_data::{TokenFile, Tokenizer, validation_split};
use ngen3_engine::{Batch, IGNORE};
use ngen3_model::Config;

use crate::{Error, Metric, MetricValue};

/// Name of the task.
pub(crate) const NAME: &str = "perplexity";
/// Tokens per batch.
const BATCH_TOKENS: usize = 8192;
/// Extension of a token file.
const TOKENS: &str = "bin";

/// A text to compute the perplexity of.
#[derive(Debug)]
pub struct PerplexityText {
    /// Name of its source.
    pub title: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Documents(Vec<String>),
    /// A token file, from this index on.
    Tokens(TokenFile, usize),
}

impl PerplexityText {
    /// Reads a token file (`.bin`, or a folder with one), or any text that `tokenize` reads. With `val_fraction`, only the validation split of a token
    /// file: its last part, or the `val.bin` beside it.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is missing, damaged or not UTF-8; [`Error::Input`] for an empty text, or a
    /// `val_fraction` of a text; [`Error::Interrupted`] when `stop` is set.
    pub fn read(
        named: &Path,
        val_fraction: Option<f64>,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Self, Error> {
        let in_folder = TokenFile::in_folder(named)?;
        let named = in_folder.as_deref().unwrap_or(named);
        let title_of = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        if named.extension().is_some_and(|ending| ending == TOKENS) {
            let (file, start) = match val_fraction {
                None => (TokenFile::open(named)?, 0),
                Some(fraction) => validation_split(named, fraction)?,
            };
            return Ok(Self { title: title_of(file.path()), content: Content::Tokens(file, start) });
        }
        if val_fraction.is_some() {
            let reason = format!("{}: expected a data.bin for val_fraction, got a text", named.display());
            return Err(Error::Input(reason));
        }
        let source = Source::parse(named.as_os_str())?;
        let title = match &source {
            Source::Path(_) => title_of(named),
            source => source.to_string(),
        };
        let listing = list(&[source])?;
        listing.report_skipped(progress);
        let options = ReadOptions { scratch: std::env::temp_dir(), ..ReadOptions::default() };
        let mut reader = DocumentReader::start(listing.inputs, options, |_| None)?;
        let (mut documents, mut text) = (Vec::new(), String::new());
        while let Some(piece) = reader.next(stop, progress).map_err(stopped)? {
            match piece {
                TextChunk::Text(part) => text += &part,
                TextChunk::EndOfDocument => documents.push(std::mem::take(&mut text)),
                TextChunk::Documents { text, ends } => {
                    let starts = std::iter::once(&0).chain(&ends);
                    documents.extend(starts.zip(&ends).map(|(&start, &end)| text[start..end].to_owned()));
                }
            }
        }
        if documents.is_empty() {
            return Err(Error::Input(format!("{}: expected a text, got an empty file", named.display())));
        }
        Ok(Self { title, content: Content::Documents(documents) })
    }

    /// Uses `document` as the text, as a single document.
    pub fn of(title: impl Into<String>, document: String) -> Self {
        Self { title: title.into(), content: Content::Documents(vec![document]) }
    }

    /// Encodes the text, with the tokens that end and begin documents between them.
    fn encode(&self, tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Result<EncodedText, Error> {
        let mut encoded = EncodedText::default();
        match &self.content {
            Content::Documents(documents) => {
                let tokenizer = tokenizer.ok_or_else(|| {
                    let reason = "the model has no recorded tokenizer, so it cannot read a text; pass a data.bin";
                    Error::Input(reason.into())
                })?;
                for (number, document) in documents.iter().enumerate() {
                    let end = tokenizer.eot().filter(|_| number > 0);
                    encoded.tokens.extend(end.into_iter().chain(tokenizer.document_start()));
                    encoded.add(tokenizer, document).map_err(ngen3_data::Error::from)?;
                }
            }
            Content::Tokens(file, start) => {
                file.check_vocab(vocab_size)?;
                if let Some(tokenizer) = tokenizer
                    && !same_vocabulary(tokenizer, &file.tokenizer()?)
                {
                    let shown = file.path().display();
                    return Err(Error::Input(format!("{shown}: its tokenizer is not the model's")));
                }
                file.copy(*start..file.len(), &mut encoded.tokens);
            }
        }
        Ok(encoded)
    }

    /// Formats notes on a token file that may not be the whole text, or not of the model's vocabulary.
    fn doubts(&self, tokenizer: Option<&Tokenizer>) -> Vec<String> {
        let Content::Tokens(file, _) = &self.content else { return Vec::new() };
        tokenizer.and_then(|_| file.doubt()).into_iter().chain(file.missing_note()).collect()
    }
}

/// A text as tokens.
#[derive(Debug, Default)]
struct EncodedText {
    tokens: Vec<u32>,
    /// Offset of each token in all the text, in bytes, if the vocabulary lacks characters: tokens then do not tell the text.
    starts: Vec<usize>,
    /// Bytes of text.
    bytes: usize,
    missing: MissingChars,
}

impl EncodedText {
    /// Appends a document, after tokens that stand for no text.
    fn add(&mut self, tokenizer: &Tokenizer, document: &str) -> Result<(), ngen3_data::tokenizer::Error> {
        if tokenizer.can_miss() {
            tokenizer.encode_counting(document, &mut Vec::new(), &mut self.missing)?;
            let first = self.tokens.len();
            self.starts.resize(first, self.bytes);
            tokenizer.encode_places(document, &mut self.tokens, &mut self.starts)?;
            self.starts[first..].iter_mut().for_each(|start| *start += self.bytes);
        } else {
            tokenizer.encode_into(document, &mut self.tokens)?;
        }
        self.bytes += document.len();
        Ok(())
    }
}

fn stopped(error: ngen3_data::Error) -> Error {
    match error {
        ngen3_data::Error::Interrupted => Error::Interrupted,
        error => error.into(),
    }
}

fn same_vocabulary(a: &Tokenizer, b: &Tokenizer) -> bool {
    let same = |id| a.decode(&[id]) == b.decode(&[id]);
    a.vocab_size() == b.vocab_size() && (0..a.vocab_size() as u32).all(same)
}

/// A window: reads up to one block of tokens before `end`, and scores the tokens `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    start: usize,
    end: usize,
}

/// Windows over `n` tokens. The first token is only context.
fn windows(n: usize, block: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut end) = (1, n.min(block + 1));
    while start < n {
        windows.push(Window { start, end });
        (start, end) = (end, n.min(end + stride));
    }
    windows
}

/// A text encoded for a model and cut into windows.
#[derive(Debug)]
pub(crate) struct WindowedText<'a> {
    text: &'a PerplexityText,
    tokenizer: Option<&'a Tokenizer>,
    counter: Option<ByteCounter>,
    /// The tokens; the first one is only context.
    encoded: EncodedText,
    /// Number of windows over the whole text.
    all: usize,
    /// Windows to score.
    windows: Vec<Window>,
    /// Tokens from one window to the next.
    stride: usize,
}

impl PerplexityText {
    /// Encodes the text for a model of this shape and cuts it into windows, of which the first `limit` are scored.
    ///
    /// # Errors
    /// [`Error::Input`] for a stride out of range, another tokenizer than the model's, or a text without a token to predict;
    /// [`Error::Data`] for tokens outside the vocabulary.
    pub(crate) fn windowed<'a>(
        &'a self,
        config: &Config,
        tokenizer: Option<&'a Tokenizer>,
        stride: Option<usize>,
        limit: Option<usize>,
    ) -> Result<WindowedText<'a>, Error> {
        let block = config.block_size;
        let stride = stride.unwrap_or(block);
        if !(1..=block).contains(&stride) {
            return Err(Error::Input(format!(
                "stride: expected 1 to {block} tokens (the model's block size), got {stride}"
            )));
        }
        let mut encoded = self.encode(tokenizer, config.vocab_size)?;
        if let Some(end) = tokenizer.filter(|tokenizer| tokenizer.document_start().is_none()).and_then(Tokenizer::eot) {
            encoded.tokens.insert(0, end);
            if !encoded.starts.is_empty() {
                encoded.starts.insert(0, 0);
            }
        }
        let mut windows = windows(encoded.tokens.len(), block, stride);
        let all = windows.len();
        windows.truncate(limit.unwrap_or(usize::MAX));
        if windows.is_empty() {
            return Err(Error::Input(format!("{}: no token to predict", self.title)));
        }
        let counter = tokenizer.map(Tokenizer::byte_counter);
        Ok(WindowedText { text: self, tokenizer, counter, encoded, all, windows, stride })
    }
}

impl WindowedText<'_> {
    /// Number of windows to score.
    pub(crate) fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Formats notes on the text, one line each: characters that the vocabulary lacks, and doubts on a token file.
    pub(crate) fn notes(&self) -> Vec<String> {
        let missing = self.tokenizer.and_then(|tokenizer| tokenizer.missing_note(&self.encoded.missing));
        let missing = missing.map(|note| format!("{}: {note}", self.text.title));
        missing.into_iter().chain(self.text.doubts(self.tokenizer)).collect()
    }

    /// Returns the bytes of text that the tokens up to `end`, without the first, stand for.
    fn bytes(&self, end: usize, counter: &ByteCounter) -> usize {
        let EncodedText { tokens, starts, bytes, .. } = &self.encoded;
        let whole = end == tokens.len() && !counter.is_text(tokens[0]);
        match &self.text.content {
            Content::Documents(_) if whole => *bytes,
            Content::Documents(_) if !starts.is_empty() => starts.get(end).unwrap_or(bytes) - starts[1],
            _ => counter.count(&tokens[1..end]).bytes as usize,
        }
    }
}

/// Perplexity of a text under one model.
#[derive(Debug)]
pub(crate) struct PerplexityResult {
    pub values: Vec<MetricValue>,
    /// Windows over the whole text, and windows scored.
    pub windows: (usize, usize),
    /// Tokens predicted, and bytes of text that they stand for (`None` without a tokenizer).
    pub tokens: usize,
    pub bytes: Option<usize>,
    /// Tokens from one window to the next.
    pub stride: usize,
}

/// Computes the perplexity with the model that the text was encoded for. `progress` gets the number of windows done and
/// returns false to stop.
///
/// # Errors
/// [`Error::Input`] if the model's losses are not finite; [`Error::Engine`]; [`Error::Interrupted`].
pub(crate) fn measure(
    windowed: &WindowedText,
    engine: &mut dyn ngen3_engine::Model,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<PerplexityResult, Error> {
    let WindowedText { ref counter, ref encoded, all, ref windows, stride, .. } = *windowed;
    let tokens = &encoded.tokens;
    let block = engine.config().block_size;
    let (mut total, mut of_text, mut done) = (0.0, 0.0, 0);
    let mut batch = Batch::default();
    let most = BATCH_TOKENS.div_ceil(block);
    for some in windows.chunks(most) {
        batch.clear();
        for &Window { start, end } in some {
            let first = end.saturating_sub(block + 1);
            let mut targets = vec![IGNORE; start - 1 - first];
            targets.extend_from_slice(&tokens[start..end]);
            batch.push(&tokens[first..end - 1], &targets);
        }
        let losses = engine.losses(&batch)?;
        for (&loss, &target) in losses.iter().zip(&batch.targets) {
            total += f64::from(loss);
            if counter.as_ref().is_some_and(|counter| counter.is_text(target)) {
                of_text += f64::from(loss);
            }
        }
        if !total.is_finite() {
            return Err(Error::Input("the model's losses are not finite".into()));
        }
        done += some.len();
        if !progress(done) {
            return Err(Error::Interrupted);
        }
    }
    let end = windows.last().map_or(1, |last| last.end);
    let predicted = end - 1;
    let value = |metric, value| MetricValue { metric, value, error: None };
    let mut values = vec![value(Metric::Perplexity, (total / predicted as f64).exp())];
    let bytes = counter.as_ref().map(|counter| windowed.bytes(end, counter));
    if let Some(bytes) = bytes.filter(|&bytes| bytes > 0) {
        let nats = of_text / bytes as f64;
        values.push(value(Metric::BytePerplexity, nats.exp()));
        values.push(value(Metric::BitsPerByte, nats / std::f64::consts::LN_2));
    }
    Ok(PerplexityResult { values, windows: (all, windows.len()), tokens: predicted, bytes, stride })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use ngen3_engine::Model;

    use super::*;
    use crate::testing::CountingModel;

    fn text(documents: &[&str]) -> PerplexityText {
        let documents = documents.iter().map(|&text| text.to_owned()).collect();
        PerplexityText { title: "x".into(), content: Content::Documents(documents) }
    }

    fn value(measure: &PerplexityResult, metric: Metric) -> f64 {
        measure.values.iter().find(|value| value.metric == metric).unwrap().value
    }

    #[test]
    fn every_token_is_predicted_once_with_as_much_context_as_the_stride_leaves() {
        let at = |windows: Vec<Window>| windows.iter().map(|w| (w.start, w.end)).collect::<Vec<_>>();
        assert_eq!(at(windows(10, 4, 4)), [(1, 5), (5, 9), (9, 10)]);
        assert_eq!(at(windows(10, 4, 2)), [(1, 5), (5, 7), (7, 9), (9, 10)]);
        assert_eq!(at(windows(3, 4, 4)), [(1, 3)]);
        assert_eq!(at(windows(1, 4, 4)), []);
    }

    #[test]
    fn ends_of_documents_are_tokens_but_no_text() {
        let tokenizer = Tokenizer::gpt2();
        let (first, second) = ("To be, or not to be.", "That is the question.");
        let mut engine = CountingModel::new(64);
        let text = text(&[first, second]);
        let windowed = text.windowed(engine.config(), Some(&tokenizer), None, None).unwrap();
        let measure = measure(&windowed, &mut engine, &mut |_| true).unwrap();
        let end = tokenizer.eot().unwrap();
        let ids = [vec![end], tokenizer.encode(first).unwrap(), vec![end], tokenizer.encode(second).unwrap()].concat();
        let losses: Vec<_> = (1..ids.len()).map(|at| f64::from(CountingModel::loss(&ids[..at], ids[at]))).collect();
        let total: f64 = losses.iter().sum();
        let of_end = losses[tokenizer.encode(first).unwrap().len()];
        let bytes = (first.len() + second.len()) as f64;
        assert_eq!((measure.tokens, measure.bytes), (ids.len() - 1, Some(first.len() + second.len())));
        let close = |metric, expected: f64| assert!((value(&measure, metric) - expected).abs() < 1e-9);
        close(Metric::Perplexity, (total / losses.len() as f64).exp());
        close(Metric::BytePerplexity, ((total - of_end) / bytes).exp());
        close(Metric::BitsPerByte, (total - of_end) / bytes / 2f64.ln());
    }

    #[test]
    fn what_cannot_be_measured_is_told() {
        let tokenizer = Tokenizer::gpt2();
        let mut engine = CountingModel::new(8);
        let text = text(&["To be"]);
        let error = |tokenizer, stride| {
            text.windowed(CountingModel::new(8).config(), tokenizer, stride, None).unwrap_err().to_string()
        };
        assert_eq!(error(Some(&tokenizer), Some(9)), "stride: expected 1 to 8 tokens (the model's block size), got 9");
        assert!(error(Some(&tokenizer), Some(0)).ends_with("got 0"));
        assert!(error(None, None).contains("pass a data.bin"));
        let windowed = text.windowed(engine.config(), Some(&tokenizer), None, None).unwrap();
        assert!(matches!(measure(&windowed, &mut engine, &mut |_| false), Err(Error::Interrupted)));
    }

    proptest! {
        #[test]
        fn windows_lie_end_to_end(n in 0usize..200, block in 1usize..20, stride in 1usize..20) {
            let stride = stride.min(block);
            let mut next = 1;
            for (number, window) in windows(n, block, stride).into_iter().enumerate() {
                prop_assert_eq!(window.start, next);
                prop_assert!(window.end > window.start && window.end <= n);
                let most = if number == 0 { block } else { stride };
                prop_assert!(window.end - window.start <= most);
                next = window.end;
            }
            prop_assert_eq!(next, n.max(1));
        }
    }
}
