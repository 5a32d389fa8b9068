//! Sizes of attention, and its partition into tasks of one key head of one sequence, with their scratch memory.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use ngen3_engine::{Dropout, PAGE, PageTable};
use ngen3_model::Config;
use rayon::prelude::*;

use crate::base::memory::padded;
use crate::gemm::Mat;
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::shape::{BLOCK, ROWS};

/// Location of one sequence in its pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Index of its first token in the pass.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Tokens of the pass that it continues; empty if none.
    pub prefix: Range<usize>,
}

/// New tokens of one sequence in a pass, and the location of its keys and values.
#[derive(Clone, Copy, Debug)]
pub struct CachedSequence {
    /// Index of its first token in the pass.
    pub start: usize,
    /// Number of new tokens.
    pub len: usize,
    /// Number of tokens already in the cache.
    pub before: usize,
    /// Sequence in the cache's table of pages.
    pub slot: usize,
}

/// Keys and values of one block.
pub struct Cache<'a> {
    /// `[pages, PAGE, 2·n_kv_head·head_width]`: per token the keys of all heads, then the values.
    pub rows: &'a mut [f32],
    /// Pages of each sequence.
    pub table: &'a PageTable,
}

impl Cache<'_> {
    /// Keys and values of consecutive positions of a sequence that are in one page.
    pub fn rows(&self, shape: Shape, slot: usize, positions: Range<usize>) -> &[f32] {
        let (first, width) = (self.place(slot, positions.start), 2 * shape.kv_width());
        &self.rows[first * width..(first + positions.len()) * width]
    }

    /// Keys and values of one position of a sequence.
    pub fn row(&self, shape: Shape, slot: usize, position: usize) -> &[f32] {
        self.rows(shape, slot, position..position + 1)
    }

    /// As [`Cache::row`], to be written.
    pub fn row_mut(&mut self, shape: Shape, slot: usize, position: usize) -> &mut [f32] {
        let (row, width) = (self.place(slot, position), 2 * shape.kv_width());
        &mut self.rows[row * width..(row + 1) * width]
    }

    fn place(&self, slot: usize, position: usize) -> usize {
        self.table.pages(slot)[position / PAGE] * PAGE + position % PAGE
    }
}

impl CachedSequence {
    /// The new tokens' range in the pass.
    pub fn tokens(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Number of tokens in the cache, new ones included.
    pub fn keys(&self) -> usize {
        self.before + self.len
    }
}

/// Sizes of attention.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of query heads.
    pub n_head: usize,
    /// Number of key heads, and of value heads; divides `n_head`.
    pub n_kv_head: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Largest number of tokens in a sequence.
    pub longest: usize,
}

impl Shape {
    /// Sizes for a model.
    pub fn new(config: &Config) -> Self {
        let Config { n_head, block_size, .. } = *config;
        Self { n_head, n_kv_head: config.kv_heads(), head_width: config.head_width(), longest: block_size }
    }

    /// Length in f32 of the scratch memory of forward and backward on `threads` threads.
    pub fn scratch(&self, threads: usize) -> usize {
        let backward: usize = backward_lengths(self.longest, self.head_width).map(padded).iter().sum();
        threads * backward.max(head_scratch(self.longest, self.head_width))
    }

    /// Width of all query heads together, and of the output.
    pub fn width(&self) -> usize {
        self.n_head * self.head_width
    }

    /// Width of all key heads together, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.n_kv_head * self.head_width
    }

    /// Width of a row of `qkv`.
    pub fn qkv_width(&self) -> usize {
        self.width() + 2 * self.kv_width()
    }

    /// Number of query heads that share a key head.
    pub fn group(&self) -> usize {
        self.n_head / self.n_kv_head
    }

    /// Columns of one head's query (`part` 0), key (1) or value (2) in a row of `qkv`. `head` counts heads of that part.
    pub fn columns(&self, head: usize, part: usize) -> Range<usize> {
        let first = [0, self.width(), self.width() + self.kv_width()][part] + head * self.head_width;
        first..first + self.head_width
    }

    /// Views one head's queries, keys or values of some tokens, `[tokens, head_width]`.
    pub fn part<'a>(&self, qkv: &'a [f32], tokens: Range<usize>, head: usize, part: usize) -> Mat<'a> {
        let first = (tokens.start * self.qkv_width() + self.columns(head, part).start).min(qkv.len());
        Mat::strided(&qkv[first..], tokens.len(), self.head_width, self.qkv_width())
    }

    /// Views one query head's columns of some tokens of a `[tokens, width]` tensor.
    pub fn merged<'a>(&self, x: &'a [f32], tokens: Range<usize>, head: usize) -> Mat<'a> {
        let first = tokens.start * self.width() + head * self.head_width;
        Mat::strided(&x[first..], tokens.len(), self.head_width, self.width())
    }
}

