//! Conversations as text: `template.rs` renders them as `transformers` does (`python.rs` prints values as Python does), `locate.rs`
//! finds the turns and answers in the result, `special.rs` the special tokens. `tags.rs` splits a template, and `growing.rs` tells those
//! whose turns can be found in a single rendering.

mod growing;
mod locate;
mod python;
mod special;
mod tags;
mod template;

pub(super) use locate::{Locator, Rendered};
pub(super) use special::{GUARD, SpecialTokens};
pub use template::ChatTemplate;
pub(super) use template::REASONING;
