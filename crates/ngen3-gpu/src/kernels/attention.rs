//! Causal attention (Vaswani et al. 2017) in tiles, whose memory grows with the tokens alone (Dao et al. 2022), over sequences of any
//! lengths, with fewer heads of keys than of queries if the model has fewer (Ainslie et al. 2023).

use ngen3_engine::PAGE;

use super::MAX_GROUPS;
use super::dropout::Mask;
use crate::device::{Kernel, Recorder, View, read, write};

/// Tokens of a tile, which is a page of a decoder's cache.
pub const TILE: usize = 32;

const _: () = assert!(TILE == PAGE, "a tile of keys is a page");

/// Heads, and their place in a row of queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and of values.
    pub kv_heads: usize,
    /// Width of a head.
    pub width: usize,
}

impl Shape {
    /// Width of a row of queries, keys and values.
    pub fn qkv_width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.width
    }

    /// Width of all heads of queries, and of attention's output.
    pub fn q_width(self) -> usize {
        self.heads * self.width
    }

    /// Width of all heads of keys.
    pub fn kv_width(self) -> usize {
        self.kv_heads * self.width
    }
}

/// A sequence of a pass, or the part of one that is fed to a decoder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequence {
    /// Row of its first token.
    pub row: usize,
    /// Number of tokens.
    pub len: usize,
    /// Row of its prefix' first token.
    pub prefix_row: usize,
    /// Earlier tokens that it attends to.
    pub prefix_len: usize,
    /// Dropout index of its first probability.
    pub mask: u32,
    /// First of its pages.
    pub pages: usize,
}

/// Tiles of the sequences, in order, for the kernels.
pub fn tiles(sequences: &[Sequence]) -> Vec<[u32; 9]> {
    let mut tiles = Vec::new();
    for &Sequence { row, len, prefix_row, prefix_len, mask, pages } in sequences {
        for start in (0..len).step_by(TILE) {
            let count = (len - start).min(TILE);
            let fields =
                [row + start, count, prefix_len + start, row, len, prefix_row, prefix_len].map(|field| field as u32);
            let mut tile = [0; 9];
            tile[..7].copy_from_slice(&fields);
            (tile[7], tile[8]) = (mask, pages as u32);
            tiles.push(tile);
        }
    }
    tiles
}

/// Keys and values.
#[derive(Clone, Copy)]
pub enum Keys<'a> {
    /// Those of the pass itself, in the rows of the queries.
    Pass,
    /// Those of a decoder: `[pages·PAGE, 2·kv_width]`, and the pages of the sequences.
    Pages {
        /// Keys and values.
        cache: View<'a>,
        /// Pages of the sequences.
        pages: View<'a>,
    },
}

/// Queries, keys and values of a pass, and the tiles of its sequences.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// Heads.
    pub shape: Shape,
    /// `[tokens, qkv_width]`
    pub qkv: View<'a>,
    /// Of [`tiles`].
    pub tiles: View<'a>,
    /// Mask of the probabilities.
    pub mask: Mask,
}

impl Operands<'_> {
    fn constants(&self, part: u32, paged: bool) -> [(&'static str, u32); 4] {
        let drops = self.mask.0[0] > 0;
        let chunks = self.shape.width.div_ceil(32) as u32;
        [("PART", part), ("CHUNKS", chunks), ("PAGED", u32::from(paged)), ("DROPOUT", u32::from(drops))]
    }

    fn immediates(&self, paged: bool) -> Vec<u32> {
        let Shape { heads, kv_heads, width } = self.shape;
        let (row, q, kv) = (self.shape.qkv_width(), self.shape.q_width(), self.shape.kv_width());
        let [kv_stride, k, v] = if paged { [2 * kv, 0, kv] } else { [row, q, q + kv] };
        let sizes = [row, kv_stride, k, v, q, width, heads, heads / kv_heads].map(|size| size as u32);
        [&sizes[..], &[(1.0 / (width as f32).sqrt()).to_bits()], &self.mask.0].concat()
    }

    fn tokens(&self) -> usize {
        self.qkv.len / self.shape.qkv_width()
    }

    fn source() -> &'static str {
        concat!(include_str!("mask.wgsl"), include_str!("attention.wgsl"))
    }
}

/// Records attention: `out`, `[tokens, q_width]`, and `lse`, `[tokens, heads]`.
///
/// # Panics
/// If a length is wrong.
pub fn forward(recorder: &mut Recorder<'_>, operands: Operands<'_>, keys: Keys<'_>, out: View<'_>, lse: View<'_>) {
    let Operands { shape, qkv, tiles, .. } = operands;
    out.expect(operands.tokens() * shape.q_width());
    lse.expect(operands.tokens() * shape.heads);
    let (memory, pages, paged) = match keys {
        Keys::Pass => (qkv, tiles, false),
        Keys::Pages { cache, pages } => (cache, pages, true),
    };
    let constants = operands.constants(0, paged);
    let kernel = Kernel { name: "attention", source: Operands::source(), constants: &constants };
    let bindings = [read(qkv), read(memory), read(tiles), read(pages), write(lse), write(out), read(qkv), read(qkv)];
    recorder.dispatch(kernel, &bindings, &operands.immediates(paged), [tiles.len / 9, shape.heads, 1]);
}

