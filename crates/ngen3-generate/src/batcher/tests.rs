//! The batcher on a model whose logits follow from all tokens before, and from how they were fed, so that a wrong cache shows.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use ngen3_engine::PageTable;
use proptest::prelude::*;

use super::*;
use crate::generate::{Generator, Limits};
use crate::job::EndReason;
use crate::logprobs::TokenLogprobs;
use crate::sampling::Sampling;

const VOCAB: usize = 7;

/// Added to a token that was fed alone: an engine's bits may depend on it.
const ALONE: u32 = 100;

/// Logits that a hash of all tokens gives. Counts the tokens that it is fed.
struct Hashing {
    config: Config,
    fed: Rc<RefCell<usize>>,
}

struct HashingDecoder {
    config: Config,
    table: PageTable,
    /// Tokens of each sequence.
    tokens: Vec<Vec<u32>>,
    fed: Rc<RefCell<usize>>,
    logits: Vec<f32>,
}

impl Decoder for HashingDecoder {
    fn sequences(&self) -> usize {
        self.table.sequences()
    }

    fn len(&self, sequence: usize) -> usize {
        self.table.len(sequence)
    }

    fn free_pages(&self) -> usize {
        self.table.free()
    }

    fn feed(&mut self, feeds: &[Feed<'_>]) -> Result<&[f32], Error> {
        self.table.check(feeds, &self.config)?;
        self.table.grow(feeds);
        self.logits.clear();
        for feed in feeds {
            let tokens = &mut self.tokens[feed.sequence];
            let mark = if feed.tokens.len() == 1 { ALONE } else { 0 };
            tokens.extend(feed.tokens.iter().map(|token| token + mark));
            *self.fed.borrow_mut() += feed.tokens.len();
            for seen in tokens.len() - feed.logits + 1..=tokens.len() {
                self.logits.extend(logits(&tokens[..seen]));
            }
        }
        Ok(&self.logits)
    }

    fn share(&mut self, from: usize, to: usize, pages: usize) -> Result<(), Error> {
        self.table.share(from, to, pages)?;
        self.tokens[to] = self.tokens[from][..pages * PAGE].to_vec();
        Ok(())
    }

    fn clear(&mut self, sequence: usize) {
        self.table.clear(sequence);
        self.tokens[sequence].clear();
    }
}

/// Logits after these tokens; NaN after three sixes.
fn logits(tokens: &[u32]) -> [f32; VOCAB] {
    let hash = tokens.iter().fold(7u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    if tokens.len() > 2 && tokens[tokens.len() - 3..].iter().all(|token| token % ALONE == 6) {
        return [f32::NAN; VOCAB];
    }
    std::array::from_fn(|i| (hash >> (8 * i) & 0xFF) as f32 / 64.0)
}

impl Hashing {
    fn new(block_size: usize) -> Self {
        Self { config: Config::new(1, 1, 4, block_size, VOCAB), fed: Rc::default() }
    }
}

impl Model for Hashing {
    fn config(&self) -> &Config {
        &self.config
    }

    fn decoder_within(&self, sequences: usize, pages: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        let (config, fed) = (self.config.clone(), Rc::clone(&self.fed));
        let table = PageTable::new(sequences, pages)?;
        Ok(Box::new(HashingDecoder { config, table, tokens: vec![Vec::new(); sequences], fed, logits: Vec::new() }))
    }
}

/// Text of an ended job.
#[derive(Debug, Default, PartialEq)]
struct Text {
    tokens: Vec<u32>,
    logprobs: Vec<Option<TokenLogprobs>>,
    prompt: Option<Vec<Option<TokenLogprobs>>>,
    stop: Option<(u32, TokenLogprobs)>,
    reason: Option<EndReason>,
    error: Option<String>,
}

fn collect(events: Vec<Event>, texts: &mut HashMap<JobId, Text>) {
    for event in events {
        let (Event::Prompt { job, .. }
        | Event::Token { job, .. }
        | Event::Stop { job, .. }
        | Event::Ended { job, .. }
        | Event::Failed { job, .. }) = &event;
        let text = texts.entry(*job).or_default();
        assert!(text.reason.is_none() && text.error.is_none(), "news of a job that has ended: {event:?}");
        match event {
            Event::Prompt { logprobs, .. } => text.prompt = Some(logprobs),
            Event::Token { token, logprobs, .. } => {
                text.tokens.push(token);
                text.logprobs.push(logprobs);
            }
            Event::Stop { token, logprobs, .. } => text.stop = Some((token, logprobs)),
            Event::Ended { reason, .. } => text.reason = Some(reason),
            Event::Failed { error, .. } => text.error = Some(error.to_string()),
        }
    }
}

/// Runs all jobs to their end.
fn run(batcher: &mut Batcher<'_>, texts: &mut HashMap<JobId, Text>) {
    for _ in 0..100_000 {
        if batcher.is_idle() {
            return;
        }
        collect(batcher.step().unwrap(), texts);
    }
    panic!("no end: {} running, {} waiting", batcher.running(), batcher.waiting());
}

fn job(prompt: &[u32], max_new_tokens: usize) -> Job {
    Job {
        prompt: prompt.to_vec(),
        max_new_tokens,
        end: Vec::new(),
        // Never three sixes, whose logits are invalid.
        vocab_size: VOCAB - 1,
        sampling: Sampling::default(),
        stream: 0,
        top_logprobs: None,
        prompt_logprobs: false,
    }
}

/// Text of a job by definition: from [`Generator`], and from the logits.
fn expected(model: &Hashing, job: &Job) -> Text {
    let Job { prompt, vocab_size, sampling, stream, .. } = job;
    let most = job.max_new_tokens.min(model.config.block_size - prompt.len());
    let limits = Limits { length: most, end: job.end.first().copied(), vocab_size: *vocab_size, sampling: *sampling };
    let mut generator = Generator::continuing(model, std::iter::once(&prompt[..]), *stream, limits).unwrap();
    let mut text = Text::default();
    let scored = |tokens: &[u32]| {
        let (last, before) = tokens.split_last().unwrap();
        TokenLogprobs::of(&logits(before), last % ALONE, job.top_logprobs.unwrap_or(0), *vocab_size).unwrap()
    };
    if job.prompt_logprobs {
        let scored = (2..=prompt.len()).map(|n| Some(scored(&prompt[..n])));
        text.prompt = Some(std::iter::once(None).chain(scored).collect());
    }
    let mut all: Vec<u32> = prompt.iter().map(|token| token + if prompt.len() == 1 { ALONE } else { 0 }).collect();
    loop {
        match generator.step() {
            Ok(None) => {
                text.reason = Some(EndReason::Length);
                return text;
            }
            Ok(Some(&[Some(token)])) => {
                all.push(token + ALONE);
                text.tokens.push(token);
                text.logprobs.push(job.top_logprobs.map(|_| scored(&all)));
            }
            Ok(Some(_)) => {
                let end = job.end[0];
                let scored = || (end, scored(&[&all[..], &[end]].concat()));
                text.stop = job.top_logprobs.map(|_| scored());
                text.reason = Some(EndReason::Stop);
                return text;
            }
            Err(error) => {
                text.error = Some(error.to_string());
                return text;
            }
        }
    }
}

const BLOCK: usize = 200;

/// A job that arrives at a step, and is perhaps cancelled some steps later.
fn any_job() -> impl Strategy<Value = (usize, Option<usize>, Job)> {
    // A few beginnings, of which prompts take more or less, so that many share some.
    let prompt = (0u32..3, 0usize..BLOCK - 20, prop::collection::vec(0u32..5, 1..20));
    let logprobs = (prop::option::of(0usize..3), prop::bool::weighted(0.2));
    (
        0usize..60,
        prop::option::weighted(0.2, 0usize..20),
        prompt,
        0usize..90,
        prop::option::of(0u32..7),
        logprobs,
        0u64..4,
    )
        .prop_map(
            |(arrival, cancelled, (which, shared, own), max_new_tokens, end, (top_logprobs, scored), stream)| {
                let beginning = (0..shared as u32).map(|i| (i * (which + 1) + i / 7) % 5);
                let prompt: Vec<u32> = beginning.chain(own).collect();
                let end = end.into_iter().collect();
                (
                    arrival,
                    cancelled,
                    Job {
                        end,
                        top_logprobs,
                        prompt_logprobs: scored,
                        vocab_size: VOCAB,
                        stream,
                        ..job(&prompt, max_new_tokens)
                    },
                )
            },
        )
}

proptest! {
    #[test]
    fn every_job_gives_what_it_gives_alone(
        jobs in prop::collection::vec(any_job(), 1..25),
        running in 1usize..6,
        cache_tokens in BLOCK..4 * BLOCK,
        prompt_tokens in PAGE..BLOCK,
    ) {
        let model = Hashing::new(BLOCK);
        let mut batcher = Batcher::new(&model, BatcherLimits { running, cache_tokens, prompt_tokens }).unwrap();
        let (mut ids, mut texts, mut cancelled) = (vec![None; jobs.len()], HashMap::new(), vec![false; jobs.len()]);
        for step in 0..100 {
            for (at, (arrival, wait, job)) in jobs.iter().enumerate() {
                if *arrival == step {
                    ids[at] = Some(batcher.submit(job.clone()).unwrap());
                }
                if let (Some(id), Some(wait)) = (ids[at], wait)
                    && arrival + wait == step
                {
                    batcher.cancel(id).unwrap();
                    cancelled[at] = true;
                }
            }
            prop_assert!(batcher.running() <= running && (0.0..=1.0).contains(&batcher.cache_use()));
            collect(batcher.step().unwrap(), &mut texts);
        }
        run(&mut batcher, &mut texts);
        for (at, (_, _, job)) in jobs.iter().enumerate().filter(|&(at, _)| !cancelled[at]) {
            prop_assert_eq!(&texts[&ids[at].unwrap()], &expected(&model, job), "{:?}", job);
        }
        while !batcher.kept.is_empty() {
            batcher.forget(0);
        }
        prop_assert_eq!(batcher.cache_use(), 0.0, "pages that nobody frees");
        prop_assert_eq!(batcher.free.len(), running + MOST_KEPT);
    }
}

fn limits(running: usize, cache_tokens: usize) -> BatcherLimits {
    BatcherLimits { running, cache_tokens, prompt_tokens: 64 }
}

#[test]
fn a_shared_prefix_is_read_once_while_running_and_after() {
    let model = Hashing::new(300);
    let prefix: Vec<u32> = (0..100).map(|i| i * i % 5).collect();
    let prompt = |own: u32| [&prefix[..], &[own, own]].concat();
    let mut batcher = Batcher::new(&model, limits(4, 1200)).unwrap();
    let mut texts = HashMap::new();
    for own in 0..4 {
        batcher.submit(job(&prompt(own), 0)).unwrap();
    }
    run(&mut batcher, &mut texts);
    // Three pages of 32 are shared, and six tokens are each prompt's own.
    assert_eq!(model.fed.take(), 96 + 4 * 6);
    batcher.submit(job(&prompt(4), 0)).unwrap();
    run(&mut batcher, &mut texts);
    assert_eq!(model.fed.take(), 6);
    assert_eq!(texts.len(), 5);
}

#[test]
fn jobs_start_in_the_order_of_arrival_and_wait_for_pages() {
    let model = Hashing::new(64);
    // Two pages for each job, of four in all.
    let mut batcher = Batcher::new(&model, limits(8, 128)).unwrap();
    let ids: Vec<JobId> = (0..5).map(|i| batcher.submit(job(&[i, i], 40)).unwrap()).collect();
    let (mut firsts, mut texts) = (Vec::new(), HashMap::new());
    while !batcher.is_idle() {
        let events = batcher.step().unwrap();
        assert!(batcher.running() <= 2);
        for event in &events {
            if let Event::Token { job, .. } = event
                && !firsts.contains(job)
            {
                firsts.push(*job);
            }
        }
        collect(events, &mut texts);
    }
    assert_eq!(firsts, ids);
    assert!(texts.values().all(|text| text.tokens.len() == 40 && text.reason == Some(EndReason::Length)));
}

#[test]
fn texts_of_any_length_run_at_once_and_are_preempted_when_the_cache_is_full() {
    let model = Hashing::new(BLOCK);
    // Sixteen pages: two for each job to start with, where a context takes seven.
    let mut batcher = Batcher::new(&model, limits(8, 16 * PAGE)).unwrap();
    let jobs: Vec<Job> = (0..8)
        .map(|i| Job { top_logprobs: Some(1), prompt_logprobs: i % 2 == 0, ..job(&[i % 5, 1, i / 5], usize::MAX) })
        .collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| batcher.submit(job.clone()).unwrap()).collect();
    let (mut texts, mut ended) = (HashMap::new(), Vec::new());
    collect(batcher.step().unwrap(), &mut texts);
    assert_eq!(batcher.running(), 8);
    while !batcher.is_idle() {
        let events = batcher.step().unwrap();
        ended.extend(events.iter().filter_map(|event| match event {
            Event::Ended { job, .. } => Some(*job),
            _ => None,
        }));
        collect(events, &mut texts);
    }
    assert!((1..40).contains(&batcher.preemptions()), "{} preemptions", batcher.preemptions());
    for (id, job) in ids.iter().zip(&jobs) {
        assert_eq!(texts[id], expected(&model, job));
    }
    assert_eq!(ended, ids, "nobody is overtaken");
    assert_eq!(batcher.cache_use(), 0.0);
}

#[test]
fn a_job_that_cannot_start_yet_costs_no_kept_prompt() {
    let model = Hashing::new(BLOCK);
    // Eight pages: two are kept, and the long job needs seven besides those of the short one.
    let mut batcher = Batcher::new(&model, limits(8, 8 * PAGE)).unwrap();
    let mut texts = HashMap::new();
    batcher.submit(job(&[3; 2 * PAGE + 2], 0)).unwrap();
    run(&mut batcher, &mut texts);
    batcher.submit(job(&[1, 2], 40)).unwrap();
    batcher.submit(job(&[4; 190], 10)).unwrap();
    for _ in 0..30 {
        collect(batcher.step().unwrap(), &mut texts);
        assert_eq!((batcher.running(), batcher.waiting(), batcher.kept.len()), (1, 1, 1));
    }
    run(&mut batcher, &mut texts);
    assert!(texts.len() == 3 && texts.values().all(|text| text.reason == Some(EndReason::Length)));
}

#[test]
fn a_text_ends_with_the_context() {
    let model = Hashing::new(40);
    let mut batcher = Batcher::new(&model, limits(1, 40)).unwrap();
    let id = batcher.submit(job(&[1; 30], 1000)).unwrap();
    let mut texts = HashMap::new();
    run(&mut batcher, &mut texts);
    assert_eq!((texts[&id].tokens.len(), texts[&id].reason), (10, Some(EndReason::Length)));
}

#[test]
fn invalid_logits_fail_one_job_and_no_other() {
    let model = Hashing::new(40);
    let mut batcher = Batcher::new(&model, limits(2, 80)).unwrap();
    let [bad, good] = [[6, 6, 6], [1, 2, 3]].map(|prompt| batcher.submit(job(&prompt, 5)).unwrap());
    let mut texts = HashMap::new();
    run(&mut batcher, &mut texts);
    assert!(texts[&bad].error.as_ref().is_some_and(|error| error.contains("NaN")), "{:?}", texts[&bad]);
    assert_eq!(texts[&good].tokens.len(), 5);
}

#[test]
fn jobs_that_cannot_run_are_refused_with_the_numbers() {
    let model = Hashing::new(40);
    let mut batcher = Batcher::new(&model, limits(2, 80)).unwrap();
    let mut error = |job| batcher.submit(job).unwrap_err().to_string();
    assert!(error(job(&[1; 41], 0)).contains("41 tokens, but the model's context is 40"));
    assert!(error(job(&[1; 40], 1)).contains("40 tokens, but the model's context is 40"));
    assert!(error(job(&[], 1)).contains("empty prompt"));
    assert!(error(job(&[7], 1)).contains("token 7"));
    let hot = Sampling { temperature: -1.0, ..Sampling::default() };
    assert!(error(Job { sampling: hot, ..job(&[1], 1) }).contains("temperature"));
    assert!(batcher.submit(job(&[1; 40], 0)).is_ok());
    for limits in [limits(0, 80), limits(1, 39), BatcherLimits { prompt_tokens: 31, ..limits(1, 80) }] {
        let error = Batcher::new(&model, limits).map(drop).unwrap_err().to_string();
        assert!(error.contains("expected at least"), "{error}");
    }
}
