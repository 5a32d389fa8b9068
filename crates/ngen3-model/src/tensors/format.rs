//! The formats of a file of tensors, by its name and by its content.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

use crate::Error;

/// The format that a checkpoint's ending chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.pt`
    Torch,
    /// `.safetensors`
    Safetensors,
}

impl Format {
    /// Looks at a path's ending: worth doing before hours of training rather than after.
    ///
    /// # Errors
    /// [`Error::Write`] for any other ending.
    pub fn of(path: &Path) -> Result<Self, Error> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("pt") => Ok(Self::Torch),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => {
                let source = io::Error::other("a checkpoint's name ends in .pt or .safetensors");
                Err(Error::Write { path: path.into(), source })
            }
        }
    }
}

/// Opens a file of tensors: with its length, and the format that its first bytes tell.
pub(crate) fn open(path: &Path) -> Result<(File, u64, Format), String> {
    let message = |error: io::Error| error.to_string();
    let metadata = fs::metadata(path).map_err(message)?;
    if !metadata.is_file() {
        return Err("it is not a file".into());
    }
    let mut file = File::open(path).map_err(message)?;
    let len = metadata.len();
    let mut start = [0; 9];
    let got = usize::try_from(len).unwrap_or(usize::MAX).min(start.len());
    file.read_exact(&mut start[..got]).map_err(message)?;
    file.rewind().map_err(message)?;
    match start[..got] {
        [] => Err("it is empty".into()),
        [b'P', b'K', ..] => Ok((file, len, Format::Torch)),
        // A header's length, then its JSON.
        [_, _, _, _, _, _, _, _, b'{'] => Ok((file, len, Format::Safetensors)),
        // A bare pickle: its first opcode names the protocol.
        [0x80, ..] => Err("it is in PyTorch's format from before version 1.6; load it with PyTorch and torch.save it \
            again, then it can be read here"
            .into()),
        _ => Err("it is not a checkpoint: it starts like neither a PyTorch zip file nor a safetensors file".into()),
    }
}
