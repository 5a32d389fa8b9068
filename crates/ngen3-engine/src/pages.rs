//! [`PageTable`]: the pages of a key-value cache, and the sequences that hold them.

use ngen3_model::Config;

use crate::model::{Feed, PAGE};
use crate::{Error, check_tokens};

/// Sequences of a decoder: their lengths and their pages. Engines keep the content of the pages.
#[derive(Clone, Debug)]
pub struct PageTable {
    /// Number of tokens in each sequence.
    lens: Vec<usize>,
    /// Pages of each sequence, in the order of its tokens.
    pages: Vec<Vec<usize>>,
    /// Number of sequences that hold each page.
    holders: Vec<usize>,
    /// Pages that no sequence holds.
    free: Vec<usize>,
}

impl PageTable {
    /// Creates a table of empty sequences.
    ///
    /// # Errors
    /// [`Error::Input`] for 0 sequences.
    pub fn new(sequences: usize, pages: usize) -> Result<Self, Error> {
        if sequences == 0 {
            return Err(Error::Input("decoder: expected at least 1 sequence, got 0".into()));
        }
        let (lens, holders) = (vec![0; sequences], vec![0; pages]);
        Ok(Self { lens, pages: vec![Vec::new(); sequences], holders, free: (0..pages).rev().collect() })
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.lens.len()
    }

    /// Number of tokens in a sequence.
    pub fn len(&self, sequence: usize) -> usize {
        self.lens[sequence]
    }

    /// Pages of a sequence, in the order of its tokens.
    pub fn pages(&self, sequence: usize) -> &[usize] {
        &self.pages[sequence]
    }

    /// Number of pages that no sequence holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Checks all that [`crate::Decoder::feed`] refuses.
    ///
    /// # Errors
    /// [`Error::Input`].
    pub fn check(&self, feeds: &[Feed<'_>], config: &Config) -> Result<(), Error> {
        let (mut wanted, mut fed) = (0, vec![false; self.sequences()]);
        if feeds.is_empty() {
            return Err(Error::Input("decoder: expected at least 1 sequence to feed, got 0".into()));
        }
        for &Feed { sequence, tokens, logits } in feeds {
            let Some(&before) = self.lens.get(sequence) else {
                let sequences = self.sequences();
                return Err(Error::Input(format!("sequence {sequence} is out of range: the decoder has {sequences}")));
            };
            if tokens.is_empty() || std::mem::replace(&mut fed[sequence], true) {
                return Err(Error::Input(format!("sequence {sequence} has no tokens, or is fed twice in one step")));
            }
            let (n, block) = (tokens.len(), config.block_size);
            if logits == 0 || logits > n {
                return Err(Error::Input(format!("expected logits after 1 to {n} of {n} tokens, got {logits}")));
            }
            if before + n > block {
                return Err(Error::Input(format!("{before} + {n} tokens exceed the context length of {block}")));
            }
            check_tokens(tokens, config)?;
            wanted += (before + n).div_ceil(PAGE) - self.pages[sequence].len();
        }
        let free = self.free();
        if wanted > free {
            return Err(Error::Input(format!(
                "the key-value cache is full: {wanted} pages are needed, {free} are free"
            )));
        }
        Ok(())
    }

    /// Appends the tokens of feeds that [`PageTable::check`] accepts.
    pub fn grow(&mut self, feeds: &[Feed<'_>]) {
        for &Feed { sequence, tokens, .. } in feeds {
            self.lens[sequence] += tokens.len();
            while self.pages[sequence].len() * PAGE < self.lens[sequence] {
                let page = self.free.pop().expect("checked: enough pages are free");
                self.holders[page] = 1;
                self.pages[sequence].push(page);
            }
        }
    }

    /// Starts the sequence `to` with the first pages of `from`.
    ///
    /// # Errors
    /// As [`crate::Decoder::share`].
    pub fn share(&mut self, from: usize, to: usize, pages: usize) -> Result<(), Error> {
        let sequences = self.sequences();
        if let Some(sequence) = [from, to].into_iter().find(|&sequence| sequence >= sequences) {
            return Err(Error::Input(format!("sequence {sequence} is out of range: the decoder has {sequences}")));
        }
        let (len, held) = (self.lens[from], self.lens[to]);
        if held > 0 || pages > len / PAGE {
            return Err(Error::Input(format!(
                "cannot share {pages} pages of a sequence of {len} tokens with one of {held}: expected whole pages, and an \
                 empty sequence"
            )));
        }
        self.pages[to] = self.pages[from][..pages].to_vec();
        self.pages[to].iter().for_each(|&page| self.holders[page] += 1);
        self.lens[to] = pages * PAGE;
        Ok(())
    }

    /// Removes the tokens of a sequence.
    pub fn clear(&mut self, sequence: usize) {
        self.lens[sequence] = 0;
        for page in self.pages[sequence].drain(..).rev() {
            self.holders[page] -= 1;
            if self.holders[page] == 0 {
                self.free.push(page);
            }
        }
    }
}
