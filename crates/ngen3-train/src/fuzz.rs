//! Readers of bytes in memory, for fuzz targets.
//!
//! Only the feature `fuzz` compiles this.

use std::io::Cursor;

use crate::State;
use crate::run_files::state;

/// Reads the state of a run.
///
/// # Errors
/// The reason alone.
pub fn state(bytes: &[u8]) -> Result<State, String> {
    state::read(Cursor::new(bytes), bytes.len() as u64)
}
