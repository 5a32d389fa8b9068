//! A file: its metadata in memory, its tensors read one at a time.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header::{self, Header, Tensor};
use super::types::TensorType;
use super::value::{Array, Value};
use crate::Error;
use crate::files::read_error;

/// Number of bytes of a tensor read at a time, about.
const CHUNK: usize = 1 << 20;

/// GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    header: Header,
}

impl Gguf {
    /// Opens a file and reads its metadata and its list of tensors, versions 2 and 3.
    ///
    /// # Errors
    /// [`Error::Read`] if it is not a GGUF file, is damaged or truncated, or is one part of several.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (file, header) = open(path).map_err(read_error(path))?;
        let gguf = Self { path: path.into(), file, header };
        match gguf.integer("split.count")? {
            None | Some(0 | 1) => Ok(gguf),
            Some(parts) => Err(gguf.error(format!(
                "one of {parts} parts of a model: expected a single file (llama-gguf-split --merge joins them)"
            ))),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Returns the metadata, in order of their keys.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.header.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns the value of a metadata key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.header.values.get(key)
    }

    /// Returns an integer of 0 or more; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Read`] if it is another value.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, Error> {
        let number = |value: &Value| value.as_i64().and_then(|value| u64::try_from(value).ok());
        self.typed(key, "an integer of 0 or more", number)
    }

    /// Returns a number; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Read`] if it is another value.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// Returns a truth value; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Read`] if it is another value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", |value| if let Value::Bool(flag) = value { Some(*flag) } else { None })
    }

    /// Returns a text; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Read`] if it is another value.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a string", |value| if let Value::String(text) = value { Some(text.as_str()) } else { None })
    }

    /// Returns an array; `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Read`] if it is another value.
    pub fn array(&self, key: &str) -> Result<Option<&Array>, Error> {
        self.typed(key, "an array", |value| if let Value::Array(array) = value { Some(array) } else { None })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let converted = convert(value).ok_or_else(|| self.error(format!("{key}: expected {expected}, got {value}")));
        converted.map(Some)
    }

    /// Returns the tensors in the file's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.header.tensors
    }

    /// Returns a tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.header.by_name.get(name).map(|&index| &self.header.tensors[index])
    }

    /// Reads a tensor as f32, `[rows · dims[0]]`, row by row.
    ///
    /// # Errors
    /// [`Error::Read`] if the tensor is missing, has another number of elements than `out` or an unsupported type, or cannot be
    /// read.
    pub fn read_f32(&mut self, name: &str, out: &mut [f32]) -> Result<(), Error> {
        let (tensor, (block, block_bytes), _) = self.supported(name)?;
        let (tensor_type, mut at, elements) = (tensor.tensor_type, tensor.start, tensor.elements());
        if elements != out.len() {
            return Err(self.error(format!("tensor {name}: expected {} elements, got {elements}", out.len())));
        }
        let blocks = CHUNK / block_bytes;
        let mut bytes = vec![0; blocks.min(elements / block) * block_bytes];
        for values in out.chunks_mut(blocks * block) {
            let bytes = &mut bytes[..values.len() / block * block_bytes];
            self.read_at(name, at, bytes)?;
            tensor_type.decode(bytes, values);
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Reads rows of a tensor as the file stores them: `rows.len()` times [`Tensor::row_bytes`] bytes.
    ///
    /// # Errors
    /// [`Error::Read`] if the tensor is missing, does not have these rows or has an unsupported type, or cannot be read.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn read_rows(&mut self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let (tensor, _, row_bytes) = self.supported(name)?;
        let (start, count) = (tensor.start, tensor.rows());
        if rows.start > rows.end || rows.end > count {
            let Range { start, end } = rows;
            return Err(self.error(format!("tensor {name}: expected rows {start} to {end}, got {count} rows")));
        }
        assert_eq!(out.len(), rows.len() * row_bytes, "the buffer has the size of the rows");
        self.read_at(name, start + (rows.start * row_bytes) as u64, out)
    }

    /// Returns a tensor of a supported type, the elements and bytes of its blocks, and the bytes of its rows.
    fn supported(&self, name: &str) -> Result<(&Tensor, (usize, usize), usize), Error> {
        let tensor = self.tensor(name).ok_or_else(|| self.error(format!("missing tensor {name}")))?;
        match tensor.tensor_type.block().zip(tensor.row_bytes()) {
            Some((block, row_bytes)) => Ok((tensor, block, row_bytes)),
            None => {
                let supported = TensorType::supported();
                let got = tensor.tensor_type;
                Err(self.error(format!("tensor {name}: unsupported type {got}: expected one of {supported}")))
            }
        }
    }

    fn read_at(&mut self, name: &str, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(bytes));
        read.map_err(|error| self.error(format!("tensor {name}: {error}")))
    }

    /// Makes an error about this file.
    pub(super) fn error(&self, reason: String) -> Error {
        read_error(&self.path)(reason)
    }
}

fn open(path: &Path) -> Result<(File, Header), String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a file".into());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let header = header::read(BufReader::new(&file), metadata.len())?;
    Ok((file, header))
}
