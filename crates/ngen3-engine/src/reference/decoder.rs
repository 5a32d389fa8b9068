//! [`ReferenceDecoder`]: decoding with a key-value cache.

use super::model::Network;
use crate::{Decoder, Error, Feed, PAGE, PageTable, Pass, PassDropout};

/// Decoder of independent sequences. Each keeps its own keys and values; the pages are only counted.
pub struct ReferenceDecoder<'a> {
    network: &'a Network,
    table: PageTable,
    /// `[n_layer][sequences]`, each `[tokens, 2·kv_width]`.
    cache: Vec<Vec<Vec<f32>>>,
    /// `[Σ Feed::logits, vocab_size]`
    logits: Vec<f32>,
}

impl<'a> ReferenceDecoder<'a> {
    /// Creates a decoder with room for this many sequences, of this many pages together.
    ///
    /// # Errors
    /// [`Error::Input`] for 0 sequences, or a model with adapters.
    pub fn new(network: &'a Network, sequences: usize, pages: usize) -> Result<Self, Error> {
        if network.is_adapted() {
            return Err(Error::Input("a model with adapters cannot decode: merge them first".into()));
        }
        let cache = vec![vec![Vec::new(); sequences]; network.config.n_layer];
        Ok(Self { network, table: PageTable::new(sequences, pages)?, cache, logits: Vec::new() })
    }
}

impl Decoder for ReferenceDecoder<'_> {
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
        self.table.check(feeds, &self.network.config)?;
        let pass = Pass::of_feeds(feeds, &self.table);
        let hidden = self.network.forward(&pass, PassDropout::NONE, &mut self.cache).hidden;
        let width = self.network.config.n_embd;
        let ends = pass.spans.iter().map(|span| span.tokens.end).zip(feeds);
        let last: Vec<f32> =
            ends.flat_map(|(end, feed)| &hidden[(end - feed.logits) * width..end * width]).copied().collect();
        self.logits = self.network.logits(&last);
        self.table.grow(feeds);
        Ok(&self.logits)
    }

    fn share(&mut self, from: usize, to: usize, pages: usize) -> Result<(), Error> {
        self.table.share(from, to, pages)?;
        let n = pages * PAGE * 2 * self.network.config.kv_width();
        self.cache.iter_mut().for_each(|block| block[to] = block[from][..n].to_vec());
        Ok(())
    }

    fn clear(&mut self, sequence: usize) {
        self.table.clear(sequence);
        self.cache.iter_mut().for_each(|block| block[sequence].clear());
    }
}
