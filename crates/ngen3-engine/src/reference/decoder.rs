//! [`ReferenceDecoder`]: decoding with a key-value cache.

use super::attention::Before;
use super::model::Network;
use super::pass::{Pass, PassDropout};
use crate::{Decoder, Error, Feed, check_tokens};

/// Decoder of independent sequences.
pub struct ReferenceDecoder<'a> {
    network: &'a Network,
    /// Number of tokens in each sequence.
    lens: Vec<usize>,
    /// `[n_layer][sequences]`, each `[tokens, 2·kv_width]`.
    cache: Vec<Vec<Vec<f32>>>,
    /// `[feeds, vocab_size]`
    logits: Vec<f32>,
}

impl<'a> ReferenceDecoder<'a> {
    /// Creates a decoder with room for this many sequences.
    ///
    /// # Errors
    /// [`Error::Input`] for 0 sequences, or a model with adapters.
    pub fn new(network: &'a Network, sequences: usize) -> Result<Self, Error> {
        if network.is_adapted() {
            return Err(Error::Input("a model with adapters cannot decode: merge them first".into()));
        }
        if sequences == 0 {
            return Err(Error::Input("a decoder needs at least one sequence".into()));
        }
        let cache = vec![vec![Vec::new(); sequences]; network.config.n_layer];
        Ok(Self { network, lens: vec![0; sequences], cache, logits: Vec::new() })
    }

    /// Checks the feeds and builds their pass.
    fn pass(&self, feeds: &[Feed<'_>]) -> Result<Pass, Error> {
        let config = &self.network.config;
        if feeds.is_empty() {
            return Err(Error::Input("the decoder was given no feeds".into()));
        }
        let mut pass = Pass::default();
        for (i, &Feed { sequence, tokens }) in feeds.iter().enumerate() {
            let Some(&len) = self.lens.get(sequence) else {
                let sequences = self.lens.len();
                return Err(Error::Input(format!("sequence {sequence} is out of range: the decoder has {sequences}")));
            };
            if tokens.is_empty() || feeds[..i].iter().any(|other| other.sequence == sequence) {
                return Err(Error::Input(format!("sequence {sequence} is fed no tokens or fed twice")));
            }
            if len + tokens.len() > config.block_size {
                let (n, block) = (tokens.len(), config.block_size);
                return Err(Error::Input(format!("{n} tokens after {len} exceed the context length of {block}")));
            }
            check_tokens(tokens, config)?;
            pass.push(tokens, len, Before::Cache(sequence));
        }
        Ok(pass)
    }
}

impl Decoder for ReferenceDecoder<'_> {
    fn sequences(&self) -> usize {
        self.lens.len()
    }

    fn len(&self, sequence: usize) -> usize {
        self.lens[sequence]
    }

    fn feed(&mut self, feeds: &[Feed<'_>]) -> Result<&[f32], Error> {
        let pass = self.pass(feeds)?;
        let hidden = self.network.forward(&pass, PassDropout::NONE, &mut self.cache).hidden;
        let width = self.network.config.n_embd;
        let last = |tokens: &std::ops::Range<usize>| &hidden[(tokens.end - 1) * width..tokens.end * width];
        let last: Vec<f32> = pass.spans.iter().flat_map(|span| last(&span.tokens)).copied().collect();
        self.logits = self.network.logits(&last);
        for feed in feeds {
            self.lens[feed.sequence] += feed.tokens.len();
        }
        Ok(&self.logits)
    }

    fn clear(&mut self, sequence: usize) {
        self.lens[sequence] = 0;
        self.cache.iter_mut().for_each(|block| block[sequence].clear());
    }
}
