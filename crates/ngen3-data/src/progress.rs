//! How long work is watched: downloads, uploads, reading.

/// Events to tell meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something that the user should know.
    Note(String),
    /// Bytes downloaded of the current document, and how many there are.
    Downloading {
        /// So far.
        done: u64,
        /// All, if known.
        total: Option<u64>,
    },
    /// Bytes read of all documents as they are stored (compressed, perhaps), and how many there are.
    Reading {
        /// So far.
        done: u64,
        /// All, if known.
        total: Option<u64>,
    },
}

/// Hears how far the work is; returns `false` to stop it.
pub type ProgressFn<'a> = dyn FnMut(Event) -> bool + 'a;
