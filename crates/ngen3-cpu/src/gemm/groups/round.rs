//! Rounding to `Q4_0`: ggml's `quantize_row_q4_0_ref`.

use half::f16;
use ngen3_model::gguf;

use super::format::{Format, GROUP};

/// Rounds a row to blocks `{ d: f16, qs: [u8; 16] }`. The last group is padded with zeros.
pub fn q4_0(row: &[f32], blocks: &mut [u8]) {
    for (group, block) in row.chunks(GROUP).zip(blocks.chunks_exact_mut(Format::Q4_0.block())) {
        let (d, u) = round(group);
        block[..2].copy_from_slice(&d.to_le_bytes());
        for (i, byte) in block[2..].iter_mut().enumerate() {
            *byte = u[i] | u[i + GROUP / 2] << 4;
        }
    }
}

/// Replaces a row by the values that it has in `Q4_0`. Rounding these again changes nothing.
pub fn round_to_int4(row: &mut [f32]) {
    for group in row.chunks_mut(GROUP) {
        let (d, u) = round(group);
        group.iter_mut().zip(u).for_each(|(x, u)| *x = d.to_f32() * (f32::from(u) - 8.0));
    }
}

/// Returns d and u of a group of up to 32 elements: x ≈ d·(u − 8). d is NaN if an element is not finite.
fn round(group: &[f32]) -> (f16, [u8; GROUP]) {
    if group.iter().any(|x| !x.is_finite()) {
        return (f16::NAN, [0; GROUP]);
    }
    let mut block = [0.0; GROUP];
    block[..group.len()].copy_from_slice(group);
    let (d, u) = gguf::round_to_q4_0(&block);
    // ggml stores an infinite scale for magnitudes above 524,032; the largest finite one keeps the model running.
    (f16::from_f32(d.clamp(-65_504.0, 65_504.0)), u)
}
