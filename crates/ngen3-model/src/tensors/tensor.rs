//! Tensors of a file: views into storages, arrays of elements that are read from front to back.

use std::io::{self, Read, Write};
use std::rc::Rc;

use half::{bf16, f16};

/// Number of elements converted at a time.
const CHUNK: usize = 1 << 17;

/// Type of a storage's elements, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    /// Type of other tensors (step counts, masks), never of parameters: name and size in bytes.
    Other(&'static str, usize),
}

impl Dtype {
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, size) => size,
        }
    }
}

/// Tensor in a storage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub storage: Rc<str>,
    pub dtype: Dtype,
    /// Number of elements in the storage.
    pub storage_len: usize,
    /// Index of the tensor's first element in the storage.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub order: Order,
}

/// Order of a tensor's elements in its storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Contiguous, row by row.
    Rows,
    /// Contiguous, column by column: a matrix stored transposed.
    Columns,
    /// Any other order, which is not supported.
    Strided,
}

impl Tensor {
    /// Returns the number of elements; `None` if it overflows.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim))
    }
}

/// Source of storages.
pub(crate) trait Storages {
    /// Opens a storage from its first byte. Its checksum, if the file has one, is checked at the end.
    ///
    /// # Errors
    /// The reason: the storage is missing or not `bytes` long.
    fn open(&mut self, storage: &str, bytes: u64) -> Result<Box<dyn Read + '_>, String>;
}

/// Reads a tensor's whole storage in chunks of f32: `sink(index of the first element, elements)`.
pub(crate) fn stream(
    storages: &mut dyn Storages,
    tensor: &Tensor,
    mut sink: impl FnMut(usize, &[f32]) -> Result<(), String>,
) -> Result<(), String> {
    let Tensor { storage, dtype, storage_len, .. } = tensor;
    let size = dtype.size();
    let total = (*storage_len as u64).checked_mul(size as u64);
    let total = total.ok_or_else(|| format!("storage {storage} claims {storage_len} elements"))?;
    let mut reader = storages.open(storage, total)?;
    let message = |error: io::Error| format!("storage {storage} is damaged: {error}");
    let mut bytes = vec![0; CHUNK * size];
    let mut values = Vec::with_capacity(CHUNK);
    let mut at = 0;
    while at < *storage_len {
        let count = CHUNK.min(storage_len - at);
        let bytes = &mut bytes[..count * size];
        reader.read_exact(bytes).map_err(message)?;
        values.clear();
        match dtype {
            Dtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            Dtype::Bf16 => values.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
            Dtype::Other(name, _) => {
                return Err(format!("storage {storage}: expected float32, float16 or bfloat16, got {name}"));
            }
        }
        sink(at, &values)?;
        at += count;
    }
    // Reading the end compares the checksum.
    match reader.read(&mut [0]).map_err(message)? {
        0 => Ok(()),
        _ => Err(format!("storage {storage} is longer than {total} bytes")),
    }
}

/// Writes elements as little-endian f32.
///
/// # Errors
/// A failed write.
pub fn write_f32(file: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * CHUNK);
    for chunk in values.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        file.write_all(&bytes)?;
    }
    Ok(())
}
