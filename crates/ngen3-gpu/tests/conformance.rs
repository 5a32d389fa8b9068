//! Checks every feature of the GPU engine against the reference engine, on odd sizes.

mod common;

use common::gpu;
use ngen3_engine::Options;
use ngen3_engine::reference::conformance::{Tolerance, cases, check};

/// f32: the transcendental functions of drivers are not as exact as those of a CPU.
const TOLERANCE: Tolerance = Tolerance { loss: 1e-5, gradient: 5e-5 };

#[test]
fn every_feature_agrees_with_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (index, case) in cases().into_iter().enumerate() {
        // Whole parameters and embeddings in pieces, activations kept and recomputed.
        let options = Options { recompute: index % 2 == 1, ..Options::default() };
        for gpu in [gpu.clone(), gpu.with_segments_of(4096)] {
            let compared = check(&gpu, options, TOLERANCE, &case)
                .unwrap_or_else(|error| panic!("{}, {options:?}: {error}", case.name));
            eprintln!("{}: {compared:?}", case.name);
        }
    }
}
