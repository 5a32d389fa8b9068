//! [`FaultyDecoder`]: faults in decoding.

use ngen3_engine::{Decoder, Error, Feed, PAGE, Trainer};

use super::Fault;

/// A decoder of the reference device, with a fault.
pub struct FaultyDecoder<'a> {
    fault: Fault,
    model: &'a dyn Trainer,
    inner: Box<dyn Decoder + 'a>,
    /// Tokens of each sequence.
    tokens: Vec<Vec<u32>>,
    /// Tokens that each sequence still sees in front of its own.
    kept: Vec<Vec<u32>>,
    /// `[feeds, vocab_size]`
    logits: Vec<f32>,
}

impl<'a> FaultyDecoder<'a> {
    pub fn new(fault: Fault, model: &'a dyn Trainer, sequences: usize, pages: usize) -> Result<Self, Error> {
        let inner = model.decoder_within(sequences, pages)?;
        let [tokens, kept] = [vec![Vec::new(); sequences], vec![Vec::new(); sequences]];
        Ok(Self { fault, model, inner, tokens, kept, logits: Vec::new() })
    }

    /// True if the feeds are the ones that must be refused, and are not.
    fn accepts(&self, feeds: &[Feed<'_>]) -> bool {
        let (block, vocab_size) = (self.model.config().block_size, self.model.config().vocab_size);
        let len = |feed: &Feed<'_>| self.tokens.get(feed.sequence).map_or(0, Vec::len) + feed.tokens.len();
        match self.fault {
            Fault::AcceptsNoFeeds => feeds.is_empty(),
            Fault::AcceptsNoTokens => feeds.iter().any(|feed| feed.tokens.is_empty()),
            Fault::AcceptsTwice => {
                feeds.iter().enumerate().any(|(i, feed)| feeds[..i].iter().any(|other| other.sequence == feed.sequence))
            }
            Fault::AcceptsUnknownSequence => feeds.iter().any(|feed| feed.sequence >= self.tokens.len()),
            Fault::AcceptsUnknownToken => {
                feeds.iter().flat_map(|feed| feed.tokens).any(|&token| token as usize >= vocab_size)
            }
            Fault::AcceptsPastBlock => feeds.iter().any(|feed| len(feed) > block + 1),
            Fault::AcceptsFull => self.inner.free_pages() == 0 && feeds.iter().any(|feed| len(feed) % PAGE == 1),
            Fault::AcceptsOneMore => feeds.iter().any(|feed| len(feed) == block + 1),
            _ => false,
        }
    }

    /// All that a sequence sees.
    fn context(&self, sequence: usize) -> Vec<u32> {
        let kept = if self.fault == Fault::SharesWrongly { &[] } else { &self.kept[sequence][..] };
        let mut context = [kept, &self.tokens[sequence]].concat();
        // As if the first token of one were stored in the other's place.
        if let (Fault::SeesAnother, 1, Some(&first)) = (self.fault, sequence, self.tokens[0].first()) {
            context[0] = first;
        }
        context
    }

    fn take(&mut self, feeds: &[Feed<'_>]) -> Result<(), Error> {
        self.logits = self.inner.feed(feeds)?.to_vec();
        feeds.iter().for_each(|feed| self.tokens[feed.sequence].extend(feed.tokens));
        Ok(())
    }
}

impl Decoder for FaultyDecoder<'_> {
    fn sequences(&self) -> usize {
        self.inner.sequences()
    }

    fn len(&self, sequence: usize) -> usize {
        self.inner.len(sequence) + if self.fault == Fault::ClearCounts { self.kept[sequence].len() } else { 0 }
    }

    fn free_pages(&self) -> usize {
        self.inner.free_pages() + usize::from(self.fault == Fault::CountsPages)
    }

    fn share(&mut self, from: usize, to: usize, pages: usize) -> Result<(), Error> {
        self.inner.share(from, to, pages)?;
        self.tokens[to] = self.tokens[from][..pages * PAGE].to_vec();
        // As if its last token were another's.
        if self.fault == Fault::SharesWrongly {
            self.tokens[to].reverse();
        }
        Ok(())
    }

    fn feed(&mut self, feeds: &[Feed<'_>]) -> Result<&[f32], Error> {
        if self.accepts(feeds) {
            return Ok(&self.logits);
        }
        if let Err(error) = self.take(feeds) {
            let first = feeds.first().filter(|_| self.fault == Fault::RefusedInPart);
            first.map(|first| self.take(&[*first]));
            return Err(error);
        }
        match self.fault {
            Fault::SeesAnother | Fault::ClearKeeps | Fault::SharesWrongly => {
                self.logits.clear();
                for feed in feeds {
                    let mut alone = self.model.decoder(1)?;
                    let tokens = &self.context(feed.sequence);
                    self.logits.extend(alone.feed(&[Feed { sequence: 0, tokens, logits: feed.logits }])?);
                }
            }
            Fault::FeedOrder if feeds.iter().all(|feed| feed.logits == 1) => {
                let mut rows: Vec<_> =
                    feeds.iter().zip(self.logits.chunks_exact(self.model.config().vocab_size)).collect();
                rows.sort_by_key(|(feed, _)| feed.sequence);
                self.logits = rows.into_iter().flat_map(|(_, logits)| logits).copied().collect();
            }
            _ => {}
        }
        Ok(&self.logits)
    }

    fn clear(&mut self, sequence: usize) {
        self.inner.clear(sequence);
        let tokens = std::mem::take(&mut self.tokens[sequence]);
        self.kept[sequence] = tokens.last().copied().into_iter().collect();
    }
}
