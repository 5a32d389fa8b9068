//! How work on the hub is watched.

use crate::source::Event;

/// Hears how far the work is; says whether to go on with it.
pub type Tell<'a> = dyn FnMut(Event) -> bool + 'a;
