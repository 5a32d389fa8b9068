//! `.pt`: PyTorch's zip file in nanoGPT's layout; names of the Llama family are those of `transformers`.
//!
//! ```text
//! archive/data.pkl   the pickle of a dictionary: `model` (the state dict) and the entries of `header.rs`
//! archive/byteorder  "little"
//! archive/data/N     the elements of storage N, uncompressed, aligned so that they can be mapped
//! archive/version    "3"
//! ```
//!
//! The format is that of `torch.save` (PyTorch's `serialization.py`). A tied `lm_head.weight` and the token embedding are two views
//! of storage 0. nanoGPT's files also hold an `optimizer`, whose tensors are not read.

use std::collections::HashMap;
use std::io::{self, Read, Seek, Write};

use serde_json::{Map, Value};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::header;
use crate::params::names::{self, LM_HEAD};
use crate::tensors::pickle::{Id, Node, Pickle, Writer};
use crate::tensors::torch::{Archive, MAX_PICKLE, scalar, state_dict};
use crate::tensors::write_f32;
use crate::{Checkpoint, CheckpointMeta, Config, ParamList, state_dict};

/// Alignment of storages in the file, in bytes; the same as `torch.save`'s.
const ALIGNMENT: u16 = 64;

/// Writes a checkpoint directly from the flat array.
pub(super) fn write(
    file: &mut (impl Write + Seek),
    config: &Config,
    list: &ParamList,
    params: &[f32],
    meta: &CheckpointMeta,
) -> io::Result<()> {
    let mut sink = Latch { file, position: 0, error: None };
    let written = {
        let mut zip = ZipWriter::new(&mut sink);
        write_parts(&mut zip, config, list, params, meta).and_then(|()| Ok(zip.finish().map(drop)?))
    };
    sink.error.map_or(written, Err)
}

/// File that keeps its first error and then accepts anything: a `ZipWriter` that meets an error prints to stderr when it is dropped.
struct Latch<'a, W> {
    file: &'a mut W,
    position: u64,
    error: Option<io::Error>,
}

impl<W> Latch<'_, W> {
    fn keep(&mut self, found: io::Result<u64>, otherwise: u64) -> u64 {
        found.unwrap_or_else(|error| {
            self.error = Some(error);
            otherwise
        })
    }
}

impl<W: Write> Write for Latch<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.error.is_none() {
            let written = self.file.write_all(bytes).map(|()| 0);
            self.keep(written, 0);
        }
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Seek> Seek for Latch<'_, W> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let guess = match to {
            io::SeekFrom::Start(position) => position,
            io::SeekFrom::Current(by) | io::SeekFrom::End(by) => self.position.saturating_add_signed(by),
        };
        self.position = match self.error {
            None => {
                let found = self.file.seek(to);
                self.keep(found, guess)
            }
            Some(_) => guess,
        };
        Ok(self.position)
    }
}

fn write_parts<W: Write + Seek>(
    zip: &mut ZipWriter<W>,
    config: &Config,
    list: &ParamList,
    params: &[f32],
    meta: &CheckpointMeta,
) -> io::Result<()> {
    let options = |bytes: u64| {
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        stored.with_alignment(ALIGNMENT).large_file(bytes > u32::MAX.into())
    };
    let small = |zip: &mut ZipWriter<W>, name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), options(bytes.len() as u64))?;
        zip.write_all(bytes)
    };
    let pickle = pickle(config, list, meta);
    if pickle.len() as u64 > MAX_PICKLE {
        let what = "the metadata, such as the tokenizer, is too large for a .pt";
        return Err(io::Error::other(format!("{what}: expected at most {MAX_PICKLE} bytes, got {}", pickle.len())));
    }
    small(zip, "data.pkl", &pickle)?;
    small(zip, "byteorder", b"little")?;
    for (key, param) in list.iter().enumerate() {
        zip.start_file(format!("archive/data/{key}"), options(4 * param.len() as u64))?;
        write_f32(zip, &params[param.range()])?;
    }
    small(zip, "version", b"3\n")
}

fn pickle(config: &Config, list: &ParamList, meta: &CheckpointMeta) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.dict(|writer| {
        writer.string("model");
        writer.ordered_dict(|writer| {
            for (key, param) in list.iter().enumerate() {
                writer.string(&param.name());
                writer.tensor(&key.to_string(), &param.shape);
            }
            if config.tied {
                writer.string(LM_HEAD);
                writer.tensor("0", &[config.vocab_size, config.n_embd]);
            }
        });
        for (name, value) in &header::entries(config, meta) {
            writer.string(name);
            writer.value(value);
        }
    });
    writer.finish()
}

/// Reads a checkpoint of `len` bytes.
pub(crate) fn read(file: impl Read + Seek, len: u64) -> Result<(Checkpoint, bool), String> {
    let mut archive = Archive::open(file)?;
    let pickle = archive.read_pickle()?;
    let Some(entries) = pickle.entries(pickle.root()) else {
        return Err("not a checkpoint: its pickle is not a dictionary".into());
    };
    let Some(model) = entries.get("model").and_then(|&model| pickle.entries(model)) else {
        return Err("not a checkpoint in nanoGPT's layout: no model entry".into());
    };
    let header = header::parse(plain_entries(&pickle, &entries, &mut archive)?)?;
    let tensors = state_dict(&pickle, model)?;
    let names = names::checkpoint(header.config.family);
    let params = state_dict::read_params(&header.config, names, tensors, &mut archive, len)?;
    Ok((Checkpoint { config: header.config, params, meta: header.meta }, header.ours))
}

/// Returns the entries that `header.rs` parses, as JSON. nanoGPT's `best_val_loss` is a tensor of one element.
fn plain_entries(
    pickle: &Pickle,
    entries: &HashMap<&str, Id>,
    archive: &mut Archive<impl Read + Seek>,
) -> Result<Map<String, Value>, String> {
    let mut plain = Map::new();
    for name in header::NAMES {
        let Some(&id) = entries.get(name) else { continue };
        let value = match pickle.node(id) {
            Node::Tensor(tensor) => scalar(tensor, archive)?.map(Value::from),
            _ => pickle.to_json(id)?,
        };
        plain.extend(value.map(|value| (name.to_string(), value)));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// File on a disk with so many bytes left.
    struct Full(io::Cursor<Vec<u8>>, usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.1 < bytes.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1 -= bytes.len();
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Full {
        fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn a_disk_that_fills_up_at_any_byte_is_an_error_with_its_reason() {
        let config = Config::new(1, 1, 2, 4, 7);
        let list = ParamList::new(&config);
        let params = vec![0.5; list.total()];
        let write_into = |space: usize| {
            let mut file = Full(io::Cursor::default(), space);
            let written = write(&mut file, &config, &list, &params, &CheckpointMeta::default());
            (written, space - file.1)
        };
        let (written, bytes) = write_into(1 << 20);
        written.unwrap();
        for space in 0..bytes {
            let (written, _) = write_into(space);
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull, "{space} of {bytes} bytes");
        }
        write_into(bytes).0.unwrap();
    }
}
