//! `ngen3 bench --jobs`: speed of texts that are generated at once, as a server does.

use std::time::Instant;

use ngen3_engine::{Model, PAGE};
use ngen3_generate::{Batcher, BatcherLimits, Event, Job, Sampling};

/// Tokens of each prompt.
const PROMPT: usize = 16;

/// Speed of some jobs at once.
pub struct JobSpeed {
    /// Number of jobs.
    pub jobs: usize,
    /// New tokens per second, of all jobs together.
    pub tokens_per_s: f64,
    /// Longest time to a job's first token, in milliseconds.
    pub first_token_ms: f64,
}

/// Generates `tokens` tokens after each of `jobs` prompts of random tokens, which arrive together.
///
/// # Errors
/// Those of the engine.
pub fn measure(model: &dyn Model, jobs: usize, tokens: usize) -> anyhow::Result<JobSpeed> {
    let config = model.config();
    let pages = (PROMPT + tokens).min(config.block_size).div_ceil(PAGE);
    let limits =
        BatcherLimits { running: jobs, cache_tokens: (jobs * pages * PAGE).max(config.block_size), prompt_tokens: 512 };
    let mut batcher = Batcher::new(model, limits)?;
    for job in 0..jobs {
        let token = |i| {
            let hash = (job * PROMPT + i) as u64 * 2_654_435_761 % (1 << 32);
            ((hash * config.vocab_size as u64) >> 32) as u32
        };
        batcher.submit(Job {
            prompt: (0..PROMPT).map(token).collect(),
            max_new_tokens: tokens,
            end: Vec::new(),
            vocab_size: config.vocab_size,
            sampling: Sampling::default(),
            stream: job as u64,
            top_logprobs: None,
            prompt_logprobs: false,
        })?;
    }
    let start = Instant::now();
    let (mut made, mut begun, mut first) = (0, std::collections::HashSet::new(), 0.0);
    while !batcher.is_idle() {
        for event in batcher.step()? {
            match event {
                Event::Token { job, .. } => {
                    made += 1;
                    if begun.insert(job) {
                        first = 1e3 * start.elapsed().as_secs_f64();
                    }
                }
                Event::Failed { error, .. } => return Err(error.into()),
                Event::Prompt { .. } | Event::Stop { .. } | Event::Ended { .. } => {}
            }
        }
    }
    Ok(JobSpeed { jobs, tokens_per_s: made as f64 / start.elapsed().as_secs_f64(), first_token_ms: first })
}
