//! Checks every feature of the CPU engine against the reference engine, on odd sizes. `.ci/run` repeats it on every vector path.

use ngen3_cpu::Cpu;
use ngen3_engine::reference::conformance::{Tolerance, cases, check};
use ngen3_engine::{Dtype, Options};

fn hold(dtype: Dtype, tolerance: Tolerance) {
    for case in cases() {
        for (threads, recompute) in [(1, false), (2, true), (3, false)] {
            let options = Options { threads, dtype, recompute, ..Options::default() };
            let compared = check(&Cpu, options, tolerance, &case)
                .unwrap_or_else(|error| panic!("{}, {threads} threads, recompute {recompute}: {error}", case.name));
            // Sequences that continue others have losses only.
            let parts = if case.has_gradient() { 8 } else { 1 };
            assert_eq!(compared.len(), parts, "{}: only {compared:?} was compared", case.name);
        }
    }
}

#[test]
fn in_f32_every_feature_agrees_with_the_reference() {
    hold(Dtype::F32, Tolerance::F32);
}

/// bf16 if the processor multiplies it, else f32 again.
#[test]
fn in_the_fastest_precision_every_feature_stays_near_the_reference() {
    hold(Dtype::Auto, Tolerance::BF16);
}
