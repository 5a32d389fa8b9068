//! Conversations as text: `template.rs` renders them as `transformers` does (`python.rs` prints values as Python does), `locate.rs`
//! finds the turns and answers in the result.

mod locate;
mod python;
mod template;

pub(super) use locate::{Locator, Rendered};
pub use template::ChatTemplate;
pub(super) use template::{BEGIN, END, REASONING};
