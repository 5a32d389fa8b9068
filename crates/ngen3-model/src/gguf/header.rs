//! Reads what precedes the tensors: the metadata and the list of tensors.
//!
//! Files are untrusted. A count or a length is compared with the bytes that are left before anything is done with it, and memory
//! grows with the bytes that were read.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use super::types::{ALIGNMENT, MAGIC, TensorType, VERSION};
use super::value::{Array, NumberType, Numbers, Strings, Value};

/// Limit on the metadata and the list of tensors, in bytes: ten times a large vocabulary.
const MAX_HEADER: u64 = 128 << 20;
/// Limit on the number of metadata keys and on the number of tensors.
const MAX_ENTRIES: u64 = 1 << 16;
/// Limit on the length of a key, in bytes (`docs/gguf.md`).
const MAX_KEY: u64 = (1 << 16) - 1;
/// Limit on the length of a tensor's name, in bytes (`docs/gguf.md`).
const MAX_NAME: u64 = 64;
/// Limit on the number of dimensions of a tensor (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;
/// Limit on arrays in arrays.
const MAX_DEPTH: usize = 4;
/// Numbers of the types of values that are neither numbers nor truth values.
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Metadata and tensors of a file.
#[derive(Debug)]
pub(super) struct Header {
    pub version: u32,
    pub values: BTreeMap<String, Value>,
    /// Tensors in the file's order.
    pub tensors: Vec<Tensor>,
    /// Index in `tensors` by name.
    pub by_name: HashMap<String, usize>,
}

/// Tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Name, unique in the file.
    pub name: String,
    /// Type of the elements.
    pub tensor_type: TensorType,
    /// Dimensions, innermost first: `[columns, rows]` of a matrix. None is 0, and their product fits `usize`.
    pub dims: Vec<usize>,
    /// Offset of the data in the file, in bytes.
    pub(super) start: u64,
}

impl Tensor {
    /// Returns the shape, outermost dimension first: `[rows, columns]` of a matrix.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().copied().collect()
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Returns the number of rows, which have `dims[0]` elements.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Returns the size of a row, in bytes; `None` if the type is not supported.
    pub fn row_bytes(&self) -> Option<usize> {
        let (elements, bytes) = self.tensor_type.block()?;
        Some(self.dims[0] / elements * bytes)
    }
}

/// Reads the header of a file of `len` bytes. The error is the reason alone.
pub(super) fn read(input: impl Read, len: u64) -> Result<Header, String> {
    let mut cursor = Cursor { input, at: 0, len };
    let magic: [u8; 4] = cursor.take("the format's name")?;
    if magic != MAGIC {
        return Err("not a GGUF file: expected it to begin with GGUF".into());
    }
    let version = match cursor.u32("the version")? {
        version @ 2..=VERSION => version,
        version if (1..1 << 16).contains(&version.swap_bytes()) => {
            return Err("big-endian GGUF file: expected a little-endian one".into());
        }
        version => return Err(format!("GGUF version {version}: expected 2 or {VERSION}; convert the model again")),
    };
    // An entry of the list has a name's length, a number of dimensions, one dimension, a type and an offset at least; a key has
    // its length, a type and a byte.
    let tensors = cursor.count("tensors", 32, MAX_ENTRIES)?;
    let keys = cursor.count("metadata keys", 13, MAX_ENTRIES)?;
    let mut values = BTreeMap::new();
    for index in 0..keys {
        let what = || format!("metadata key {} of {keys}", index + 1);
        let key = cursor.string(&what(), MAX_KEY)?;
        if key.is_empty() {
            return Err(format!("{} has no name", what()));
        }
        let value_type = cursor.u32(&key)?;
        let value = cursor.value(&key, value_type)?;
        if values.contains_key(&key) {
            return Err(format!("metadata key {key} is there twice"));
        }
        values.insert(key, value);
    }
    let alignment = alignment(&values)?;
    let mut list: Vec<Tensor> = Vec::new();
    let mut by_name = HashMap::new();
    for index in 0..tensors {
        let tensor = cursor.tensor(&format!("tensor {} of {tensors}", index + 1))?;
        if by_name.insert(tensor.name.clone(), list.len()).is_some() {
            return Err(format!("tensor {} is listed twice", tensor.name));
        }
        list.push(tensor);
    }
    let data = cursor.at.next_multiple_of(alignment);
    for tensor in &mut list {
        place(tensor, data, alignment, len)?;
    }
    Ok(Header { version, values, tensors: list, by_name })
}

/// Returns the alignment of tensors, a power of two.
fn alignment(values: &BTreeMap<String, Value>) -> Result<u64, String> {
    let Some(value) = values.get("general.alignment") else { return Ok(ALIGNMENT.into()) };
    match value {
        Value::Unsigned(alignment) if alignment.is_power_of_two() && *alignment <= u32::MAX.into() => Ok(*alignment),
        other => Err(format!("general.alignment: expected a power of two, got {other}")),
    }
}

/// Turns a tensor's offset in the data into one in the file of `len` bytes, and checks it with the tensor's size.
fn place(tensor: &mut Tensor, data: u64, alignment: u64, len: u64) -> Result<(), String> {
    let Tensor { name, start, .. } = &*tensor;
    if !start.is_multiple_of(alignment) {
        return Err(format!("tensor {name}: expected an offset that is a multiple of {alignment}, got {start}"));
    }
    // An unsupported type has an unknown size; it is never read.
    let size = match tensor.tensor_type.block() {
        Some((elements, bytes)) => ((tensor.elements() / elements) as u64).checked_mul(bytes as u64),
        None => Some(0),
    };
    let start = data.checked_add(*start);
    let end = start.zip(size).and_then(|(start, size)| start.checked_add(size));
    match start.zip(end) {
        Some((start, end)) if end <= len => {
            tensor.start = start;
            Ok(())
        }
        Some((start, end)) => {
            Err(format!("tensor {name}: expected bytes {start} to {end}, but the file has {len}: truncated or damaged"))
        }
        None => Err(format!("tensor {name}: its offset and size exceed every file")),
    }
}

