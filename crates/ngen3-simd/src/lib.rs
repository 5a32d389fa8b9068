//! Runs loops with the widest vector instructions of the processor.
//!
//! Kernels are plain loops over slices. [`simd`] calls a closure in a copy compiled for AVX-512, AVX2 with FMA, NEON or the
//! target's baseline, whichever the processor supports at run time; the compiler vectorises the loop in each copy. [`path`]
//! names the path in use, for code that chooses among kernels of its own. `NGEN3_SIMD=scalar`, `avx2`, `avx512`, `amx` or `neon` forces
//! a path, to compare or to debug: see [`forced`]. [`amx`] detects and enables the tile registers of recent Intel processors.
//!
//! Functions that a closure calls must be `#[inline(always)]`; otherwise they are compiled for the baseline only.

#[cfg(target_arch = "x86_64")]
pub mod amx;
mod path;
pub mod top_k;

pub use path::{Path, forced};

use std::sync::OnceLock;

use pulp::Arch;

/// Path of this process, and the vectors that it compiles plain loops for.
fn chosen() -> (Path, Arch) {
    static CHOSEN: OnceLock<(Path, Arch)> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let path = forced().ok().flatten().unwrap_or_else(Path::widest);
        (path, path.arch().unwrap_or_default())
    })
}

fn arch() -> Arch {
    chosen().1
}

/// Returns the path of this process: the forced one if the processor supports it, otherwise the widest.
pub fn path() -> Path {
    chosen().0
}

/// Returns true if AVX-512 kernels may run.
#[cfg(target_arch = "x86_64")]
pub fn avx512() -> bool {
    matches!(arch(), Arch::V4(_))
}

/// Calls `f`, compiled for the widest vectors available. `f` should be marked `#[inline(always)]`.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    arch().dispatch(f)
}

/// Number of partial sums of a sum of f32, which let it vectorise. The order of additions is the same for every vector width,
/// and so are the bits of the result.
pub const LANES: usize = 16;

/// `Σ f(a[i], b[i])`, in an order that does not depend on the vector width.
#[inline(always)]
pub fn sum_zip(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += f(a, b);
    }
    fold(lanes)
}

/// `Σ f(a[i])`, in an order that does not depend on the vector width.
#[inline(always)]
pub fn sum(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sum_zip(
        a,
        a,
        #[inline(always)]
        |a, _| f(a),
    )
}

/// Largest element; −∞ if there are none.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// Adds the lanes pairwise, as a tree.
#[inline(always)]
pub fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `eˣ` for x in [−87, 88], with a relative error below 3e-7 + 8e-8·|x|; outside, the value at the nearest bound (never 0 or
/// ∞).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // NaN passes through both comparisons.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    exp2(x * std::f32::consts::LOG2_E)
}

/// `2ᵗ` for t in [−126, 127], with a relative error below 3e-7.
#[inline(always)]
pub fn exp2(t: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer and puts it into the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = t + ROUND;
    let f = t - (shifted - ROUND);
    let p = EXP2.iter().skip(1).fold(
        EXP2[0],
        #[inline(always)]
        |p, c| p * f + c,
    );
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// Coefficients of the minimax polynomial of 2ᶠ on [−½, ½] (Remez 1934), from f⁵ down; relative error 7.5e-8 before rounding.
pub const EXP2: [f32; 6] = [1.327_647_2e-3, 9.675_541e-3, 5.550_713e-2, 2.402_212e-1, 6.931_469_4e-1, 1.000_000_1];

/// Replaces each x by `exp(scale·(x − shift))`. Returns their sum, in the order of [`sum`].
#[inline(always)]
pub fn exp_and_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(scale * (chunk[i] - shift));
            lanes[i] += chunk[i];
        }
    }
    for (i, x) in rest.iter_mut().enumerate() {
        *x = exp(scale * (*x - shift));
        lanes[i] += *x;
    }
    fold(lanes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn exp_is_as_near_as_stated() {
        for i in 0..1_000_000 {
            let x = -87.0 + 175.0 * i as f32 / 1e6;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) / exact - 1.0).abs();
            assert!(error < 3e-7 + 8e-8 * f64::from(x.abs()), "exp({x}): {error:e}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) > 0.0 && exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn every_vector_width_gives_the_same_bits() {
        let values = (0..1003).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect::<Vec<f32>>();
        let run = || (sum(&values, |x| exp(x) * x), max(&values), exp(values[3]));
        let wide = simd(run);
        for path in Path::TARGET {
            match path.run(run) {
                Some(found) => assert_eq!(found, wide, "{path:?}"),
                // Written to stderr directly, since the test harness captures prints.
                None => {
                    let _ = writeln!(std::io::stderr(), "SKIPPED: {} is not supported by this processor", path.name());
                }
            }
        }
    }
}
