//! Autoregressive generation of several samples in one batch.
//!
//! Each sample is a sequence of one decoder and has its own random stream. The prompt is fed in one pass, then one token per
//! sample and step. A text may outgrow the context length: when the context is full, its last three quarters are fed again
//! from position 0. That costs one batched pass every quarter of the context and leaves the model at least three
//! quarters of it; positions are absolute, so every token that is kept must be recomputed.

use ngen3_engine::{Decoder, Error, Feed, Model};

use crate::sampling::{Sampler, Sampling};

/// A generation request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Prompt, at least one token. A prompt longer than the context length is truncated to its end.
    pub prompt: &'a [u32],
    /// Number of samples, generated in one batch.
    pub num_samples: usize,
    /// Maximum number of new tokens per sample.
    pub length: usize,
    /// Stop token, such as the end of text; not part of the sample.
    pub end: Option<u32>,
    /// Only ids below this are sampled: a model's embedding may be larger than its tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Sampling settings.
    pub sampling: Sampling,
}

/// How the texts of a batch are sampled, and where they end.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of new tokens per text.
    pub length: usize,
    /// Stop token; not part of the text.
    pub end: Option<u32>,
    /// Only ids below this are sampled.
    pub vocab_size: usize,
    /// Sampling settings.
    pub sampling: Sampling,
}

/// Generates the samples of a request step by step.
pub struct Generator<'a> {
    decoder: Box<dyn Decoder + 'a>,
    block_size: usize,
    limits: Limits,
    samples: Vec<Sample>,
    /// Steps done, at most `request.length`.
    made: usize,
    /// Tokens of the latest step, `[num_samples]`.
    step: Vec<Option<u32>>,
}

struct Sample {
    sampler: Sampler,
    /// Prompt and generated tokens.
    text: Vec<u32>,
    /// Number of tokens at the end of `text` that have not been fed yet.
    unseen: usize,
    ended: bool,
}

impl<'a> Generator<'a> {
    /// Prepares the samples; the first [`Generator::step`] feeds the prompt.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty prompt, no samples, or a sampling setting out of range; [`Error::Memory`] if the
    /// key-value caches of that many samples do not fit.
    pub fn new(model: &'a dyn Model, request: Request<'a>) -> Result<Self, Error> {
        let Request { prompt, num_samples, length, end, vocab_size, sampling } = request;
        let limits = Limits { length, end, vocab_size, sampling };
        Self::continuing(model, std::iter::repeat_n(prompt, num_samples), 0, limits)
    }

