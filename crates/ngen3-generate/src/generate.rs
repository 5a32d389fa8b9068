//! Continuing a prompt, token by token, in several samples side by side.
//!
//! Each sample is a row of one decoder and has a random stream of its own. The prompt is fed in one pass, then a token a
//! row and step. A text may outgrow the model's block: when the block is full, the last three quarters of it are fed
//! anew and generation goes on. That costs one batched pass every quarter of a block and leaves the model at least three
//! quarters of a block to look back on; positions are absolute, so that every kept token must be computed again.

use crate::sampling::{Sampler, Sampling};
use ngen3_engine::{Decoder, Engine, Error};

/// What is generated.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What comes before; at least one token. Of a prompt longer than the block, the model sees the end.
    pub prompt: &'a [u32],
    /// Samples made side by side.
    pub rows: usize,
    /// Tokens after which a sample ends.
    pub length: usize,
    /// A token that ends a sample and is no part of it, such as the end of text.
    pub end: Option<u32>,
    /// Only tokens below this are drawn: a model may have room for more than its tokenizer knows.
    pub vocab_size: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Samples in the making.
pub struct Generator<'a> {
    decoder: Box<dyn Decoder + 'a>,
    block_size: usize,
    request: Request<'a>,
    rows: Vec<Row>,
    /// Tokens made of each row.
    made: usize,
    /// `[rows]`
    step: Vec<Option<u32>>,
}

struct Row {
    sampler: Sampler,
    /// The prompt and what followed. A row that has ended grows on, unseen, for the decoder's rows are equally long.
    text: Vec<u32>,
    ended: bool,
}

impl<'a> Generator<'a> {
    /// Prepares samples of the engine's model; the first [`Generator::step`] reads the prompt.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty prompt, no rows, or a sampling setting out of range; [`Error::Memory`] when the
    /// keys and values of that many rows do not fit.
    pub fn new(engine: &'a dyn Engine, request: Request<'a>) -> Result<Self, Error> {
        if request.prompt.is_empty() {
            return Err(Error::Input("the prompt has no tokens".into()));
        }
        let decoder = engine.decoder(request.rows)?;
        let row = |stream| {
            let sampler = Sampler::new(request.sampling, stream)?;
            Ok(Row { sampler, text: request.prompt.to_vec(), ended: false })
        };
        let rows = (0..request.rows as u64).map(row).collect::<Result<Vec<_>, Error>>()?;
        let block_size = engine.config().block_size;
        Ok(Self { decoder, block_size, request, rows, made: 0, step: Vec::new() })
    }

    /// Makes the next token of every row, `[rows]`; `None` in a row that has ended. `None` when all have.
    ///
    /// # Errors
    /// [`Error::Input`] for a token outside the model's vocabulary, or logits that are not numbers.
    pub fn step(&mut self) -> Result<Option<&[Option<u32>]>, Error> {
        if self.made == self.request.length || self.rows.iter().all(|row| row.ended) {
            return Ok(None);
        }
        let feed = self.feed();
        let logits = self.decoder.feed(&feed)?;
        self.step.clear();
        for (row, logits) in self.rows.iter_mut().zip(logits.chunks_exact(logits.len() / self.request.rows)) {
            let logits = &logits[..self.request.vocab_size.min(logits.len())];
            let token = if row.ended { None } else { Some(row.sampler.sample(logits, &row.text)?) };
            let token = token.filter(|_| token != self.request.end);
            row.ended = token.is_none();
            // The last token again, in a row that has ended: any will do.
            row.text.extend(token.or(row.text.last().copied()));
            self.step.push(token);
        }
        self.made += 1;
        Ok(Some(&self.step))
    }

    /// Ends a row here: its text has what it should stop at.
    pub fn end(&mut self, row: usize) {
        self.rows[row].ended = true;
    }

