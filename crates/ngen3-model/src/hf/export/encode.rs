//! Number types of exports, and the encoding of parameters as bytes.

use std::io::{self, Write};
use std::ops::Range;
use std::str::FromStr;

use half::{bf16, f16};

use crate::{Error, Param};

/// Number of elements in a block of [`ExportDtype::Q8_0`], which share a scale.
pub(super) const Q8_BLOCK: usize = 32;
/// Number of columns gathered at a time to write a transposed matrix: a cache line of each row.
const STRIPE: usize = 16;

/// Type of the numbers in an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportDtype {
    /// float32: exact.
    F32,
    /// bfloat16: the range of f32, 8 bits of precision.
    Bf16,
    /// float16: 11 bits of precision, up to 65,504.
    F16,
    /// 8-bit integers, 32 of them with a float16 scale. GGUF only.
    Q8_0,
}

impl ExportDtype {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Returns the size of this many elements, in bytes. For `Q8_0`, `elements` is a multiple of [`Q8_BLOCK`].
    pub(super) fn bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 => 4 * elements,
            Self::Bf16 | Self::F16 => 2 * elements,
            Self::Q8_0 => elements / Q8_BLOCK * (Q8_BLOCK + 2),
        }
    }
}

impl FromStr for ExportDtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::F32, Self::Bf16, Self::F16, Self::Q8_0]
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| Error::Config("expected f32, bf16, f16 or q8_0 (GGUF only)".into()))
    }
}

/// Writes numbers of one type, little-endian.
pub(super) struct Encoder<'a, W> {
    out: &'a mut W,
    dtype: ExportDtype,
    bytes: Vec<u8>,
}

impl<'a, W: Write> Encoder<'a, W> {
    pub fn new(out: &'a mut W, dtype: ExportDtype) -> Self {
        Self { out, dtype, bytes: Vec::new() }
    }

    /// Writes `values` of `param`.
    ///
    /// # Errors
    /// A failed write, or a value that the type cannot hold.
    pub fn write(&mut self, param: &Param, values: &[f32]) -> io::Result<()> {
        self.bytes.clear();
        let bytes = &mut self.bytes;
        match self.dtype {
            ExportDtype::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            ExportDtype::Bf16 => {
                for &value in values {
                    bytes.extend(fits(param, value, bf16::from_f32(value), bf16::is_infinite, "bf16")?.to_le_bytes());
                }
            }
            ExportDtype::F16 => {
                for &value in values {
                    bytes.extend(fits(param, value, f16::from_f32(value), f16::is_infinite, "f16")?.to_le_bytes());
                }
            }
            ExportDtype::Q8_0 => {
                let (blocks, []) = values.as_chunks::<Q8_BLOCK>() else { unreachable!("rows of whole blocks") };
                for block in blocks {
                    quantise(param, block, bytes)?;
                }
            }
        }
        self.out.write_all(bytes)
    }

    /// Writes the transpose of a matrix with this many rows.
    ///
    /// # Errors
    /// As [`Encoder::write`].
    pub fn write_transposed(&mut self, param: &Param, values: &[f32], rows: usize) -> io::Result<()> {
        let width = values.len() / rows;
        let mut stripe = Vec::with_capacity(STRIPE * rows);
        for start in (0..width).step_by(STRIPE) {
            let columns: Range<usize> = start..(start + STRIPE).min(width);
            stripe.resize(columns.len() * rows, 0.0);
            for (row, values) in values.chunks_exact(width).enumerate() {
                for (line, value) in values[columns.clone()].iter().enumerate() {
                    stripe[line * rows + row] = *value;
                }
            }
            self.write(param, &stripe)?;
        }
        Ok(())
    }
}

/// Returns `narrow`, which is `value` in a narrower type, unless it became infinite.
fn fits<T: Copy>(param: &Param, value: f32, narrow: T, infinite: impl Fn(T) -> bool, name: &str) -> io::Result<T> {
    if value.is_finite() && infinite(narrow) {
        return Err(io::Error::other(format!("{} holds {value:e}, which is too large for {name}", param.name())));
    }
    Ok(narrow)
}

/// GGML's `Q8_0`: a float16 scale, the block's largest magnitude over 127, then the values as multiples of it, rounded to int8.
fn quantise(param: &Param, block: &[f32; Q8_BLOCK], out: &mut Vec<u8>) -> io::Result<()> {
    if let Some(value) = block.iter().find(|value| !value.is_finite()) {
        return Err(io::Error::other(format!("{} holds {value}, which q8_0 cannot store", param.name())));
    }
    let scale = block.iter().fold(0f32, |max, value| max.max(value.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(fits(param, scale, f16::from_f32(scale), f16::is_infinite, "q8_0")?.to_le_bytes());
    out.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Init, Role};

    fn param(shape: Vec<usize>) -> Param {
        Param {
            role: Role::Wte,
            family: crate::Family::Gpt2,
            layer: None,
            adapter: None,
            shape,
            offset: 0,
            init: Init::Zeros,
            stream: 0,
        }
    }

    fn encoded(dtype: ExportDtype, values: &[f32]) -> io::Result<Vec<u8>> {
        let param = param(vec![values.len()]);
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes, dtype).write(&param, values)?;
        assert_eq!(bytes.len(), dtype.bytes(values.len()));
        Ok(bytes)
    }

    #[test]
    fn a_number_too_large_for_its_type_is_named() {
        assert_eq!(encoded(ExportDtype::F16, &[65_504.0, f32::INFINITY]).unwrap(), [0xff, 0x7b, 0x00, 0x7c]);
        let error = encoded(ExportDtype::F16, &[1.0, -1e5]).unwrap_err().to_string();
        assert_eq!(error, "transformer.wte.weight holds -1e5, which is too large for f16");
        assert_eq!(encoded(ExportDtype::Bf16, &[1e5, 1.0]).unwrap(), [0xc3, 0x47, 0x80, 0x3f]);
        let error = encoded(ExportDtype::Bf16, &[f32::MAX]).unwrap_err().to_string();
        assert!(error.contains("too large for bf16"), "{error}");
        let mut block = [0.5; Q8_BLOCK];
        block[7] = f32::NAN;
        let error = encoded(ExportDtype::Q8_0, &block).unwrap_err().to_string();
        assert_eq!(error, "transformer.wte.weight holds NaN, which q8_0 cannot store");
    }

    #[test]
    fn a_block_of_q8_0_is_within_half_a_scale_of_its_numbers() {
        let values: Vec<f32> = (0..64).map(|i| (i * i % 61) as f32 / 7.0 - 3.0).collect();
        let bytes = encoded(ExportDtype::Q8_0, &values).unwrap();
        for (block, values) in bytes.chunks(34).zip(values.chunks(32)) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (byte, value) in block[2..].iter().zip(values) {
                let found = f32::from(*byte as i8) * scale;
                assert!((found - value).abs() < 0.51 * scale, "{found} for {value}");
            }
        }
        assert_eq!(encoded(ExportDtype::Q8_0, &[0.0; 32]).unwrap(), [0; 34]);
    }

    #[test]
    fn a_transposed_matrix_has_its_columns_as_rows() {
        let (rows, width) = (5, 37);
        let values: Vec<f32> = (0..rows * width).map(|i| i as f32).collect();
        let param = param(vec![rows, width]);
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes, ExportDtype::F32).write_transposed(&param, &values, rows).unwrap();
        let expected = (0..width).flat_map(|column| (0..rows).map(move |row| (row * width + column) as f32));
        let expected: Vec<u8> = expected.flat_map(f32::to_le_bytes).collect();
        assert_eq!(bytes, expected);
    }
}
