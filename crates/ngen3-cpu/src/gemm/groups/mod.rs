//! Products with weights in groups of 32 inputs, as GGUF files store them: `Q4_0`, `Q4_1` and `Q8_0`.
//!
//! A group of a weight is w = d·(u − zero) + m, with u of 4 or 8 bits, d and m in float16; `zero` is the format's and m only
//! `Q4_1`'s. The weights are never widened: the inputs are rounded to int8 in the same groups (`inputs.rs`), x = s·q, as
//! llama.cpp does, and a group adds s·d·Σ (u − zero)·q + m·s·Σ q to an output. The inner sums are integers, so exact.
//!
//! 16 outputs lie side by side in a panel ([`Panel`]), one per 32-bit lane of a vector, so that a lane's sum is an output's and
//! no vector is ever summed across. `format.rs` has the formats and the layout, `kernel.rs` the kernel in plain Rust, `x86.rs`
//! those for AVX512-VNNI and AVX2 and `arm.rs` that for NEON, with the same bits; `round.rs` quantises to `Q4_0`. One vector of
//! inputs, as in decoding, is bound by the reading of the panels; of many, as in a prompt, up to [`ROWS`] share what a panel
//! unpacks to.

#[cfg(target_arch = "aarch64")]
mod arm;
mod format;
mod inputs;
mod kernel;
mod round;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use ngen3_engine::Error;
use rayon::prelude::*;

pub use format::{Format, GROUP};
pub use round::round_to_int4;

use super::view::{Mat, MatMut};
use crate::base::memory::Buffer;
use crate::gemm::tiles::with_workspace;
use format::{LANES, Panel, ROWS};
use inputs::Inputs;

/// Rows of inputs per task: they stay in the L2 cache while panels stream through.
const MOST_ROWS: usize = 256;

/// Bytes of panels per task, about: small enough for even shares, large enough for sequential reads.
const TASK: usize = 1 << 17;

/// Weight `[outputs, inputs]` in groups.
#[derive(Debug)]
pub struct Groups {
    format: Format,
    outputs: usize,
    /// Groups per output: those of the inputs, the last one padded with zeros.
    groups: usize,
    panels: Buffer,
}

impl Groups {
    /// Rounds a weight `[outputs, inputs]` to `Q4_0` as llama.cpp does.
    ///
    /// # Errors
    /// [`Error::Memory`] if the panels do not fit in memory.
    pub fn int4(weight: &[f32], inputs: usize) -> Result<Self, Error> {
        let groups = inputs.div_ceil(GROUP);
        let mut blocks = vec![0; weight.len() / inputs * groups * Format::Q4_0.block()];
        let rows = blocks.par_chunks_mut(groups * Format::Q4_0.block());
        rows.zip(weight.par_chunks(inputs)).for_each(|(blocks, row)| round::q4_0(row, blocks));
        Self::from_blocks(Format::Q4_0, &[&blocks], groups)
    }

    /// Lays out the blocks of a file, `[outputs, groups]`, in several parts one after the other.
    ///
    /// # Errors
    /// [`Error::Memory`] if the panels do not fit in memory.
    ///
    /// # Panics
    /// If a part does not consist of whole rows.
    pub fn from_blocks(format: Format, parts: &[&[u8]], groups: usize) -> Result<Self, Error> {
        let row = groups * format.block();
        assert!(parts.iter().all(|part| part.len().is_multiple_of(row)), "whole rows of {groups} blocks");
        let rows: Vec<&[u8]> = parts.iter().flat_map(|part| part.chunks_exact(row)).collect();
        let outputs = rows.len();
        let stride = stride(format, groups);
        let panels = Buffer::zeros(outputs.div_ceil(LANES) * stride / size_of::<f32>(), "the decoder's weights")?;
        let mut weight = Self { format, outputs, groups, panels };
        let panels: &mut [u8] = bytemuck::cast_slice_mut(&mut weight.panels);
        panels.par_chunks_mut(stride).zip(rows.par_chunks(LANES)).for_each(|(panel, rows)| {
            for (lane, row) in rows.iter().enumerate() {
                for (group, block) in row.chunks_exact(format.block()).enumerate() {
                    put(format, panel, (group, groups), lane, block);
                }
            }
        });
        Ok(weight)
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.panels.len() * size_of::<f32>()
    }