/// Most rows of a left operand that are computed together.
pub const MOST_ROWS: usize = ROWS;

/// Lengths in f32 of one head's `keys` keys or values as an operand, and the scores of `queries` queries: enough for every form.
fn lengths(keys: usize, head_width: usize, queries: usize) -> [usize; 2] {
    let across = keys.next_multiple_of(NR);
    // The smallest block of AMX has 32 elements in bf16.
    [across * head_width.max(BLOCK), queries * across]
}

/// Length in f32 of the scratch memory of one head's forward pass with `keys` keys.
pub fn head_scratch(keys: usize, head_width: usize) -> usize {
    forward_lengths(keys, head_width).map(padded).iter().sum()
}

/// Lengths of the pieces of one head's scratch memory in the forward pass.
pub fn forward_lengths(keys: usize, head_width: usize) -> [usize; 6] {
    let [rows, scores] = lengths(keys, head_width, MOST_ROWS);
    [rows, rows, rows, rows, scores, scores]
}

/// Query heads of one sequence that share a key head.
pub struct Task {
    /// Index of the sequence.
    pub sequence: usize,
    /// Key head.
    pub kv_head: usize,
    /// Query heads: those that share the key head, or one of them.
    pub heads: Range<usize>,
}

/// Tasks per thread that keep all threads busy to the end.
const TASKS: usize = 4;

/// Calls `work(task, scratch)` for the heads of all sequences, those that share a key head in one task, or one by one if there
/// would be too few tasks for the threads otherwise, on as many threads as `scratch` has pieces of this length. Tasks
/// start in the order of sequences and heads.
///
/// The number of heads in a task depends on the number of threads; the bits of the results must not depend on it.
pub fn for_each_task(
    shape: Shape,
    sequences: usize,
    scratch: &mut [f32],
    piece: usize,
    work: impl Fn(Task, &mut [f32]) + Sync,
) {
    let (groups, group) = (sequences * shape.n_kv_head, shape.group());
    let heads = if groups >= TASKS * (scratch.len() / piece) { group } else { 1 };
    let next = AtomicUsize::new(0);
    scratch.par_chunks_exact_mut(piece).for_each(|piece| {
        loop {
            let first = heads * next.fetch_add(1, Ordering::Relaxed);
            if first >= groups * group {
                return;
            }
            let (sequence, head) = (first / shape.n_head, first % shape.n_head);
            work(Task { sequence, kv_head: head / group, heads: head..head + heads }, piece);
        }
    });
}

/// Dropout of one head's probabilities in one sequence, with the index of the first one in the whole pass.
#[derive(Clone, Copy)]
pub struct HeadDropout {
    dropout: Dropout,
    first: u32,
    /// Number of keys.
    keys: usize,
}

impl HeadDropout {
    /// Applies the mask to the probabilities of one query, or to their gradients.
    #[inline(always)]
    pub fn apply(&self, query: usize, row: &mut [f32]) {
        let first = self.first.wrapping_add((query * self.keys) as u32);
        for (j, p) in row.iter_mut().enumerate() {
            *p *= self.dropout.factor(first.wrapping_add(j as u32));
        }
    }
}

/// Returns the dropout of one head of sequence `span`.
pub fn head_dropout(
    dropout: Option<Dropout>,
    spans: &[Span],
    span: usize,
    head: usize,
    n_head: usize,
) -> Option<HeadDropout> {
    let dropout = dropout?;
    let before: usize = spans[..span].iter().map(|span| n_head * span.len * span.len).sum();
    let keys = spans[span].len;
    Some(HeadDropout { dropout, first: (before + head * keys * keys) as u32, keys })
}

/// Queries per tile of the backward pass, over which the gradients of keys and values are summed in registers. A multiple of
/// [`MOST_ROWS`], and of the elements of a block, so that those of a tile are whole.
pub const TILE: usize = 64;

/// Lengths of the pieces of one head's scratch memory in the backward pass, for `keys` keys.
pub fn backward_lengths(keys: usize, head_width: usize) -> [usize; 14] {
    let [rows, scores] = lengths(keys, head_width, TILE);
    let gradient = keys * head_width;
    [rows, rows, rows, rows, rows, rows, rows, gradient, gradient, scores, scores, scores, scores, TILE]
}
