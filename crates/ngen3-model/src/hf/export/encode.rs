//! Number types of exports, and the encoding of parameters as bytes.

use std::io::{self, Write};
use std::ops::Range;
use std::str::FromStr;

use half::{bf16, f16};

use crate::{Error, Param, gguf};

/// Number of elements in a block of [`ExportDtype::Q8_0`] and [`ExportDtype::Q4_0`], which share a scale.
pub(super) const BLOCK: usize = 32;
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
    /// 4-bit integers, 32 of them with a float16 scale; the embedding and the head are `Q8_0`. GGUF only.
    Q4_0,
}

impl ExportDtype {
    /// All types, in the order of their names in errors.
    const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_0];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Returns true for the types of quantized blocks, which only GGUF has.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }

    /// Returns the size of this many elements, in bytes. For quantized types, `elements` is a multiple of [`BLOCK`].
    pub(super) fn bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 => 4 * elements,
            Self::Bf16 | Self::F16 => 2 * elements,
            Self::Q8_0 => elements / BLOCK * (BLOCK + 2),
            Self::Q4_0 => elements / BLOCK * (BLOCK / 2 + 2),
        }
    }
}

impl FromStr for ExportDtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| Error::Config("expected f32, bf16, f16, or for GGUF also q8_0 or q4_0".into()))
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
            ExportDtype::Q8_0 => quantize(param, values, bytes, self.dtype, q8_0)?,
            ExportDtype::Q4_0 => quantize(param, values, bytes, self.dtype, q4_0)?,
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

/// Writes blocks of a quantized type, each its float16 scale and then its integers. `quantizer` returns a block's scale and
/// writes the integers.
fn quantize(
    param: &Param,
    values: &[f32],
    out: &mut Vec<u8>,
    dtype: ExportDtype,
    quantizer: impl Fn(&[f32; BLOCK], &mut Vec<u8>) -> f32,
) -> io::Result<()> {
    let (blocks, []) = values.as_chunks::<BLOCK>() else { unreachable!("rows of whole blocks") };
    for block in blocks {
        if let Some(value) = block.iter().find(|value| !value.is_finite()) {
            let (param, name) = (param.name(), dtype.name());
            return Err(io::Error::other(format!("{param} holds {value}, which {name} cannot store")));
        }
        let start = out.len();
        out.extend([0; 2]);
        let scale = quantizer(block, out);
        let scale = fits(param, scale, f16::from_f32(scale), f16::is_infinite, dtype.name())?;
        out[start..start + 2].copy_from_slice(&scale.to_le_bytes());
    }
    Ok(())
}

/// Quantizes as `quantize_row_q8_0_ref` of ggml: the scale is the block's largest magnitude over 127.
fn q8_0(block: &[f32; BLOCK], out: &mut Vec<u8>) -> f32 {
    let scale = block.iter().fold(0f32, |max, value| max.max(value.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
    scale
}

/// Quantizes with [`gguf::round_to_q4_0`]. A byte holds element `i` in its low half and element `i + 16` in its high half.
fn q4_0(block: &[f32; BLOCK], out: &mut Vec<u8>) -> f32 {
    let (scale, quantized) = gguf::round_to_q4_0(block);
    let (low, high) = quantized.split_at(BLOCK / 2);
    out.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
    scale
}

#[cfg(test)]
mod tests {
    use std::iter::zip;

    use super::*;
    use crate::gguf::Gguf;
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
        let mut block = [0.5; BLOCK];
        block[7] = f32::NAN;
        for (dtype, name) in [(ExportDtype::Q8_0, "q8_0"), (ExportDtype::Q4_0, "q4_0")] {
            let error = encoded(dtype, &block).unwrap_err().to_string();
            assert_eq!(error, format!("transformer.wte.weight holds NaN, which {name} cannot store"));
        }
        block = [8e5; BLOCK];
        let error = encoded(ExportDtype::Q4_0, &block).unwrap_err().to_string();
        assert_eq!(error, "transformer.wte.weight holds -1e5, which is too large for q4_0");
    }

    #[test]
    fn quantized_blocks_are_those_of_gguf_quants() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/quantized.gguf");
        let mut file = Gguf::open(path.as_ref()).unwrap();
        let rows = file.tensor("values").unwrap().rows();
        let mut values = vec![0.0; rows * BLOCK];
        file.read_f32("values", &mut values).unwrap();
        for (name, dtype) in [("Q8_0", ExportDtype::Q8_0), ("Q4_0", ExportDtype::Q4_0)] {
            let found = encoded(dtype, &values).unwrap();
            let mut expected = vec![0; found.len()];
            file.read_rows(name, 0..rows, &mut expected).unwrap();
            for (row, (found, expected)) in
                zip(found.chunks(found.len() / rows), expected.chunks(found.len() / rows)).enumerate()
            {
                assert_eq!(found, expected, "{name}, block {row}");
            }
        }
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