    /// Prepares one sample for each prompt. The first uses the random stream `first_stream`, the next the one after it, so that
    /// a text does not depend on the batch that it is in.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn continuing<'p>(
        model: &'a dyn Model,
        prompts: impl Iterator<Item = &'p [u32]>,
        first_stream: u64,
        limits: Limits,
    ) -> Result<Self, Error> {
        let sample = |(prompt, stream): (&[u32], u64)| {
            if prompt.is_empty() {
                return Err(Error::Input("empty prompt: expected at least one token".into()));
            }
            let sampler = Sampler::new(limits.sampling, stream)?;
            Ok(Sample { sampler, text: prompt.to_vec(), unseen: prompt.len(), ended: false })
        };
        let samples = prompts.zip(first_stream..).map(sample).collect::<Result<Vec<_>, Error>>()?;
        let decoder = model.decoder(samples.len())?;
        let block_size = model.config().block_size;
        Ok(Self { decoder, block_size, limits, samples, made: 0, step: Vec::new() })
    }

    /// Generates the next token of each sample, `[num_samples]`; `None` for a sample that has ended. `None` when all have.
    ///
    /// # Errors
    /// [`Error::Input`] for a token outside the model's vocabulary, or invalid logits ([`Sampler::sample`]).
    pub fn step(&mut self) -> Result<Option<&[Option<u32>]>, Error> {
        if self.made == self.limits.length || self.samples.iter().all(|sample| sample.ended) {
            return Ok(None);
        }
        self.make_room();
        let live = self.samples.iter().enumerate().filter(|(_, sample)| !sample.ended);
        let feeds: Vec<Feed<'_>> = live
            .map(|(sequence, Sample { text, unseen, .. })| Feed::new(sequence, &text[text.len() - unseen..]))
            .collect();
        let logits = self.decoder.feed(&feeds)?;
        let mut logits = logits.chunks_exact(logits.len() / feeds.len());
        self.step.clear();
        for sample in &mut self.samples {
            let logits = if sample.ended { None } else { logits.next() };
            let Some(logits) = logits else {
                self.step.push(None);
                continue;
            };
            let logits = &logits[..self.limits.vocab_size.min(logits.len())];
            let token = sample.sampler.sample(logits, &sample.text)?;
            let token = Some(token).filter(|_| Some(token) != self.limits.end);
            sample.ended = token.is_none();
            sample.text.extend(token);
            sample.unseen = 1;
            self.step.push(token);
        }
        self.made += 1;
        Ok(Some(&self.step))
    }

    /// Ends a sample, such as at a stop string.
    pub fn end(&mut self, sample: usize) {
        self.samples[sample].ended = true;
    }

    /// Slides the context of each sample whose unseen tokens no longer fit.
    fn make_room(&mut self) {
        for (sequence, sample) in self.samples.iter_mut().enumerate().filter(|(_, sample)| !sample.ended) {
            sample.unseen = sample.unseen.min(self.block_size);
            if self.decoder.len(sequence) + sample.unseen > self.block_size {
                self.decoder.clear(sequence);
                sample.unseen = (self.block_size * 3 / 4).max(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use ngen3_engine::PageTable;
    use ngen3_model::Config;

    use super::*;

    const VOCAB: usize = 10;

    /// Sequence and tokens of each feed.
    type Feeds = Rc<RefCell<Vec<Vec<(usize, Vec<u32>)>>>>;

    /// A model whose next token is the last one + 1 with logit 0; every other token has logit `close`. Records its feeds.
    struct Counting {
        config: Config,
        close: f32,
        feeds: Feeds,
    }

    struct CountingDecoder {
        table: PageTable,
        config: Config,
        close: f32,
        feeds: Feeds,
        logits: Vec<f32>,
    }

    impl Decoder for CountingDecoder {
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
            for Feed { tokens, .. } in feeds {
                let next = (tokens[tokens.len() - 1] as usize + 1) % VOCAB;
                self.logits.extend((0..VOCAB).map(|token| if token == next { 0.0 } else { self.close }));
            }
            self.feeds.borrow_mut().push(feeds.iter().map(|feed| (feed.sequence, feed.tokens.to_vec())).collect());
            Ok(&self.logits)
        }

        fn share(&mut self, from: usize, to: usize, pages: usize) -> Result<(), Error> {
            self.table.share(from, to, pages)
        }

        fn clear(&mut self, sequence: usize) {
            self.table.clear(sequence);
        }
    }

    impl Counting {
        fn new(close: f32) -> Self {
            Self { config: Config::new(1, 1, 4, 8, VOCAB), close, feeds: Rc::default() }
        }

        /// Tokens fed to the only sequence.
        fn fed(&self) -> Vec<Vec<u32>> {
            self.feeds.borrow().iter().flatten().map(|(_, tokens)| tokens.clone()).collect()
        }
    }

    impl Model for Counting {
        fn config(&self) -> &Config {
            &self.config
        }

        fn decoder_within(&self, sequences: usize, pages: usize) -> Result<Box<dyn Decoder + '_>, Error> {
            let (config, close, feeds) = (self.config.clone(), self.close, Rc::clone(&self.feeds));
            let table = PageTable::new(sequences, pages)?;
            Ok(Box::new(CountingDecoder { table, config, close, feeds, logits: Vec::new() }))
        }
    }

    fn request(prompt: &[u32], num_samples: usize, length: usize) -> Request<'_> {
        Request { prompt, num_samples, length, end: None, vocab_size: VOCAB, sampling: Sampling::default() }
    }

    /// Generated tokens of each sample.
    fn generate(model: &Counting, request: Request<'_>) -> Vec<Vec<u32>> {
        let mut generator = Generator::new(model, request).unwrap();
        let mut rows = vec![Vec::new(); request.num_samples];
        while let Some(tokens) = generator.step().unwrap() {
            rows.iter_mut().zip(tokens).for_each(|(row, token)| row.extend(token));
        }
        rows
    }

    #[test]
    fn the_prompt_is_fed_at_once_and_then_each_token() {
        let model = Counting::new(-1e9);
        assert_eq!(generate(&model, request(&[3, 4], 2, 3)), [[5, 6, 7], [5, 6, 7]]);
        let both = |tokens: &[u32]| vec![(0, tokens.to_vec()), (1, tokens.to_vec())];
        assert_eq!(*model.feeds.borrow(), [both(&[3, 4]), both(&[5]), both(&[6])]);
    }

    #[test]
    fn a_full_block_slides() {
        let model = Counting::new(-1e9);
        let rows = generate(&model, request(&[0, 1, 2, 3, 4, 5], 1, 6));
        assert_eq!(rows, [[6, 7, 8, 9, 0, 1]]);
        let expected = [vec![0, 1, 2, 3, 4, 5], vec![6], vec![7], vec![3, 4, 5, 6, 7, 8], vec![9], vec![0]];
        assert_eq!(model.fed(), expected);
    }

    #[test]
    fn of_a_long_prompt_the_end_is_read() {
        let model = Counting::new(-1e9);
        let prompt: Vec<u32> = (0..25).map(|i| i % 10).collect();
        assert_eq!(generate(&model, request(&prompt, 1, 2)), [[5, 6]]);
        assert_eq!(model.fed(), [vec![7, 8, 9, 0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4, 5]]);
    }

    #[test]
    fn a_block_of_one_token_slides_too() {
        let model = Counting { config: Config::new(1, 1, 4, 1, VOCAB), ..Counting::new(-1e9) };
        assert_eq!(generate(&model, request(&[2, 3], 1, 3)), [[4, 5, 6]]);
    }

    #[test]
    fn a_sample_ends_at_the_end_token_which_is_no_part_of_it() {
        let model = Counting::new(-1e9);
        let rows = generate(&model, Request { end: Some(7), ..request(&[4], 1, 100) });
        assert_eq!(rows, [[5, 6]]);
    }

    #[test]
    fn samples_are_independent_and_end_apart() {
        let model = Counting::new(-1.0);
        let many = generate(&model, Request { end: Some(7), ..request(&[4], 5, 100) });
        assert!(many.iter().any(|row| row != &many[0]), "all samples are the same: {many:?}");
        assert!(many.iter().any(|row| row.len() != many[0].len()), "all samples have the same length: {many:?}");
        assert!(many.iter().all(|row| !row.contains(&7)));
        // A sample's tokens do not depend on the number of samples.
        let one = generate(&model, Request { end: Some(7), ..request(&[4], 1, 100) });
        assert_eq!(one[0], many[0]);
    }

    #[test]
    fn texts_of_other_prompts_are_the_same_in_any_batch() {
        let model = Counting::new(-1.0);
        let limits = Limits { length: 9, end: Some(7), vocab_size: VOCAB, sampling: Sampling::default() };
        let write = |prompts: &[&[u32]], first| {
            let mut generator = Generator::continuing(&model, prompts.iter().copied(), first, limits).unwrap();
            let mut texts = vec![Vec::<u32>::new(); prompts.len()];
            while let Some(tokens) = generator.step().unwrap() {
                texts.iter_mut().zip(tokens).for_each(|(text, token)| text.extend(token));
            }
            texts
        };
        let prompts: [&[u32]; 3] = [&[1, 2, 3], &[4], &[5, 6]];
        let whole = write(&prompts, 0);
        assert_eq!([write(&prompts[..1], 0), write(&prompts[1..], 1)].concat(), whole);
        assert_eq!(
            write(&[prompts[0], prompts[0]], 0)[0],
            generate(&model, Request { end: Some(7), ..request(prompts[0], 1, 9) })[0]
        );
    }

    #[test]
    fn a_sample_that_was_ended_makes_nothing_more() {
        let model = Counting::new(-1e9);
        let mut generator = Generator::new(&model, request(&[4], 2, 4)).unwrap();
        assert_eq!(generator.step().unwrap(), Some(&[Some(5), Some(5)][..]));
        generator.end(0);
        assert_eq!(generator.step().unwrap(), Some(&[None, Some(6)][..]));
        generator.end(1);
        assert_eq!(generator.step().unwrap(), None);
        drop(generator);
        let last = model.feeds.borrow().last().cloned();
        assert_eq!(last, Some(vec![(1, vec![5])]), "an ended sample is no longer fed");
    }

    #[test]
    fn tokens_that_the_tokenizer_lacks_are_not_drawn() {
        let model = Counting::new(-1.0);
        let rows = generate(&model, Request { vocab_size: 3, ..request(&[4], 1, 200) });
        assert!(rows[0].iter().all(|&token| token < 3), "{rows:?}");
    }

    #[test]
    fn no_length_makes_nothing_and_no_prompt_is_an_error() {
        let model = Counting::new(-1.0);
        assert_eq!(generate(&model, request(&[4], 1, 0)), [[0u32; 0]]);
        let error = Generator::new(&model, request(&[], 1, 5)).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "empty prompt: expected at least one token");
    }
}
