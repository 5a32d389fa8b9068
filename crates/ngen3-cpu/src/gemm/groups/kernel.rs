//! Product of some rows of inputs and one panel: the choice of the kernel, and the kernel in plain Rust.

use half::f16;

use super::format::{Format, GROUP, LANES, Panel, ROWS, Sums};
use super::inputs::Inputs;
use crate::gemm::view::MatMut;
use ngen3_simd::simd;

/// Adds the product of the first rows of `x` and a panel to `y`, `[rows, up to 16]`, and returns the number of rows that it took.
pub fn add(format: Format, panel: Panel<'_>, x: Inputs<'_>, y: &mut MatMut<'_>) -> usize {
    match y.n_rows() {
        0..2 => add_rows::<1>(format, panel, x, y),
        2..4 => add_rows::<2>(format, panel, x, y),
        4..8 => add_rows::<4>(format, panel, x, y),
        _ => add_rows::<ROWS>(format, panel, x, y),
    }
}

fn add_rows<const R: usize>(format: Format, panel: Panel<'_>, x: Inputs<'_>, y: &mut MatMut<'_>) -> usize {
    for (i, sums) in sums::<R>(format, panel, x).iter().enumerate() {
        y.row_mut(i).iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
    }
    R
}

/// Checks the lengths, on which the kernels for vectors rely.
fn check(format: Format, panel: Panel<'_>, x: Inputs<'_>, rows: usize) {
    let groups = x.groups();
    let minimums = if format.has_minimum() { groups * LANES } else { 0 };
    let lengths = (panel.elements.len(), panel.scales.len(), panel.minimums.len());
    assert_eq!(lengths, (groups * LANES * format.bytes(), groups * LANES, minimums), "lengths of a panel");
    assert!(x.rows() >= rows, "expected {rows} rows of inputs, got {}", x.rows());
}

/// Returns the sums of `R` rows, by the kernel for this processor.
///
/// # Panics
/// If the lengths do not match.
pub fn sums<const R: usize>(format: Format, panel: Panel<'_>, x: Inputs<'_>) -> Sums<R> {
    check(format, panel, x, R);
    #[cfg(target_arch = "x86_64")]
    if let Some(sums) = super::x86::sums(format, panel, x) {
        return sums;
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(sums) = super::arm::sums(format, panel, x) {
        return sums;
    }
    plain(format, panel, x)
}

/// The kernel in plain Rust.
pub fn plain<const R: usize>(format: Format, panel: Panel<'_>, x: Inputs<'_>) -> Sums<R> {
    simd(
        #[inline(always)]
        || {
            let mut sums = [[0.0f32; LANES]; R];
            let bytes = LANES * format.bytes();
            for (row, sums) in sums.iter_mut().enumerate() {
                let (at, groups) = (row * x.stride(), x.groups());
                for group in 0..groups {
                    let mut dots = [x.starts()[at + group]; LANES];
                    let cells = &x.cells()[at + group * (GROUP / 4)..][..GROUP / 4];
                    let elements = &panel.elements[group * bytes..][..bytes];
                    for (c, elements) in elements.chunks_exact(4 * LANES).enumerate() {
                        for (dot, four) in dots.iter_mut().zip(elements.as_chunks::<4>().0) {
                            *dot += match format {
                                Format::Q8_0 => products(*four, cells[c]),
                                _ => {
                                    products(four.map(|byte| byte & 15), cells[c])
                                        + products(four.map(|byte| byte >> 4), cells[c + GROUP / 8])
                                }
                            };
                        }
                    }
                    let (scale, total) = (x.scales()[at + group], x.sums()[at + group]);
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        let d = f16::from_bits(panel.scales[group * LANES + lane]).to_f32();
                        *sum = (dots[lane] as f32).mul_add(d * scale, *sum);
                        if format.has_minimum() {
                            let m = f16::from_bits(panel.minimums[group * LANES + lane]).to_f32();
                            *sum = m.mul_add(total, *sum);
                        }
                    }
                }
            }
            sums
        },
    )
}

/// Sum of four products.
#[inline(always)]
fn products(u: [u8; 4], q: i32) -> i32 {
    let q = q.to_le_bytes().map(|q| i32::from(q as i8));
    let u = u.map(i32::from);
    u[0] * q[0] + u[1] * q[1] + u[2] * q[2] + u[3] * q[3]
}
