//! [`Wire`]: how numbers travel between ranks, as they are or rounded.
//!
//! Rounded numbers are smaller: two bytes each in bf16, about one in int8. What rounding leaves out of a number is added to the next
//! that is sent in its place (error feedback; Seide et al. 2014), so that nothing is lost for good.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;

/// Numbers of int8 that share a scale.
const BLOCK: usize = 256;

/// Type of numbers on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Four bytes: exact.
    #[default]
    F32,
    /// Two bytes: 8 bits of mantissa.
    Bf16,
    /// One byte, and a scale in f32 for each 256 numbers.
    Int8,
}

impl Format {
    /// Returns the number of bytes of so many numbers.
    pub fn bytes(self, count: usize) -> usize {
        match self {
            Self::F32 => 4 * count,
            Self::Bf16 => 2 * count,
            Self::Int8 => count + 4 * count.div_ceil(BLOCK),
        }
    }

    /// Rounds numbers into `bytes`, which is as long as [`Format::bytes`] says. A number that is not finite makes those of its block
    /// NaN.
    fn encode(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            Self::F32 => bytes.copy_from_slice(bytemuck::cast_slice(values)),
            Self::Bf16 => {
                let places = bytes.as_chunks_mut().0;
                places.iter_mut().zip(values).for_each(|(place, &value)| *place = bf16::from_f32(value).to_le_bytes());
            }
            Self::Int8 => {
                for (values, bytes) in values.chunks(BLOCK).zip(bytes.chunks_mut(4 + BLOCK)) {
                    let finite = values.iter().all(|value| value.is_finite());
                    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                    let scale = if finite { largest / 127.0 } else { f32::NAN };
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    let (head, places) = bytes.split_at_mut(4);
                    head.copy_from_slice(&scale.to_le_bytes());
                    for (place, &value) in places.iter_mut().zip(values) {
                        *place = ((value * inverse).round() as i8).cast_unsigned();
                    }
                }
            }
        }
    }

    /// Calls `each` with the index and the value of each number in `bytes`.
    #[inline(always)]
    fn decode(self, bytes: &[u8], mut each: impl FnMut(usize, f32)) {
        match self {
            Self::F32 => {
                bytes.as_chunks().0.iter().enumerate().for_each(|(i, place)| each(i, f32::from_le_bytes(*place)));
            }
            Self::Bf16 => {
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .enumerate()
                    .for_each(|(i, place)| each(i, bf16::from_le_bytes(*place).into()));
            }
            Self::Int8 => {
                for (block, bytes) in bytes.chunks(4 + BLOCK).enumerate() {
                    let Some((head, places)) = bytes.split_first_chunk() else { return };
                    let scale = f32::from_le_bytes(*head);
                    for (i, &place) in places.iter().enumerate() {
                        each(block * BLOCK + i, scale * f32::from(place.cast_signed()));
                    }
                }
            }
        }
    }

    /// Replaces numbers by those in `bytes`.
    pub(crate) fn read(self, bytes: &[u8], values: &mut [f32]) {
        self.decode(bytes, |i, value| values[i] = value);
    }

    /// Adds those in `bytes` to numbers.
    pub(crate) fn add(self, bytes: &[u8], values: &mut [f32]) {
        self.decode(bytes, |i, value| values[i] += value);
    }
}

/// Way of an array that travels again and again, such as the gradients of each step.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    format: Format,
    /// Parts of the numbers that rounding has left out so far, `[total]`; empty if the format is exact.
    residual: Vec<f32>,
    /// Numbers and residuals, to be rounded.
    sums: Vec<f32>,
    /// A rank's own numbers, while its sums are formed in their place.
    pub(crate) own: Vec<f32>,
    /// Numbers of the other ranks.
    pub(crate) received: Received,
}

/// Buffers of what arrives from each rank.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received(Vec<Vec<u8>>);

impl Received {
    /// Returns the buffer of what arrives from a rank, with this length.
    pub fn from(&mut self, rank: usize, bytes: usize) -> &mut [u8] {
        if self.0.len() <= rank {
            self.0.resize_with(rank + 1, Vec::new);
        }
        let buffer = &mut self.0[rank];
        buffer.resize(bytes, 0);
        buffer
    }
}

impl Wire {
    /// Creates the way of an array of `total` numbers.
    pub fn new(format: Format, total: usize) -> Self {
        let residual = if format == Format::F32 { Vec::new() } else { vec![0.0; total] };
        Self { format, residual, ..Self::default() }
    }

    /// Returns the format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the bytes of some numbers, those of `range` of the array, with their residuals, of which what is left out now is the
    /// next.
    pub(crate) fn pack<'v>(&mut self, values: &'v [f32], range: Range<usize>) -> Cow<'v, [u8]> {
        let Self { format, residual, sums, .. } = self;
        if *format == Format::F32 {
            return Cow::Borrowed(bytemuck::cast_slice(values));
        }
        let residual = &mut residual[range];
        sums.clear();
        sums.extend(values.iter().zip(&*residual).map(|(value, rest)| value + rest));
        let mut bytes = vec![0; format.bytes(values.len())];
        format.encode(sums, &mut bytes);
        format.decode(&bytes, |i, sent| residual[i] = sums[i] - sent);
        Cow::Owned(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};

    use super::*;

    const ROUNDED: [(Format, f32); 2] = [(Format::Bf16, 1.0 / 256.0), (Format::Int8, 1.0 / 254.0)];

    #[test]
    fn exact_numbers_travel_as_they_are() {
        let values = [1.5, -0.0, f32::NAN, 1e-40];
        let mut wire = Wire::default();
        let bytes = wire.pack(&values, 0..4);
        let mut found = [0.0; 4];
        Format::F32.read(&bytes, &mut found);
        assert_eq!(found.map(f32::to_bits), values.map(f32::to_bits));
    }

    #[test]
    fn what_is_not_finite_arrives_so() {
        for (format, _) in ROUNDED {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut values = vec![1.0; 600];
                values[300] = bad;
                let bytes = Wire::new(format, 600).pack(&values, 0..600).into_owned();
                let mut found = vec![0.0; 600];
                format.read(&bytes, &mut found);
                assert!(!found[300].is_finite(), "{format:?} {bad}");
                assert!(found[..256].iter().chain(&found[512..]).all(|value| (value - 1.0).abs() < 1e-6));
            }
        }
    }

    proptest! {
        #[test]
        fn what_rounding_leaves_out_arrives_later(
            values in proptest::collection::vec(-1e3f32..1e3, 1..600),
            rounds in 1usize..20,
        ) {
            let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            for (format, step) in ROUNDED {
                let mut wire = Wire::new(format, values.len());
                let mut arrived = vec![0.0; values.len()];
                for _ in 0..rounds {
                    let bytes = wire.pack(&values, 0..values.len()).into_owned();
                    prop_assert!(bytes.len() == format.bytes(values.len()));
                    format.add(&bytes, &mut arrived);
                }
                for (arrived, value) in arrived.iter().zip(&values) {
                    // The rounding of the last time, of a number with at most as large a residual.
                    let error = (arrived - rounds as f32 * value).abs();
                    prop_assert!(error <= 1.1 * step * largest + 1e-3, "{format:?}: {arrived} of {rounds} x {value}");
                }
            }
        }
    }
}
