//! Checks every feature of the GPU engine against the reference engine, on odd sizes.

mod common;

use common::gpu;
use ngen3_engine::Options;
use ngen3_engine::reference::conformance::{Tolerance, cases, check};

/// f32: the exponentials of drivers are not as exact as those of a CPU.
const TOLERANCE: Tolerance = Tolerance { loss: 1e-5, gradient: 5e-5 };

#[test]
fn every_feature_agrees_with_the_reference() {
    let Some(gpu) = gpu() else { return };
    // Whole parameters, and embeddings in pieces.
    let cut = gpu.with_segments_of(6400);
    for (index, case) in cases().into_iter().enumerate() {
        for (gpu, recompute) in [(gpu, index % 2 == 1), (&cut, index % 2 == 0)] {
            let options = Options { recompute, ..Options::default() };
            let compared = check(gpu, options, TOLERANCE, &case)
                .unwrap_or_else(|error| panic!("{}, recompute {recompute}: {error}", case.name));
            let expected: &[&str] = match case.has_gradient() {
                true => &["losses", "training", "updates", "muon", "adapters", "distillation", "decoding"],
                // Sequences that continue others have losses only.
                false => &["losses"],
            };
            assert_eq!(compared, expected, "{}", case.name);
        }
    }
}
