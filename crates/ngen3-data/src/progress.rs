//! Progress events of downloads, uploads and reading.

/// An event during a long operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message for the user.
    Note(String),
    /// Bytes transferred of the current download, or of an upload.
    Downloading {
        /// Bytes so far.
        done: u64,
        /// Total bytes, if known.
        total: Option<u64>,
    },
    /// Bytes read of all documents as they are stored, compressed or not.
    Reading {
        /// Bytes so far.
        done: u64,
        /// Total bytes, if known.
        total: Option<u64>,
    },
}

/// Receives events; returns `false` to stop the operation.
pub type ProgressFn<'a> = dyn FnMut(Event) -> bool + 'a;
