//! [`GpuDecoder`]: decoding with a key-value cache in pages on the device.

use ngen3_engine::{Decoder, Error, Feed, PAGE, PageTable, Pass, PassDropout};

use super::arena::{Arena, ForwardMode, Inputs, Paged};
use super::block::Run;
use super::network::Network;
use crate::device::{Buffer, Recorder};
use crate::kernels::product::Matrix;

/// Elements of the logits that are computed at a time.
const LOGITS: usize = 1 << 24;

/// Decoder of independent sequences.
pub struct GpuDecoder<'a> {
    network: &'a Network,
    table: PageTable,
    /// Of each block, `[pages·PAGE, 2·kv_width]`.
    cache: Vec<Buffer>,
    inputs: Inputs,
    arena: Option<Arena>,
    /// `[rows, C]` and `[rows, vocab_size]`.
    last: Option<[Buffer; 2]>,
    logits: Vec<f32>,
}

impl<'a> GpuDecoder<'a> {
    /// Creates a decoder with room for this many sequences, of this many pages together.
    ///
    /// # Errors
    /// [`Error::Input`] for 0 sequences, or a model with adapters; [`Error::Memory`].
    pub fn new(network: &'a Network, sequences: usize, pages: usize) -> Result<Self, Error> {
        if network.adapters.is_some() {
            return Err(Error::Input("the model has adapters: merge them before decoding".into()));
        }
        let len = pages.saturating_mul(PAGE).saturating_mul(2 * network.config.kv_width());
        if len > network.context.binding_len() {
            return Err(Error::Memory { what: "keys and values of a layer", bytes: len.saturating_mul(4) });
        }
        let table = PageTable::new(sequences, pages)?;
        let buffer = |_| network.context.buffer("keys and values", len);
        let cache = (0..network.config.n_layer).map(buffer).collect::<Result<_, _>>()?;
        Ok(Self { network, table, cache, inputs: Inputs::default(), arena: None, last: None, logits: Vec::new() })
    }

    /// Computes the logits of the last rows of each feed.
    fn read_logits(&mut self, ends: &[(usize, usize)]) -> Result<(), Error> {
        let Self { network, arena, last, logits, .. } = self;
        let (width, vocab) = (network.config.n_embd, network.config.vocab_size);
        let arena = arena.as_ref().expect("the pass ran");
        let rows: Vec<usize> = ends.iter().flat_map(|&(end, count)| end - count..end).collect();
        let most = (LOGITS.min(network.context.binding_len()) / vocab).clamp(1, rows.len());
        if last.as_ref().is_none_or(|[hidden, _]| hidden.len() < most * width) {
            let buffer = |what, len| network.context.buffer(what, len);
            *last = None;
            *last = Some([buffer("hidden states", most * width)?, buffer("logits", most * vocab)?]);
        }
        let Some([hidden, out]) = last else { unreachable!("just allocated") };
        logits.clear();
        for rows in rows.chunks(most) {
            let mut recorder = Recorder::new(&network.context);
            for (to, &from) in rows.iter().enumerate() {
                recorder.copy(
                    arena.hidden.view(from * width..(from + 1) * width),
                    hidden.view(to * width..(to + 1) * width),
                );
            }
            let out = out.first(rows.len() * vocab);
            for chunk in network.head_chunks(vocab) {
                let to = Matrix { view: out, first: chunk.first, stride: vocab };
                network.logits(&mut recorder, chunk, hidden.first(rows.len() * width), to);
            }
            drop(recorder);
            logits.extend(network.context.read(out)?);
        }
        Ok(())
    }
}

impl Decoder for GpuDecoder<'_> {
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
        let Self { network, table, cache, inputs, arena, .. } = self;
        // Before the sequences grow: without the memory they stay as they are.
        let arena = Arena::reserve(arena, network, ForwardMode::Inference, pass.inputs.len())?;
        table.grow(feeds);
        let paged = Paged { pages: feeds.iter().map(|feed| table.pages(feed.sequence)).collect() };
        inputs.write(network, &pass, Some(&paged), false)?;
        let mut recorder = Recorder::new(&network.context);
        network.forward(&mut recorder, Run { inputs, arena, drops: PassDropout::NONE }, cache);
        drop(recorder);
        let ends: Vec<_> = pass.spans.iter().zip(feeds).map(|(span, feed)| (span.tokens.end, feed.logits)).collect();
        self.read_logits(&ends)?;
        Ok(&self.logits)
    }

    fn weight_bytes(&self) -> usize {
        let list = &self.network.list;
        4 * (list.total() - list.wte.len() - list.wpe.len() + if self.network.config.tied { list.wte.len() } else { 0 })
    }

    fn share(&mut self, from: usize, to: usize, pages: usize) -> Result<(), Error> {
        self.table.share(from, to, pages)
    }

    fn clear(&mut self, sequence: usize) {
        self.table.clear(sequence);
    }
}
