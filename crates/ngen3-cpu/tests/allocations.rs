//! Checks that a training step in bf16 allocates nothing after the first few steps.

mod common;

use std::alloc::System;

use ngen3_cpu::CpuEngine;
use ngen3_engine::{AdamW, Backward, Batch, Dtype, Muon, Options, Trainer};
use ngen3_model::{Config, ParamList};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Counts the allocations of the fifth step.
fn allocations(dtype: Dtype, muon: Option<&Muon>) -> usize {
    let config = Config::new(2, 4, 64, 96, 1_009);
    let params = ParamList::new(&config).init(1);
    let options = Options { threads: 2, dtype, ..Options::default() };
    let mut engine = CpuEngine::new(config.clone(), params, options).expect("a valid shape");
    let n = 30 * config.block_size as u32;
    let batch =
        Batch::even(config.block_size, (0..n).map(|i| i * 7 % 1_009).collect(), (0..n).map(|i| i % 1_009).collect());
    let mut step = |number| {
        engine
            .forward_backward(&batch, Backward { dropout: 0.1, seed: number, ..Backward::default() })
            .expect("a valid batch");
        let adamw =
            AdamW { step: number, lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
        engine.update(&adamw, muon).expect("memory");
    };
    (1..=4).for_each(&mut step);
    let region = Region::new(GLOBAL);
    step(5);
    let change = region.change();
    change.allocations + change.reallocations
}

/// bf16 only: in f32, the `gemm` crate allocates buffers for each product.
#[test]
fn a_step_allocates_nothing() {
    let config = Config::new(1, 1, 4, 4, 8);
    let params = ParamList::new(&config).init(1);
    // Not every processor multiplies in bf16.
    if CpuEngine::new(config, params, Options { dtype: Dtype::Bf16, ..Options::default() }).is_ok() {
        assert_eq!(allocations(Dtype::Bf16, None), 0);
        let muon = Muon { lr: 1e-3, momentum: 0.95, weight_decay: 0.1 };
        assert_eq!(allocations(Dtype::Bf16, Some(&muon)), 0, "with Muon");
    } else {
        common::skipped_bf16();
    }
}