    /// What the decoder has not seen of each row, `[rows, n]`, after making room for it.
    fn feed(&mut self) -> Vec<u32> {
        let new = if self.made == 0 { self.request.prompt.len() } else { 1 };
        let mut count = new.min(self.block_size);
        if self.decoder.len() + count > self.block_size {
            self.decoder.clear();
            count = (self.block_size * 3 / 4).max(1);
        }
        self.rows.iter().flat_map(|row| &row.text[row.text.len() - count..]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::cell::RefCell;
    use std::rc::Rc;

    use ngen3_model::Config;

    use super::*;
    use ngen3_engine::{AdamW, Backward, Batch, Distill, DistillLoss, Slot};

    const VOCAB: usize = 10;

    /// A model that is sure that 1 follows 0, 2 follows 1, …, but finds `close` almost as likely; it remembers what
    /// it was fed.
    struct Counting {
        config: Config,
        close: f32,
        feeds: Rc<RefCell<Vec<Vec<u32>>>>,
    }

    struct CountingDecoder {
        rows: usize,
        len: usize,
        block_size: usize,
        close: f32,
        feeds: Rc<RefCell<Vec<Vec<u32>>>>,
        logits: Vec<f32>,
    }

    impl Decoder for CountingDecoder {
        fn len(&self) -> usize {
            self.len
        }

        fn feed(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
            let n = tokens.len() / self.rows;
            assert_eq!(tokens.len(), n * self.rows);
            self.len += n;
            assert!(self.len <= self.block_size, "{} tokens in a block of {}", self.len, self.block_size);
            self.feeds.borrow_mut().push(tokens.to_vec());
            self.logits.clear();
            for row in tokens.chunks_exact(n) {
                let next = (row[n - 1] as usize + 1) % VOCAB;
                self.logits.extend((0..VOCAB).map(|token| if token == next { 0.0 } else { self.close }));
            }
            Ok(&self.logits)
        }

        fn clear(&mut self) {
            self.len = 0;
        }
    }

    impl Counting {
        fn new(close: f32) -> Self {
            Self { config: Config::new(1, 1, 4, 8, VOCAB), close, feeds: Rc::default() }
        }
    }

    impl Engine for Counting {
        fn config(&self) -> &Config {
            &self.config
        }

        fn decoder(&self, rows: usize) -> Result<Box<dyn Decoder + '_>, Error> {
            let (block_size, close, feeds) = (self.config.block_size, self.close, Rc::clone(&self.feeds));
            Ok(Box::new(CountingDecoder { rows, len: 0, block_size, close, feeds, logits: Vec::new() }))
        }

        fn losses(&mut self, _: &Batch) -> Result<Vec<f32>, Error> {
            unreachable!("generation computes no loss")
        }

        fn forward_backward(&mut self, _: &Batch, _: Backward) -> Result<f32, Error> {
            unreachable!("generation has no backward pass")
        }

        fn distill(&mut self, _: &Batch, _: &Distill<'_>, _: Option<Backward>) -> Result<DistillLoss, Error> {
            unreachable!("generation learns nothing")
        }

        fn update(&mut self, _: &AdamW) -> Result<f32, Error> {
            unreachable!("generation changes nothing")
        }

        fn read(&self, _: Slot) -> Cow<'_, [f32]> {
            unreachable!("generation reads no parameters")
        }

        fn write(&mut self, _: Slot, _: &[f32]) -> Result<(), Error> {
            unreachable!("generation changes nothing")
        }
    }

    fn request(prompt: &[u32], rows: usize, length: usize) -> Request<'_> {
        Request { prompt, rows, length, end: None, vocab_size: VOCAB, sampling: Sampling::default() }
    }

    /// Each row's tokens.
    fn generate(model: &Counting, request: Request<'_>) -> Vec<Vec<u32>> {
        let mut generator = Generator::new(model, request).unwrap();
        let mut rows = vec![Vec::new(); request.rows];
        while let Some(tokens) = generator.step().unwrap() {
            rows.iter_mut().zip(tokens).for_each(|(row, token)| row.extend(token));
        }
        rows
    }

    #[test]
    fn the_prompt_is_fed_at_once_and_then_each_token() {
        let model = Counting::new(-1e9);
        assert_eq!(generate(&model, request(&[3, 4], 2, 3)), [[5, 6, 7], [5, 6, 7]]);
        assert_eq!(*model.feeds.borrow(), [vec![3, 4, 3, 4], vec![5, 5], vec![6, 6]]);
    }

    #[test]
    fn a_full_block_slides() {
        let model = Counting::new(-1e9);
        let rows = generate(&model, request(&[0, 1, 2, 3, 4, 5], 1, 6));
        assert_eq!(rows, [[6, 7, 8, 9, 0, 1]]);
        let expected = [vec![0, 1, 2, 3, 4, 5], vec![6], vec![7], vec![3, 4, 5, 6, 7, 8], vec![9], vec![0]];
        assert_eq!(*model.feeds.borrow(), expected);
    }

    #[test]
    fn of_a_long_prompt_the_end_is_read() {
        let model = Counting::new(-1e9);
        let prompt: Vec<u32> = (0..25).map(|i| i % 10).collect();
        assert_eq!(generate(&model, request(&prompt, 1, 2)), [[5, 6]]);
        assert_eq!(*model.feeds.borrow(), [vec![7, 8, 9, 0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4, 5]]);
    }

    #[test]
    fn a_block_of_one_token_slides_too() {
        let model = Counting { config: Config::new(1, 1, 4, 1, VOCAB), ..Counting::new(-1e9) };
        assert_eq!(generate(&model, request(&[2, 3], 1, 3)), [[4, 5, 6]]);
    }

    #[test]
    fn a_row_ends_at_the_end_token_which_is_no_part_of_it() {
        let model = Counting::new(-1e9);
        let rows = generate(&model, Request { end: Some(7), ..request(&[4], 1, 100) });
        assert_eq!(rows, [[5, 6]]);
    }

    #[test]
    fn rows_are_independent_and_end_apart() {
        let model = Counting::new(-1.0);
        let many = generate(&model, Request { end: Some(7), ..request(&[4], 5, 100) });
        assert!(many.iter().any(|row| row != &many[0]), "every row drew the same: {many:?}");
        assert!(many.iter().any(|row| row.len() != many[0].len()), "every row has the same length: {many:?}");
        assert!(many.iter().all(|row| !row.contains(&7)));
        // A row's text does not depend on how many are made beside it.
        let one = generate(&model, Request { end: Some(7), ..request(&[4], 1, 100) });
        assert_eq!(one[0], many[0]);
    }

    #[test]
    fn a_row_that_was_ended_makes_nothing_more() {
        let model = Counting::new(-1e9);
        let mut generator = Generator::new(&model, request(&[4], 2, 4)).unwrap();
        assert_eq!(generator.step().unwrap(), Some(&[Some(5), Some(5)][..]));
        generator.end(0);
        assert_eq!(generator.step().unwrap(), Some(&[None, Some(6)][..]));
        generator.end(1);
        assert_eq!(generator.step().unwrap(), None);
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
        assert_eq!(error.to_string(), "the prompt has no tokens");
    }
}