/// Reads a file from front to back.
struct Cursor<R> {
    input: R,
    /// Number of bytes read.
    at: u64,
    /// Length of the file, in bytes.
    len: u64,
}

impl<R: Read> Cursor<R> {
    /// Reads `len` bytes of `what`.
    fn bytes(&mut self, len: u64, what: &str) -> Result<Vec<u8>, String> {
        self.expect(len, what)?;
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(len).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        // The file may have become shorter.
        if read as u64 != len {
            return Err(self.ends(len, what));
        }
        self.at += len;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        self.expect(N as u64, what)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|_| self.ends(N as u64, what))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }

    /// Checks that the file and the limit of the header leave room for `len` bytes of `what`.
    fn expect(&self, len: u64, what: &str) -> Result<(), String> {
        if len > self.len.saturating_sub(self.at) {
            return Err(self.ends(len, what));
        }
        if len > MAX_HEADER.saturating_sub(self.at) {
            return Err(format!(
                "{what} at byte {}: expected at most {MAX_HEADER} bytes of metadata, got {len} more",
                self.at
            ));
        }
        Ok(())
    }

    fn ends(&self, len: u64, what: &str) -> String {
        format!(
            "{what} at byte {}: expected {len} bytes, but the file has {} in all: truncated or damaged",
            self.at, self.len
        )
    }

    /// Reads the number of `what`, each of `size` bytes at least, of which there are at most `max`.
    fn count(&mut self, what: &str, size: u64, max: u64) -> Result<u64, String> {
        let count = self.u64(&format!("the number of {what}"))?;
        if count > max {
            return Err(format!("{count} {what}: expected at most {max}"));
        }
        self.expect(count.saturating_mul(size), &format!("{count} {what}"))?;
        Ok(count)
    }

    /// Reads a string of at most `max` bytes.
    fn string(&mut self, what: &str, max: u64) -> Result<String, String> {
        let len = self.u64(what)?;
        if len > max {
            return Err(format!("{what} at byte {}: expected a string of at most {max} bytes, got {len}", self.at));
        }
        let bytes = self.bytes(len, what)?;
        String::from_utf8(bytes).map_err(|_| format!("{what}: a string that is not UTF-8 ends at byte {}", self.at))
    }

    fn value(&mut self, key: &str, value_type: u32) -> Result<Value, String> {
        Ok(match value_type {
            STRING => Value::String(self.string(key, MAX_HEADER)?),
            ARRAY => Value::Array(self.array(key, MAX_DEPTH)?),
            _ => {
                let kind = number_type(key, value_type)?;
                let bytes = self.bytes(kind.size() as u64, key)?;
                kind.value(&bytes)
            }
        })
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Array, String> {
        let item_type = self.u32(key)?;
        let len = self.u64(key)?;
        // A string has its length at least, an array its type and length.
        let size = match item_type {
            STRING => 8,
            ARRAY => 12,
            _ => number_type(key, item_type)?.size() as u64,
        };
        let bytes = len.saturating_mul(size);
        self.expect(bytes, key)?;
        match item_type {
            STRING => {
                let mut strings = Strings::default();
                let what = format!("{key}, an item");
                for _ in 0..len {
                    strings.push(&self.string(&what, MAX_HEADER)?);
                }
                Ok(Array::Strings(strings))
            }
            ARRAY if depth == 1 => Err(format!("{key}: expected at most {MAX_DEPTH} arrays in each other")),
            ARRAY => (0..len).map(|_| self.array(key, depth - 1)).collect::<Result<_, _>>().map(Array::Arrays),
            _ => Ok(Array::Numbers(Numbers::new(number_type(key, item_type)?, self.bytes(bytes, key)?))),
        }
    }

    /// Reads an entry of the list of tensors. Its `start` is still an offset in the data.
    fn tensor(&mut self, what: &str) -> Result<Tensor, String> {
        let name = self.string(what, MAX_NAME)?;
        let what = format!("tensor {name}");
        let dims = self.u32(&what)?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(format!("{what}: expected 1 to {MAX_DIMS} dimensions, got {dims}"));
        }
        let dims = (0..dims).map(|_| self.u64(&what)).collect::<Result<Vec<_>, _>>()?;
        let tensor_type = TensorType::of(self.u32(&what)?);
        let start = self.u64(&what)?;
        let product = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        if product.is_none_or(|product| product == 0 || usize::try_from(product).is_err()) {
            return Err(format!("{what}: expected dimensions of 1 and more with a product below 2^64, got {dims:?}"));
        }
        let dims: Vec<usize> = dims.into_iter().map(|dim| dim as usize).collect();
        let row = dims[0];
        if let Some((block, _)) = tensor_type.block().filter(|(block, _)| !row.is_multiple_of(*block)) {
            return Err(format!("{what}: expected rows of a multiple of {block} for {tensor_type}, got {row}"));
        }
        Ok(Tensor { name, tensor_type, dims, start })
    }
}

fn number_type(key: &str, value_type: u32) -> Result<NumberType, String> {
    NumberType::of(value_type).ok_or_else(|| format!("{key}: unknown type of value {value_type}: expected 0 to 12"))
}
