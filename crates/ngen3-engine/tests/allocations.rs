//! A training step in bf16 allocates nothing: what it needs was laid out when the first batch of its shape arrived.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use ngen3_engine::{AdamW, Batch, CpuEngine, Dtype, Engine, Options};
use ngen3_model::{Config, ParamList};

/// The system's allocator, counting.
struct Counting;

static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_step_allocates_nothing() {
    let config = Config::new(3, 4, 64, 64, 1000);
    let tokens = |seed: u32| (0..8 * 64u32).map(|i| (i * 7 + seed) % 1000).collect();
    let batch = Batch { seq_len: 64, inputs: tokens(1), targets: tokens(2) };
    let params = ParamList::new(&config).init(1);
    let mut engine =
        CpuEngine::new(config, params, Options { threads: 2, ..Options::default() }).expect("a valid shape");
    if engine.dtype() == Dtype::F32 {
        eprintln!("skipped: f32 products on all threads are the gemm crate's, which allocates where it packs");
        return;
    }
    let mut step = |step| {
        engine.forward_backward(&batch, 1.0, 0.1, step).expect("a valid batch");
        let adamw = AdamW { step, lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
        engine.update(&adamw).expect("memory");
    };
    (1..=20).for_each(&mut step);
    let before = BYTES.load(Ordering::Relaxed);
    const STEPS: u64 = 20;
    (21..21 + STEPS).for_each(&mut step);
    // The thread pool's queues grow by a few hundred bytes now and then; an activation would be thousands, every step.
    let per_step = (BYTES.load(Ordering::Relaxed) - before) / STEPS;
    assert!(per_step < 2_000, "{per_step} bytes a step");
}
