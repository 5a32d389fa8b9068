//! Checkpoints: a model's shape, its parameters and how they came about, in one file.
//!
//! Two formats hold the same things under the same names. `.pt` is a PyTorch zip checkpoint in nanoGPT's layout
//! (`checkpoint/torch.rs`); `.safetensors` is Hugging Face's (`checkpoint/safetensors.rs`). The entries beside the
//! tensors are laid out in `header.rs`; how the tensors of a file become the flat array is in `state_dict.rs`.

mod header;
mod safetensors;
mod torch;

use std::path::Path;

use crate::files::{read_error, write_atomic};
pub use crate::tensors::Format;
use crate::tensors::open;
use crate::{Checkpoint, CheckpointMeta, Config, Error, ParamList};

/// Writes a checkpoint whole or not at all; a `.pt` or `.safetensors` ending chooses the format.
///
/// # Errors
/// [`Error::Write`] naming the file: another ending, or the disk's refusal.
///
/// # Panics
/// If `params` is not as long as `config` says.
pub fn save(path: &Path, config: &Config, params: &[f32], meta: &CheckpointMeta) -> Result<(), Error> {
    let list = ParamList::new(config);
    assert_eq!(params.len(), list.total(), "the parameters of another shape");
    match Format::of(path)? {
        Format::Torch => write_atomic(path, |file| torch::write(file, config, &list, params, meta)),
        Format::Safetensors => write_atomic(path, |file| safetensors::write(file, config, &list, params, meta)),
    }
}

/// Changes the metadata of a checkpoint of ours. Returns `false` if the file is another program's, which may hold
/// what would be lost: it stays as it is.
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

/// Reads a file; also returns whether it is one of ours.
fn read_file(path: &Path) -> Result<(Checkpoint, bool), String> {
    let (file, len, format) = open(path)?;
    match format {
        Format::Torch => torch::read(file, len),
        Format::Safetensors => safetensors::read(file, len),
    }
}