/// Records the gradient of queries, keys and values, `dqkv`, given that of the output. `out` and `lse` are the forward pass's; `inner`,
/// `[tokens, heads]`, is working memory. For sequences that continue nothing.
///
/// # Panics
/// If a length is wrong.
pub fn backward(
    recorder: &mut Recorder<'_>,
    operands: Operands<'_>,
    [out, dout]: [View<'_>; 2],
    [lse, inner]: [View<'_>; 2],
    dqkv: View<'_>,
) {
    let Operands { shape, qkv, tiles, .. } = operands;
    let rows = operands.tokens() * shape.heads;
    for view in [out, dout] {
        view.expect(rows * shape.width);
    }
    for view in [lse, inner] {
        view.expect(rows);
    }
    dqkv.expect(qkv.len);
    let kernel = Kernel { name: "inner", source: include_str!("inner.wgsl"), constants: &[] };
    let groups = [rows.div_ceil(8).min(MAX_GROUPS), 1, 1];
    recorder.dispatch(kernel, &[read(out), read(dout), write(inner)], &[rows as u32, shape.width as u32], groups);
    for (part, heads) in [(1, shape.heads), (2, shape.kv_heads)] {
        let constants = operands.constants(part, false);
        let kernel = Kernel { name: "attention", source: Operands::source(), constants: &constants };
        let bindings =
            [read(qkv), read(qkv), read(tiles), read(tiles), write(lse), write(dqkv), read(dout), read(inner)];
        recorder.dispatch(kernel, &bindings, &operands.immediates(false), [tiles.len / 9, heads, 1]);
    }
}

#[cfg(test)]
mod tests {
    use ngen3_engine::{Dropout, DropoutSite};

    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    /// Attention in f64: output, and the gradient of `qkv` for sequences without a prefix.
    fn twin(
        shape: Shape,
        sequences: &[Sequence],
        qkv: &[f32],
        dout: &[f32],
        dropout: Option<Dropout>,
    ) -> (Vec<f64>, Vec<f64>) {
        let (row, q, w) = (shape.qkv_width(), shape.q_width(), shape.width);
        let (mut out, mut dqkv) = (vec![0.0; dout.len()], vec![0.0; qkv.len()]);
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
        for s in sequences {
            let key_row = |k: usize| if k < s.prefix_len { s.prefix_row + k } else { s.row + k - s.prefix_len };
            for head in 0..shape.heads {
                let kv = head / (shape.heads / shape.kv_heads);
                let (key, value) = (q + kv * w, q + shape.kv_width() + kv * w);
                for i in 0..s.len {
                    let at = (s.row + i) * row + head * w;
                    let keys = s.prefix_len + i + 1;
                    let scale = 1.0 / (w as f64).sqrt();
                    let score = |k: usize| dot(&qkv[at..at + w], &qkv[key_row(k) * row + key..][..w]) * scale;
                    let scores: Vec<f64> = (0..keys).map(score).collect();
                    let largest = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
                    let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp() / total).collect();
                    let index = |k: usize| s.mask as usize + (head * s.len + i) * s.len + k;
                    let mask = |k: usize| dropout.map_or(1.0, |d| f64::from(d.factor(index(k) as u32)));
                    let d = &dout[(s.row + i) * q + head * w..][..w];
                    let dp: Vec<f64> =
                        (0..keys).map(|k| mask(k) * dot(d, &qkv[key_row(k) * row + value..][..w])).collect();
                    let inner: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                    for k in 0..keys {
                        let ds = p[k] * (dp[k] - inner) * scale;
                        for c in 0..w {
                            let place = key_row(k) * row;
                            out[(s.row + i) * q + head * w + c] += p[k] * mask(k) * f64::from(qkv[place + value + c]);
                            dqkv[place + value + c] += p[k] * mask(k) * f64::from(d[c]);
                            dqkv[place + key + c] += ds * f64::from(qkv[at + c]);
                            dqkv[at + c] += ds * f64::from(qkv[place + key + c]);
                        }
                    }
                }
            }
        }
        (out, dqkv)
    }

    /// Sequences of these lengths after one another.
    fn sequences(shape: Shape, lens: &[usize]) -> Vec<Sequence> {
        let (mut row, mut mask) = (0, 0);
        let next = |&len: &usize| {
            let sequence = Sequence { row, len, mask, ..Sequence::default() };
            (row, mask) = (row + len, mask + (shape.heads * len * len) as u32);
            sequence
        };
        lens.iter().map(next).collect()
    }

    #[test]
    fn attention_and_its_gradient_equal_the_plain_formulas() {
        let Some(context) = context() else { return };
        for (shape, lens, p) in [
            (Shape { heads: 1, kv_heads: 1, width: 1 }, &[1, 2][..], 0.0),
            (Shape { heads: 3, kv_heads: 3, width: 7 }, &[33, 1, 64], 0.0),
            (Shape { heads: 4, kv_heads: 2, width: 40 }, &[70, 31], 0.2),
        ] {
            let sequences = sequences(shape, lens);
            let tokens: usize = lens.iter().sum();
            let qkv: Vec<f32> = numbers(1, tokens * shape.qkv_width()).iter().map(|x| 2.0 * x).collect();
            let dout = numbers(2, tokens * shape.q_width());
            let dropout = Dropout::new(p, 4, DropoutSite::Attention(1));
            let (expected, dexpected) = twin(shape, &sequences, &qkv, &dout, dropout);
            let tiles = context.upload("tiles", tiles(&sequences).as_flattened()).unwrap();
            let [qkv, dout] = [&qkv, &dout].map(|values| context.upload("activations", values).unwrap());
            let [out, dqkv] = [dout.len(), qkv.len()].map(|len| context.buffer("out", len).unwrap());
            let [lse, inner] = [(); 2].map(|()| context.buffer("lse", tokens * shape.heads).unwrap());
            let operands = Operands { shape, qkv: qkv.all(), tiles: tiles.all(), mask: Mask::new(dropout) };
            let mut recorder = Recorder::new(context);
            forward(&mut recorder, operands, Keys::Pass, out.all(), lse.all());
            let outs = [out.all(), dout.all()];
            backward(&mut recorder, operands, outs, [lse.all(), inner.all()], dqkv.all());
            drop(recorder);
            close(&format!("{shape:?}"), &context.read(out.all()).unwrap(), &expected, 2e-6);
            close(&format!("{shape:?}, gradient"), &context.read(dqkv.all()).unwrap(), &dexpected, 3e-6);
        }
    }

    #[test]
    fn sequences_continue_a_prefix_of_the_pass_or_of_a_cache() {
        let Some(context) = context() else { return };
        let shape = Shape { heads: 2, kv_heads: 1, width: 9 };
        // A prefix of 37 tokens, and two sequences that continue it.
        let prefix = Sequence { row: 0, len: 37, ..Sequence::default() };
        let after = |row, len| Sequence { row, len, prefix_row: 0, prefix_len: 37, ..Sequence::default() };
        let all = [prefix, after(37, 5), after(42, 40)];
        let qkv = numbers(3, 82 * shape.qkv_width());
        let (expected, _) = twin(shape, &all, &qkv, &vec![0.0; 82 * shape.q_width()], None);
        let run = |sequences: &[Sequence], qkv: &[f32], cache: Option<(&[f32], &[u32])>| {
            let rows = qkv.len() / shape.qkv_width();
            let qkv = context.upload("qkv", qkv).unwrap();
            let tiles = context.upload("tiles", tiles(sequences).as_flattened()).unwrap();
            let [out, lse] = [shape.q_width(), shape.heads].map(|n| context.buffer("out", rows * n).unwrap());
            let operands = Operands { shape, qkv: qkv.all(), tiles: tiles.all(), mask: Mask::NONE };
            let paged = cache.map(|(cache, pages)| {
                (context.upload("cache", cache).unwrap(), context.upload("pages", pages).unwrap())
            });
            let keys = match &paged {
                None => Keys::Pass,
                Some((cache, pages)) => Keys::Pages { cache: cache.all(), pages: pages.all() },
            };
            forward(&mut Recorder::new(context), operands, keys, out.all(), lse.all());
            context.read(out.all()).unwrap()
        };
        close("in the pass", &run(&all, &qkv, None), &expected, 2e-6);

        // The last sequence alone, with the keys of all 77 tokens in pages 5, 0 and 2 of a cache.
        let (row, q, kv) = (shape.qkv_width(), shape.q_width(), 2 * shape.kv_width());
        let mut cache = vec![f32::NAN; 6 * PAGE * kv];
        for token in 0..77 {
            let at = if token < 37 { token } else { token + 5 };
            let page = [5, 0, 2][token / PAGE];
            cache[(page * PAGE + token % PAGE) * kv..][..kv].copy_from_slice(&qkv[at * row + q..(at + 1) * row]);
        }
        let alone = Sequence { row: 0, len: 40, prefix_len: 37, pages: 1, ..Sequence::default() };
        let found = run(&[alone], &qkv[42 * row..], Some((&cache, &[9, 5, 0, 2])));
        close("from a cache", &found, &expected[42 * q..], 2e-6);
    }
}
