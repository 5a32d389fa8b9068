//! Jobs of a batcher on the CPU engine: each gives, bit by bit, what it gives alone, whatever joins and leaves beside it.

use std::collections::HashMap;

use ngen3_cpu::CpuEngine;
use ngen3_engine::{Dtype, Model, Options, Quant};
use ngen3_generate::{Batcher, BatcherLimits, Event, Generator, Job, JobId, Limits, Sampling};
use ngen3_model::{Config, ParamList};
use proptest::prelude::*;

const BLOCK: usize = 120;

fn engine(config: &Config, dtype: Dtype, quant: Quant) -> CpuEngine {
    // Larger weights than those of a new model, so that the tokens before matter.
    let params = ParamList::new(config).init(1).iter().map(|p| p * 5.0).collect();
    CpuEngine::new(config.clone(), params, Options { threads: 2, dtype, quant, ..Options::default() }).expect("a shape")
}

/// Tokens of a job that runs alone.
fn alone(model: &dyn Model, job: &Job) -> Vec<u32> {
    let length = job.max_new_tokens.min(BLOCK - job.prompt.len());
    let limits = Limits { length, end: None, vocab_size: job.vocab_size, sampling: job.sampling };
    let mut generator =
        Generator::continuing(model, std::iter::once(&job.prompt[..]), job.stream, limits).expect("a valid job");
    let mut tokens = Vec::new();
    while let Some(token) = generator.step().expect("numbers") {
        tokens.extend(token[0]);
    }
    tokens
}

fn job(prompt: Vec<u32>, max_new_tokens: usize, stream: u64) -> Job {
    let sampling = Sampling { temperature: 1.3, seed: 5, ..Sampling::default() };
    let (end, top_logprobs) = (Vec::new(), None);
    Job { prompt, max_new_tokens, end, vocab_size: 97, sampling, stream, top_logprobs, prompt_logprobs: false }
}

/// Takes the tokens of each job out of the news.
fn collect(events: Vec<Event>, texts: &mut HashMap<JobId, Vec<u32>>) {
    for event in events {
        match event {
            Event::Token { job, token, .. } => texts.entry(job).or_default().push(token),
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_job_gives_the_tokens_that_it_gives_alone(
        // Arrival, beginning, shared and own tokens, length; some are cancelled.
        jobs in prop::collection::vec((0usize..30, 0u32..2, 0usize..90, prop::collection::vec(0u32..97, 1..12), 1usize..40, prop::bool::weighted(0.1)), 2..14),
        kind in 0usize..5,
        running in 1usize..12,
        cache_tokens in BLOCK..4 * BLOCK,
        prompt_tokens in 32usize..90,
    ) {
        let gpt2 = Config::new(2, 3, 24, BLOCK, 97);
        let (config, dtype, quant) = [
            (gpt2.clone(), Dtype::F32, Quant::None),
            (gpt2.clone(), Dtype::Auto, Quant::None),
            (gpt2.clone(), Dtype::F32, Quant::Int8),
            (gpt2, Dtype::Auto, Quant::Int4),
            (Config::llama(2, 4, 2, 32, 48, BLOCK, 97), Dtype::Auto, Quant::None),
        ][kind].clone();
        let model = engine(&config, dtype, quant);
        let mut batcher = Batcher::new(&model, BatcherLimits { running, cache_tokens, prompt_tokens }).expect("limits");
        let (mut texts, mut submitted, mut cancelled) = (HashMap::new(), Vec::new(), Vec::new());
        for step in 0..2000 {
            for (stream, (_, which, shared, own, length, cancel)) in jobs.iter().enumerate().filter(|(_, job)| job.0 == step) {
                let beginning = (0..*shared as u32).map(|i| (i * i + which * 31) % 97);
                let job = job(beginning.chain(own.iter().copied()).collect(), *length, stream as u64);
                let id = batcher.submit(job.clone()).expect("a valid job");
                submitted.push((id, job));
                if *cancel {
                    cancelled.push((step + 5, id));
                }
            }
            for (_, id) in cancelled.iter().filter(|(at, _)| *at == step) {
                batcher.cancel(*id).expect("a job");
            }
            if step > 30 && batcher.is_idle() {
                break;
            }
            collect(batcher.step().expect("room"), &mut texts);
        }
        prop_assert!(batcher.is_idle());
        for (id, job) in &submitted {
            if !cancelled.iter().any(|(_, other)| other == id) {
                prop_assert_eq!(texts.get(id).cloned().unwrap_or_default(), alone(&model, job), "{:?} {:?}", id, job);
            }
        }
    }
}

/// Log probabilities of a prompt against the losses of the whole sequence, as evaluation computes them.
#[test]
fn prompt_log_probabilities_are_near_the_losses_of_evaluation() {
    let config = Config::new(2, 3, 24, BLOCK, 97);
    let tokens: Vec<u32> = (0..100u32).map(|i| (i * i * 7 + i) % 97).collect();
    for (dtype, tolerance) in [(Dtype::F32, 2e-5), (Dtype::Auto, 0.05)] {
        let mut model = engine(&config, dtype, Quant::None);
        let mut found = Vec::new();
        {
            let limits = BatcherLimits { running: 1, cache_tokens: BLOCK, prompt_tokens: 40 };
            let mut batcher = Batcher::new(&model, limits).expect("limits");
            batcher.submit(Job { prompt_logprobs: true, ..job(tokens.clone(), 0, 0) }).expect("a valid job");
            while !batcher.is_idle() {
                for event in batcher.step().expect("room") {
                    if let Event::Prompt { logprobs, .. } = event {
                        found = logprobs;
                    }
                }
            }
        }
        let batch = ngen3_engine::Batch::even(99, tokens[..99].to_vec(), tokens[1..].to_vec());
        let losses = model.losses(&batch).expect("a valid batch");
        assert!(found.len() == 100 && found[0].is_none());
        for (found, loss) in found[1..].iter().zip(losses) {
            let logprob = found.as_ref().expect("one for each token after the first").logprob;
            assert!((logprob + loss).abs() < tolerance * loss.max(1.0), "{dtype}: {logprob}, loss {loss}");
        }
    }
}
