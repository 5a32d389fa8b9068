//! Formats of tensor files, by name and by content.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

use crate::Error;

/// Checkpoint format, chosen by the file's extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.pt`
    Torch,
    /// `.safetensors`
    Safetensors,
}

impl Format {
    /// Returns the format for a path's extension. Check it before training, not after.
    ///
    /// # Errors
    /// [`Error::Write`] for any other extension.
    pub fn of(path: &Path) -> Result<Self, Error> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("pt") => Ok(Self::Torch),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => {
                let source = io::Error::other("expected a file name ending in .pt or .safetensors");
                Err(Error::Write { path: path.into(), source })
            }
        }
    }
}

/// Opens a tensor file. Returns it with its length in bytes and its format, detected from the first bytes.
pub(crate) fn open(path: &Path) -> Result<(File, u64, Format), String> {
    let message = |error: io::Error| error.to_string();
    let metadata = fs::metadata(path).map_err(message)?;
    if !metadata.is_file() {
        return Err("not a file".into());
    }
    let mut file = File::open(path).map_err(message)?;
    let len = metadata.len();
    let mut start = [0; 9];
    let got = usize::try_from(len).unwrap_or(usize::MAX).min(start.len());
    file.read_exact(&mut start[..got]).map_err(message)?;
    file.rewind().map_err(message)?;
    match start[..got] {
        [] => Err("empty file".into()),
        [b'P', b'K', ..] => Ok((file, len, Format::Torch)),
        // Length of the header, then its JSON.
        [_, _, _, _, _, _, _, _, b'{'] => Ok((file, len, Format::Safetensors)),
        // A bare pickle: its first opcode names the protocol.
        [0x80, ..] => {
            Err("PyTorch's format from before version 1.6: load it with torch.load and torch.save it again".into())
        }
        _ => Err("not a checkpoint: expected a PyTorch zip file or a safetensors file".into()),
    }
}
