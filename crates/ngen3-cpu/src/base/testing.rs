//! Helpers shared by the kernels' tests.

use std::io::Write;
use std::process::Command;
use std::sync::Once;

use ngen3_simd::Path;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Returns `n` uniform numbers in [−1, 1).
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Returns `Σ a·b`: turns a tensor `a` into a scalar loss with gradient `b`.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Checks `grad` against central differences of `loss` at `x`, at up to 60 evenly spaced elements.
pub fn check_gradient(x: &[f32], grad: &[f32], loss: impl Fn(&[f32]) -> f64) {
    assert_eq!(x.len(), grad.len());
    const STEP: f32 = 1e-2;
    let scale = grad.iter().fold(0.0f32, |m, g| m.max(g.abs()));
    for i in (0..x.len()).step_by(x.len().div_ceil(60)) {
        // Fourth order, so that the step can be large enough to hide f32 rounding.
        let at = |offset: f32| {
            let mut moved = x.to_vec();
            moved[i] += offset;
            (loss(&moved), f64::from(moved[i]))
        };
        let ((a, xa), (b, xb)) = (at(-STEP), at(STEP));
        let ((c, xc), (d, xd)) = (at(-2.0 * STEP), at(2.0 * STEP));
        let expected = (4.0 * (b - a) / (xb - xa) - (d - c) / (xd - xc)) / 3.0;
        let error = (f64::from(grad[i]) - expected).abs();
        assert!(error < 1e-3 * f64::from(scale), "element {i}: gradient {}, finite difference {expected}", grad[i]);
    }
}

/// Reports a skipped check on stderr directly, since the test harness captures `eprintln!`.
pub fn skip(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what} (vector path: {})", ngen3_simd::path().name());
}

/// Reports, once, that tests skip bf16: the processor lacks bf16 products, or `NGEN3_SIMD` forces a narrower path.
pub fn skipped_bf16() {
    static SAID: Once = Once::new();
    SAID.call_once(|| skip("products in bf16"));
}

/// Reruns tests in a child process for every other vector path, since a process uses only one. `names`: parts of their names;
/// tests with `every_path` in their name are left out.
pub fn rerun_on_other_paths(names: &[&str]) {
    if ngen3_simd::forced() != Ok(None) {
        return;
    }
    for &path in Path::TARGET.iter().filter(|&&path| path != ngen3_simd::path()) {
        if !path.is_available() {
            skip(&format!("{} on {}", names.join(", "), path.name()));
            continue;
        }
        let tests = std::env::current_exe().expect("path of the test binary");
        let found =
            Command::new(tests).args(names).args(["--skip", "every_path"]).env("NGEN3_SIMD", path.name()).output();
        let found = found.expect("the test binary starts");
        let said = String::from_utf8_lossy(&found.stdout);
        assert!(found.status.success(), "{path:?}: {said}{}", String::from_utf8_lossy(&found.stderr));
        assert!(!said.contains("\nrunning 0 tests"), "{path:?}: {said}");
    }
}