    fn panel(&self, index: usize) -> Panel<'_> {
        let Self { format, groups, .. } = *self;
        let panels: &[u8] = bytemuck::cast_slice(&self.panels);
        let (elements, rest) = panels[index * stride(format, groups)..].split_at(groups * LANES * format.bytes());
        let numbers = groups * LANES * size_of::<u16>();
        let numbers_of = |range: std::ops::Range<usize>| bytemuck::cast_slice(&rest[range]);
        let last = if format.has_minimum() { 2 * numbers } else { numbers };
        Panel { elements, scales: numbers_of(0..numbers), minimums: numbers_of(numbers..last) }
    }

    /// Computes `y = start + x·Wᵀ`, with `x`: `[rows, inputs]`, `y`: `[rows, outputs]`. `start(part, row, col)` fills the part of
    /// `y` at `(row, col)`.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn product_onto(&self, y: MatMut<'_>, x: Mat<'_>, start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync) {
        let rows = x.n_rows();
        assert_eq!((y.rows, y.cols), (rows, self.outputs), "shape mismatch: expected [rows, outputs]");
        assert_eq!(x.cols().div_ceil(GROUP), self.groups, "columns of x: the layer's inputs");
        with_workspace(Inputs::len(rows, self.groups), |workspace| {
            let x = Inputs::round(x, self.format.zero(), workspace);
            let panels = self.outputs.div_ceil(LANES);
            // The work in a panel's bytes, shared by eight rows.
            let work = rows.min(MOST_ROWS).div_ceil(ROWS) * stride(self.format, self.groups);
            let per_task = (TASK / work).clamp(1, panels.div_ceil(4 * rayon::current_num_threads()).max(1));
            let (blocks, tasks) = (rows.div_ceil(MOST_ROWS), panels.div_ceil(per_task));
            (0..blocks * tasks).into_par_iter().with_max_len(1).for_each(|task| {
                let (row, first) = (task % blocks * MOST_ROWS, task / blocks * per_task);
                for panel in first..(first + per_task).min(panels) {
                    let columns = panel * LANES..((panel + 1) * LANES).min(self.outputs);
                    let (last, col) = ((row + MOST_ROWS).min(rows), columns.start);
                    // SAFETY: each task has its own rows and panels.
                    let mut part = unsafe { y.part(row..last, columns) };
                    start(&mut part, row, col);
                    let mut at = 0;
                    while at < part.rows {
                        at += kernel::add(
                            self.format,
                            self.panel(panel),
                            x.after(row + at),
                            &mut part.rows(at..last - row),
                        );
                    }
                }
            });
        });
    }
}

/// Bytes of a panel.
const fn stride(format: Format, groups: usize) -> usize {
    let numbers = if format.has_minimum() { 2 } else { 1 } * size_of::<u16>();
    (groups * LANES * (format.bytes() + numbers)).next_multiple_of(64)
}

/// Writes one output's block of a file to its lane of a panel.
fn put(format: Format, panel: &mut [u8], (group, groups): (usize, usize), lane: usize, block: &[u8]) {
    let (numbers, elements) = block.split_at(format.block() - format.bytes());
    let cells = &mut panel[group * LANES * format.bytes()..][..LANES * format.bytes()];
    for (cells, four) in cells.chunks_exact_mut(4 * LANES).zip(elements.chunks_exact(4)) {
        let flip = if matches!(format, Format::Q8_0) { 128 } else { 0 };
        cells[4 * lane..][..4].iter_mut().zip(four).for_each(|(cell, byte)| *cell = byte ^ flip);
    }
    let start = groups * LANES * format.bytes();
    for (i, number) in numbers.chunks_exact(2).enumerate() {
        panel[start + 2 * ((i * groups + group) * LANES + lane)..][..2].copy_from_slice(number);
    }
}
