//! Blocks of quantized elements to f32.
//!
//! The formulas are those of ggml: `block_*` in `ggml-common.h` gives a block's bytes, `dequantize_row_*` in `ggml-quants.c` its
//! values. Each operation is rounded to f32, in ggml's order, so that the values are the reference's bit for bit.

use half::{bf16, f16};

use super::types::TensorType;

impl TensorType {
    /// Converts whole blocks to f32.
    ///
    /// # Panics
    /// If the type is not supported, or the lengths do not match: `out` has the elements of the blocks in `bytes`.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => blocks(bytes, out, |b, [x]| *x = f32::from_le_bytes(*b)),
            Self::F16 => blocks(bytes, out, |b, [x]| *x = f16::from_le_bytes(*b).to_f32()),
            Self::Bf16 => blocks(bytes, out, |b, [x]| *x = bf16::from_le_bytes(*b).to_f32()),
            Self::Q4_0 => blocks(bytes, out, q4_0),
            Self::Q4_1 => blocks(bytes, out, q4_1),
            Self::Q5_0 => blocks(bytes, out, q5_0),
            Self::Q5_1 => blocks(bytes, out, q5_1),
            Self::Q8_0 => blocks(bytes, out, q8_0),
            Self::Q4K => blocks(bytes, out, q4_k),
            Self::Q5K => blocks(bytes, out, q5_k),
            Self::Q6K => blocks(bytes, out, q6_k),
            Self::Other(_) => panic!("{self} is not supported"),
        }
    }
}

/// Calls `decode` with each block of `BYTES` bytes and `LEN` elements.
fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, rest) = bytes.as_chunks::<BYTES>();
    let (values, more) = out.as_chunks_mut::<LEN>();
    assert!(rest.is_empty() && more.is_empty() && blocks.len() == values.len(), "the blocks match the elements");
    blocks.iter().zip(values).for_each(|(block, values)| decode(block, values));
}

/// Reads the f16 at byte `at` of a block.
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `{ d: f16, qs: [u8; 16] }`: `d · (q − 8)`. Low halves of `qs` are elements 0 to 15, high halves 16 to 31.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (i, q) in nibbles(&block[2..]) {
        out[i] = d * f32::from(q as i8 - 8);
    }
}

/// `{ d: f16, m: f16, qs: [u8; 16] }`: `d · q + m`.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for (i, q) in nibbles(&block[4..]) {
        out[i] = d * f32::from(q) + m;
    }
}

/// `{ d: f16, qh: u32, qs: [u8; 16] }`: `d · (q − 16)`. Bit `i` of `qh` is the fifth bit of element `i`.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    let high = high_bits(&block[2..6]);
    for (i, q) in nibbles(&block[6..]) {
        out[i] = d * f32::from((q | high(i)) as i8 - 16);
    }
}

/// `{ d: f16, m: f16, qh: u32, qs: [u8; 16] }`: `d · q + m`.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let high = high_bits(&block[4..8]);
    for (i, q) in nibbles(&block[8..]) {
        out[i] = d * f32::from(q | high(i)) + m;
    }
}

/// `{ d: f16, qs: [i8; 32] }`: `q · d`.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (x, &q) in out.iter_mut().zip(&block[2..]) {
        *x = f32::from(q as i8) * d;
    }
}

/// `{ d: f16, dmin: f16, scales: [u8; 12], qs: [u8; 128] }`: `(d · scale) · q − (dmin · min)`, with a scale and a minimum for each 32
/// elements. Every 32 bytes of `qs` hold 64 elements: low halves, then high halves.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    for (part, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], part);
        let (scale, min) = (d * scale, dmin * min);
        let qs = &block[16 + 32 * (part / 2)..][..32];
        for (x, q) in values.iter_mut().zip(qs) {
            *x = scale * f32::from(half_of(*q, part)) - min;
        }
    }
}

/// `{ d: f16, dmin: f16, scales: [u8; 12], qh: [u8; 32], qs: [u8; 128] }`: as [`q4_k`], with a fifth bit. Bit `i` of `qh[j]` belongs to
/// element `j` of the `i`-th 32.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    for (part, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], part);
        let (scale, min) = (d * scale, dmin * min);
        let qs = &block[48 + 32 * (part / 2)..][..32];
        for ((x, q), high) in values.iter_mut().zip(qs).zip(&block[16..48]) {
            let q = half_of(*q, part) | (high >> part & 1) << 4;
            *x = scale * f32::from(q) - min;
        }
    }
}

/// `{ ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: f16 }`: `(d · scale) · (q − 32)`, with a scale for each 16 elements. For each half of
/// the block, 64 bytes of `ql` hold the low four bits (low halves, then high halves), 32 bytes of `qh` the high two.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = scale(block, 208);
    for (part, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (part / 4, part % 4);
        let low = &block[64 * half + 32 * (quarter % 2)..][..32];
        let high = &block[128 + 32 * half..][..32];
        for (i, x) in values.iter_mut().enumerate() {
            let q = half_of(low[i], quarter / 2) | (high[i] >> (2 * quarter) & 3) << 4;
            let scale = f32::from(block[192 + 2 * part + i / 16] as i8);
            *x = d * scale * f32::from(q as i8 - 32);
        }
    }
}

/// Returns the four-bit elements of 16 bytes with their indices: low halves first.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = (usize, u8)> {
    bytes.iter().enumerate().flat_map(|(i, byte)| [(i, byte & 15), (i + 16, byte >> 4)])
}

/// Returns the fifth bits of 32 elements, in place.
fn high_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
    move |i| ((bits >> i & 1) as u8) << 4
}

/// Returns the low half of a byte for even parts, the high half for odd ones.
fn half_of(byte: u8, part: usize) -> u8 {
    if part.is_multiple_of(2) { byte & 15 } else { byte >> 4 }
}

/// Returns scale and minimum `part` of eight each, packed in 12 bytes: the first four have 6 bits of a byte each; the others' low
/// four bits are in the last four bytes, their high two bits in the top of the first eight.
fn scale_and_min(packed: &[u8], part: usize) -> (f32, f32) {
    let (scale, min) = if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        let low = packed[part + 4];
        (low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}
