//! Rotary positions (Su et al. 2021).

use super::groups;
use crate::device::{Kernel, Recorder, View, read, write};

/// Returns the cosines and sines of all positions, `[positions, frequencies, 2]`, times `scale`. The angle is rounded as PyTorch rounds
/// it; kernels would compute large ones far less exactly.
pub fn table(positions: usize, frequencies: &[f32], scale: f32) -> Vec<f32> {
    let turn = |position: usize, frequency: f32| {
        let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
        [cos, sin].map(|x| (f64::from(scale) * x) as f32)
    };
    (0..positions)
        .flat_map(|position| frequencies.iter().flat_map(move |&frequency| turn(position, frequency)))
        .collect()
}

/// Heads at the beginning of each token's row.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Width of a head, even.
    pub width: usize,
    /// Elements from one token to the next.
    pub stride: usize,
}

/// Rotates the heads of `x` in place, or turns their gradient `back`. `positions`: `[tokens]`; `table`: see [`table`].
///
/// # Panics
/// If a length is wrong.
pub fn rotate(
    recorder: &mut Recorder<'_>,
    heads: Heads,
    back: bool,
    positions: View<'_>,
    table: View<'_>,
    x: View<'_>,
) {
    let Heads { count, width, stride } = heads;
    let tokens = positions.len;
    assert!(count * width <= stride && tokens * stride <= x.len, "{heads:?} of {tokens} tokens in {}", x.len);
    let constants = [("DIRECTION", u32::from(back))];
    let kernel = Kernel { name: "rotary", source: include_str!("rotary.wgsl"), constants: &constants };
    let immediates = [tokens, count, width / 2, stride].map(|size| size as u32);
    recorder.dispatch(
        kernel,
        &[read(positions), read(table), write(x)],
        &immediates,
        groups(tokens * count * width / 2),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    #[test]
    fn heads_are_rotated_by_their_position_and_back() {
        let Some(context) = context() else { return };
        let heads = Heads { count: 3, width: 10, stride: 41 };
        let frequencies = [1.0, 0.3, 0.1, 0.03, 0.01];
        let positions: Vec<u32> = vec![0, 1, 5000, 7, 8191, 2];
        let x = numbers(1, positions.len() * heads.stride);
        let mut expected: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for (token, &position) in positions.iter().enumerate() {
            for head in 0..heads.count {
                for (pair, &frequency) in frequencies.iter().enumerate() {
                    let place = token * heads.stride + head * 10 + pair;
                    let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                    let (a, b) = (expected[place], expected[place + 5]);
                    expected[place] = 1.5 * (a * cos - b * sin);
                    expected[place + 5] = 1.5 * (b * cos + a * sin);
                }
            }
        }
        let buffer = context.upload("x", &x).unwrap();
        let (positions, table) = (
            context.upload("positions", &positions).unwrap(),
            context.upload("table", &table(8192, &frequencies, 1.5)).unwrap(),
        );
        rotate(&mut Recorder::new(context), heads, false, positions.all(), table.all(), buffer.all());
        close("rotated", &context.read(buffer.all()).unwrap(), &expected, 2e-7);
        rotate(&mut Recorder::new(context), heads, true, positions.all(), table.all(), buffer.all());
        let found = context.read(buffer.all()).unwrap();
        for (token, (found, x)) in found.chunks(heads.stride).zip(x.chunks(heads.stride)).enumerate() {
            let scaled: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let scaled: Vec<f64> = scaled.iter().enumerate().map(|(i, x)| if i < 30 { 2.25 * x } else { *x }).collect();
            close(&format!("token {token}, rotated back"), found, &scaled, 4e-7);
        }
    }
}
