//! Checkpoints: a model's shape, parameters, tokenizer and training record in one file.
//!
//! Two formats hold the same entries under the same names. `.pt` is a PyTorch zip checkpoint in nanoGPT's layout
//! (`checkpoint/torch.rs`); `.safetensors` is Hugging Face's format (`checkpoint/safetensors.rs`). `header.rs` lays out the
//! entries other than the tensors; `state_dict.rs` turns a file's tensors into the flat array.

pub(crate) mod header;
pub(crate) mod safetensors;
pub(crate) mod torch;

use std::path::Path;

use crate::files::{read_error, write_atomic};
pub use crate::tensors::Format;
use crate::tensors::open;
use crate::{Checkpoint, CheckpointMeta, Config, Error, ParamList};

/// Writes a checkpoint atomically. The extension, `.pt` or `.safetensors`, chooses the format.
///
/// # Errors
/// [`Error::Write`] naming the file, for another extension or a failed write.
///
/// # Panics
/// If `params` does not have the length that `config` implies.
pub fn save(path: &Path, config: &Config, params: &[f32], meta: &CheckpointMeta) -> Result<(), Error> {
    let list = ParamList::new(config);
    assert_eq!(params.len(), list.total(), "params do not match config");
    match Format::of(path)? {
        Format::Torch => write_atomic(path, |file| torch::write(file, config, &list, params, meta)),
        Format::Safetensors => write_atomic(path, |file| safetensors::write(file, config, &list, params, meta)),
    }
}

/// Changes the metadata of a checkpoint that NGen3 wrote. Returns `false`, leaving the file alone, if another program wrote it:
/// rewriting could lose entries.
///
/// # Errors
/// [`Error::Read`] naming the file; [`Error::Write`] as [`AtomicFile::commit`](crate::files::AtomicFile::commit).
pub fn amend(path: &Path, change: impl FnOnce(&mut CheckpointMeta)) -> Result<bool, Error> {
    let (mut checkpoint, ours) = read_file(path).map_err(read_error(path))?;
    if ours {
        change(&mut checkpoint.meta);
        save(path, &checkpoint.config, &checkpoint.params, &checkpoint.meta)?;
    }
    Ok(ours)
}

/// Reads a checkpoint file.
///
/// # Errors
/// [`Error::Read`] naming the file and what is wrong with it.
pub(crate) fn read(path: &Path) -> Result<Checkpoint, Error> {
    Ok(read_file(path).map_err(read_error(path))?.0)
}

/// Reads a checkpoint file. Also returns true if NGen3 wrote it.
fn read_file(path: &Path) -> Result<(Checkpoint, bool), String> {
    let (file, len, format) = open(path)?;
    match format {
        Format::Torch => torch::read(file, len),
        Format::Safetensors => safetensors::read(file, len),
    }
}
