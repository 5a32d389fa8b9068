//! Readers on the calling thread, for fuzz targets: threads, and the files of a dataset that is written, would take most of the
//! time of an input.
//!
//! Only the feature `fuzz` compiles this. Each function runs the code that reads, and drops what was read.

use ngen3_model::ChatFormat;

use crate::chat::ChatTemplate;
use crate::source::{ReadOptions, Source, list, read_here, send_documents};
use crate::{Error, HfSource, hf};

/// Reads the records of a dataset as documents.
///
/// # Errors
/// As `hf_tokenize`.
pub fn documents(source: &HfSource) -> Result<(), Error> {
    let found = hf::resolve(source, &mut |_| true)?;
    read_here(|sender| found.send(sender, &std::env::temp_dir(), &cut))
}

/// Reads texts as documents.
///
/// # Errors
/// As `tokenize`.
pub fn texts(sources: &[Source], options: ReadOptions) -> Result<(), Error> {
    let inputs = list(sources)?.inputs;
    read_here(|sender| send_documents(sender, inputs, options, cut))
}

/// Returns the place after the last space, where GPT-2's tokenizer may split too.
fn cut(text: &str) -> Option<usize> {
    text.rfind(' ')
}

/// Compiles a chat template.
///
/// # Errors
/// As [`ChatTemplate::new`].
pub fn template(format: ChatFormat) -> Result<ChatTemplate, Error> {
    ChatTemplate::compile(format)
}
