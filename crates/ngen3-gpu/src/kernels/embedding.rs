//! Embeddings of tokens and positions, and their gradients, which gather the tokens of each id.

use std::ops::Range;

use super::dropout::Mask;
use super::groups;
use crate::device::{Kernel, Recorder, View, read, write};

/// Part of a table, `[rows, width]`: the rows of some ids.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// Ids of its rows.
    pub ids: Range<usize>,
    /// Memory.
    pub view: View<'a>,
}

const SOURCE: &str = concat!(include_str!("mask.wgsl"), include_str!("embedding.wgsl"));

/// Records x = (wte[token] + wpe[position])·mask, `[tokens, width]`, where `wte` is in parts.
///
/// # Panics
/// If a length is wrong.
pub fn forward(
    recorder: &mut Recorder<'_>,
    tokens: View<'_>,
    positions: View<'_>,
    wte: &[Part<'_>],
    wpe: Option<View<'_>>,
    mask: Mask,
    x: View<'_>,
) {
    let width = x.len / tokens.len;
    x.expect(tokens.len * width);
    positions.expect(tokens.len);
    for Part { ids, view } in wte {
        view.expect(ids.len() * width);
        let constants = [("STAGE", 0), ("WPE", u32::from(wpe.is_some()))];
        let kernel = Kernel { name: "embedding", source: SOURCE, constants: &constants };
        let sizes = [tokens.len, width, ids.start, ids.len(), 0].map(|size| size as u32);
        let bindings = [read(tokens), read(positions), read(*view), read(wpe.unwrap_or(*view)), write(x)];
        recorder.dispatch(kernel, &bindings, &[&sizes[..], &mask.0].concat(), groups(x.len));
    }
}

/// Tokens of a pass, sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// Indices of the tokens, those of an id in order.
    pub order: Vec<u32>,
    /// Ids that occur, ascending, each with its range in `order`.
    pub ids: Vec<[u32; 3]>,
}

impl Sorted {
    /// Sorts the tokens of a pass.
    pub fn new(ids: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|&token| (ids[token as usize], token));
        let mut start = 0;
        let runs = order.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]).map(|run| {
            let range = start..start + run.len() as u32;
            start = range.end;
            [ids[run[0] as usize], range.start, range.end]
        });
        Self { ids: runs.collect(), order }
    }
}

/// Records dtable[id] += Σ dx·mask over the tokens of each id. `order` and `groups` are those of `sorted` on the device.
///
/// # Panics
/// If a length is wrong.
#[expect(clippy::too_many_arguments, reason = "the gradient, its mask, and the order of its sums on both sides")]
pub fn backward(
    recorder: &mut Recorder<'_>,
    sorted: &Sorted,
    order: View<'_>,
    ids: View<'_>,
    dx: View<'_>,
    mask: Mask,
    width: usize,
    dtable: &[Part<'_>],
) {
    order.expect(sorted.order.len());
    ids.expect(3 * sorted.ids.len());
    dx.expect(sorted.order.len() * width);
    for part in dtable {
        part.view.expect(part.ids.len() * width);
        let before = |end: usize| sorted.ids.partition_point(|[id, ..]| (*id as usize) < end);
        let (start, end) = (before(part.ids.start), before(part.ids.end));
        let constants = [("STAGE", 1), ("WPE", 0)];
        let kernel = Kernel { name: "embedding", source: SOURCE, constants: &constants };
        // A dimension of a dispatch has a limit, which a long pass of one-token sequences would exceed.
        for start in (start..end).step_by(32_768) {
            let sizes = [sorted.order.len(), width, part.ids.start, part.ids.len(), start].map(|size| size as u32);
            let bindings = [read(order), read(ids), read(dx), read(dx), write(part.view)];
            let immediates = [&sizes[..], &mask.0].concat();
            recorder.dispatch(kernel, &bindings, &immediates, [(end - start).min(32_768), 1, 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use ngen3_engine::{Dropout, DropoutSite};

    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    #[test]
    fn embeddings_in_parts_and_their_gradients_equal_the_plain_ones() {
        let Some(context) = context() else { return };
        let (vocab, width, block) = (23, 300, 11);
        let tokens: Vec<u32> = (0..40).map(|t| (t * t + 3) % vocab as u32).collect();
        let positions: Vec<u32> = (0..40).map(|t| t % block as u32).collect();
        let (wte, wpe, dx) = (numbers(1, vocab * width), numbers(2, block * width), numbers(3, 40 * width));
        let dropout = Dropout::new(0.2, 1, DropoutSite::Embedding);
        let factor = |i: usize| dropout.unwrap().factor(i as u32);
        let parts = [0..9, 9..10, 10..23];
        // Each part begins where a kernel can be given it.
        let apart = |values: &[f32]| {
            let mut all = vec![0.0; 3 * 4096];
            for (i, ids) in parts.iter().enumerate() {
                all[i * 4096..][..ids.len() * width].copy_from_slice(&values[ids.start * width..ids.end * width]);
            }
            context.upload("a table", &all).unwrap()
        };
        fn views<'a>(buffer: &'a crate::device::Buffer, parts: &[Range<usize>], width: usize) -> Vec<Part<'a>> {
            let part = |(i, ids): (usize, &Range<usize>)| Part {
                ids: ids.clone(),
                view: buffer.view(i * 4096..i * 4096 + ids.len() * width),
            };
            parts.iter().enumerate().map(part).collect()
        }
        let table = apart(&wte);
        let upload = |values: &[u32]| context.upload("ids", values).unwrap();
        let (token_view, position_view) = (upload(&tokens), upload(&positions));
        let (wpe_view, x) = (context.upload("wpe", &wpe).unwrap(), context.buffer("x", 40 * width).unwrap());
        for with_wpe in [false, true] {
            let wpe_used = with_wpe.then_some(wpe_view.all());
            let wte_parts = views(&table, &parts, width);
            let mask = Mask::new(dropout);
            let mut recorder = Recorder::new(context);
            forward(&mut recorder, token_view.all(), position_view.all(), &wte_parts, wpe_used, mask, x.all());
            drop(recorder);
            let expected = |i: usize| {
                let (token, position) = (tokens[i / width] as usize, positions[i / width] as usize);
                let sum =
                    wte[token * width + i % width] + if with_wpe { wpe[position * width + i % width] } else { 0.0 };
                f64::from(sum * factor(i))
            };
            close("x", &context.read(x.all()).unwrap(), &(0..40 * width).map(expected).collect::<Vec<_>>(), 1e-7);
        }
        let sorted = Sorted::new(&tokens);
        let (order, ids) = (upload(&sorted.order), upload(sorted.ids.as_flattened()));
        let dx_view = context.upload("dx", &dx).unwrap();
        let mut recorder = Recorder::new(context);
        let dtable = views(&table, &parts, width);
        backward(&mut recorder, &sorted, order.all(), ids.all(), dx_view.all(), Mask::new(dropout), width, &dtable);
        drop(recorder);
        let mut expected: Vec<f64> = wte.iter().map(|&x| f64::from(x)).collect();
        for (i, &dx) in dx.iter().enumerate() {
            expected[tokens[i / width] as usize * width + i % width] += f64::from(dx * factor(i));
        }
        for (ids, part) in parts.iter().zip(dtable) {
            let found = context.read(part.view).unwrap();
            close("dtable", &found, &expected[ids.start * width..ids.end * width], 1e-6);
        }
    }
}
