//! Rounding to the blocks of quantized tensors.

/// Values of a block of `Q4_0`, which share a scale.
pub const BLOCK: usize = 32;

/// Rounds a block to `Q4_0` as ggml's `quantize_row_q4_0_ref`: returns d and u, with x ≈ d·(u − 8) and u below 16. The value of the
/// largest magnitude becomes −8·d. The values must be finite.
pub fn round_to_q4_0(block: &[f32; BLOCK]) -> (f32, [u8; BLOCK]) {
    let largest = block.iter().fold(0f32, |max, &value| if max.abs() < value.abs() { value } else { max });
    let d = largest / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    // Rounded twice, as gguf.quants does. ggml's differs where its compiler fuses the two operations.
    (d, block.map(|value| ((value * inverse + 8.5) as u8).min(15)))
}
