//! Hugging Face's `.safetensors`: a JSON header, then the data.
//!
//! Other arrays use the same format: [`write_arrays_header`] and [`Reader::array`].

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use safetensors::Dtype as FileDtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

pub use super::tensor::write_f32;
use super::tensor::{self, Dtype, Order, Storages, Tensor};

/// The format's limit on the header, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// Maximum number of entries in a header: the largest models have tens of thousands of tensors in a file.
const MAX_ENTRIES: usize = 1 << 17;

/// An object that is parsed for its number of entries alone, so that a hostile header takes no memory for them.
struct Counted;

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for Counted {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut entries = 0;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(A::Error::custom(format_args!("expected at most {MAX_ENTRIES} entries")));
            }
        }
        Ok(self)
    }
}

/// Writes the header of flat f32 arrays: the metadata, and each array's name and length. Write the arrays after it with
/// [`write_f32`], in the same order.
///
/// # Errors
/// A failed write, or metadata that is too large.
pub fn write_arrays_header<'a>(
    file: &mut impl Write,
    metadata: Map<String, Value>,
    arrays: impl IntoIterator<Item = (&'a str, usize)>,
) -> io::Result<()> {
    let mut end = 0;
    let info = |(name, len): (&str, usize)| {
        let start = end;
        end += 4 * len;
        (name.to_owned(), TensorInfo { dtype: FileDtype::F32, shape: vec![len], data_offsets: (start, end) })
    };
    write_header(file, metadata, arrays.into_iter().map(info))
}

/// Writes the header: the metadata, and the name, shape and range of each tensor.
pub(crate) fn write_header(
    file: &mut impl Write,
    metadata: Map<String, Value>,
    tensors: impl Iterator<Item = (String, TensorInfo)>,
) -> io::Result<()> {
    let mut header = Map::from_iter([("__metadata__".to_string(), Value::Object(metadata))]);
    for (name, info) in tensors {
        header.insert(name, serde_json::to_value(info)?);
    }
    let mut header = serde_json::to_vec(&header)?;
    if header.len() as u64 > MAX_HEADER {
        let what = "the metadata, such as the tokenizer, is too large for a .safetensors";
        return Err(io::Error::other(format!("{what}: expected at most {MAX_HEADER} bytes, got {}", header.len())));
    }
    // The data starts at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)
}

/// Reader of a file, after its header. Each tensor is a separate storage.
#[derive(Debug)]
pub struct Reader<F = File> {
    file: BufReader<F>,
    header: Metadata,
    /// Offset of the data in the file, in bytes.
    data: u64,
}

impl<F: Read + Seek> Reader<F> {
    /// Reads the header of a file of `len` bytes, which must match the header.
    ///
    /// # Errors
    /// The reason why it is not a valid safetensors file.
    pub fn open(mut file: F, len: u64) -> Result<Self, String> {
        let message = |error: io::Error| error.to_string();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(message)?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size > len - 8 {
            return Err(format!("the header claims {size} bytes, but the file has {len}"));
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact(&mut bytes).map_err(message)?;
        let bad = |error: serde_json::Error| format!("not a safetensors header: {error}");
        let _: Counted = serde_json::from_slice(&bytes).map_err(bad)?;
        let header: Metadata = serde_json::from_slice(&bytes).map_err(bad)?;
        let data = 8 + size;
        let expected = data.saturating_add(header.data_len() as u64);
        if expected != len {
            return Err(format!("damaged or truncated: expected {expected} bytes, got {len}"));
        }
        Ok(Self { file: BufReader::new(file), header, data })
    }

    /// Returns an entry of `__metadata__`.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(name).map(String::as_str)
    }

    /// Reads a flat array of `len` f32. Memory is allocated only for what the file holds.
    ///
    /// # Errors
    /// The reason: the array is missing, has another length or dtype, or cannot be read.
    pub fn array(&mut self, name: &str, len: usize) -> Result<Vec<f32>, String> {
        let is_wanted = |tensor: &Tensor| tensor.dtype == Dtype::F32 && tensor.shape == [len];
        let tensor = self.tensors().remove(name).filter(is_wanted);
        let tensor = tensor.ok_or_else(|| format!("expected a float32 array {name} of {len} values"))?;
        let mut values = Vec::with_capacity(len);
        tensor::stream(self, &tensor, |_, some| {
            values.extend_from_slice(some);
            Ok(())
        })?;
        Ok(values)
    }

    /// Returns the tensors by name.
    pub(crate) fn tensors(&self) -> HashMap<String, Tensor> {
        let tensors = self.header.tensors();
        let tensor = |(name, info): (String, &TensorInfo)| {
            let dtype = match info.dtype {
                FileDtype::F32 => Dtype::F32,
                FileDtype::F16 => Dtype::F16,
                FileDtype::BF16 => Dtype::Bf16,
                _ => Dtype::Other("another type", 0),
            };
            let shape = info.shape.clone();
            // The header was checked: the shape's product does not overflow.
            let storage_len = shape.iter().product();
            let storage = name.as_str().into();
            (name, Tensor { storage, dtype, storage_len, offset: 0, shape, order: Order::Rows })
        };
        tensors.into_iter().map(tensor).collect()
    }
}

impl<F: Read + Seek> Storages for Reader<F> {
    fn open(&mut self, storage: &str, bytes: u64) -> Result<Box<dyn Read + '_>, String> {
        let info = self.header.info(storage).ok_or_else(|| format!("missing tensor {storage}"))?;
        let start = self.data + info.data_offsets.0 as u64;
        self.file.seek(SeekFrom::Start(start)).map_err(|error| error.to_string())?;
        Ok(Box::new((&mut self.file).take(bytes)))
    }
}
