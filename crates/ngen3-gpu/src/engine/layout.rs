//! [`Layout`]: the place of each parameter on the device, and [`Arrays`] of that layout: parameters, gradients, moments.
//!
//! The contract's flat array is cut into segments, each a buffer that a kernel can be given whole. A segment holds either matrices, which
//! decay, or vectors, which do not, so that an update is one kernel a segment. A matrix begins where a kernel can be given it alone,
//! and stays whole unless it is larger than a segment: embeddings and heads are then cut between rows.

use std::ops::Range;

use ngen3_engine::Error;
use ngen3_model::{Config, LoraList, Param, ParamList, Projection};

use crate::device::{Buffer, Context, View};

/// Elements to a multiple of which a tensor begins.
const ALIGN: usize = 64;

/// Most elements of a segment: 1 GiB.
const SEGMENT: usize = 1 << 28;

/// Tensor as the engine reads it: one or more parameters that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its range in the flat array.
    pub range: Range<usize>,
    /// Elements of a row; of a vector all.
    pub columns: usize,
    /// Its rows, in one piece unless it is larger than a segment.
    pub pieces: Vec<Piece>,
}

/// Rows of a tensor that follow one another in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Rows of the tensor.
    pub rows: Range<usize>,
    /// Its segment.
    pub segment: usize,
    /// Its elements in the segment.
    pub range: Range<usize>,
}

/// Buffer of each array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Number of elements.
    pub len: usize,
    /// True if weight decay applies.
    pub decays: bool,
}

/// Places of all tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the flat array.
    tensors: Vec<Tensor>,
    /// Buffers of an array.
    pub segments: Vec<Segment>,
    /// Length of the flat array.
    pub total: usize,
}

impl Layout {
    /// Lays out a model's parameters in segments of at most `most` elements.
    pub fn of_model(config: &Config, list: &ParamList, most: usize) -> Self {
        let mut tensors = vec![(list.wte.clone(), config.n_embd), (list.wpe.clone(), config.n_embd)];
        for block in &list.blocks {
            let linear = Projection::ALL.map(|projection| (block.linear(projection), projection.shape(config)[1]));
            tensors.extend(linear.iter().map(|((weight, _), inputs)| ((*weight).clone(), *inputs)));
            let vectors = [
                &block.ln_1_weight,
                &block.ln_1_bias,
                &block.q_norm_weight,
                &block.k_norm_weight,
                &block.ln_2_weight,
                &block.ln_2_bias,
            ];
            let biases = linear.iter().map(|((_, bias), _)| *bias);
            tensors.extend(vectors.into_iter().chain(biases).map(|range| (range.clone(), 0)));
        }
        tensors.extend([(list.ln_f_weight.clone(), 0), (list.ln_f_bias.clone(), 0)]);
        if !config.tied {
            tensors.push((list.lm_head.clone(), config.n_embd));
        }
        Self::new(tensors, list.total(), most)
    }

    /// Lays out adapters: the matrices A of a projection as one, and each matrix B.
    pub fn of_adapters(list: &LoraList, config: &Config, rank: usize, most: usize) -> Self {
        let mut tensors = Vec::new();
        for layer in 0..config.n_layer {
            for projection in Projection::ALL {
                if let Some(ranges) = list.adapter(layer, projection) {
                    tensors.push((ranges.a.clone(), projection.shape(config)[1]));
                    tensors.extend(ranges.parts.iter().map(|part| (part.b.clone(), rank)));
                }
            }
        }
        Self::new(tensors, list.total(), most)
    }

    /// Lays out tensors, given their ranges and the elements of their rows; 0 for a vector.
    fn new(mut tensors: Vec<(Range<usize>, usize)>, total: usize, most: usize) -> Self {
        let most = most.min(SEGMENT) / ALIGN * ALIGN;
        tensors.retain(|(range, _)| !range.is_empty());
        tensors.sort_by_key(|(range, _)| range.start);
        let mut layout = Self { tensors: Vec::new(), segments: Vec::new(), total };
        // The segments of vectors and of matrices that still have room.
        let mut open = [None; 2];
        for (range, columns) in tensors {
            let decays = columns > 0;
            let columns = if decays { columns } else { range.len() };
            let rows = range.len() / columns;
            let whole = if range.len() <= most { rows } else { (most / columns).max(1) };
            let mut pieces = Vec::new();
            for first in (0..rows).step_by(whole) {
                let rows = first..(first + whole).min(rows);
                let len = rows.len() * columns;
                let place = open[usize::from(decays)].filter(|&index: &usize| layout.segments[index].len + len <= most);
                let segment = place.unwrap_or_else(|| {
                    layout.segments.push(Segment { len: 0, decays });
                    layout.segments.len() - 1
                });
                open[usize::from(decays)] = Some(segment);
                let start = layout.segments[segment].len;
                layout.segments[segment].len = (start + len).next_multiple_of(ALIGN);
                pieces.push(Piece { rows, segment, range: start..start + len });
            }
            layout.tensors.push(Tensor { range, columns, pieces });
        }
        layout
    }

    /// Returns the tensor with this range.
    ///
    /// # Panics
    /// If there is none.
    pub fn tensor(&self, range: &Range<usize>) -> &Tensor {
        let index = self.tensors.partition_point(|tensor| tensor.range.start < range.start);
        let tensor = &self.tensors[index];
        assert_eq!(tensor.range, *range, "a tensor of the layout");
        tensor
    }

    /// Returns the segment and the place in it of a parameter that lies within a whole tensor.
    pub fn place(&self, param: &Param) -> Option<(usize, usize)> {
        let index = self.tensors.partition_point(|tensor| tensor.range.end <= param.offset);
        let Tensor { range, pieces, .. } = &self.tensors[index];
        match &pieces[..] {
            [piece] => Some((piece.segment, piece.range.start + param.offset - range.start)),
            _ => None,
        }
    }

    /// Returns true if every tensor but these is in one piece.
    pub fn is_whole_but(&self, divided: &[&Range<usize>]) -> bool {
        self.tensors.iter().all(|tensor| tensor.pieces.len() == 1 || divided.contains(&&tensor.range))
    }
}

/// Array on the device: of parameters, gradients or moments.
#[derive(Debug)]
pub struct Array {
    segments: Vec<Buffer>,
}

impl Array {
    /// Allocates an array of zeros.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(context: &Context, what: &'static str, layout: &Layout) -> Result<Self, Error> {
        let buffer = |segment: &Segment| context.buffer(what, segment.len);
        Ok(Self { segments: layout.segments.iter().map(buffer).collect::<Result<_, _>>()? })
    }

    /// Returns a segment.
    pub fn segment(&self, index: usize) -> View<'_> {
        self.segments[index].all()
    }

    /// Returns a piece of a tensor.
    pub fn piece(&self, piece: &Piece) -> View<'_> {
        self.segments[piece.segment].view(piece.range.clone())
    }

    /// Returns a tensor that is in one piece.
    ///
    /// # Panics
    /// If it is not.
    pub fn whole(&self, tensor: &Tensor) -> View<'_> {
        let [piece] = &tensor.pieces[..] else { panic!("a tensor in {} pieces", tensor.pieces.len()) };
        self.piece(piece)
    }

    /// Returns the flat array, `[total]`.
    ///
    /// # Errors
    /// As [`Context::read`].
    pub fn read(&self, context: &Context, layout: &Layout) -> Result<Vec<f32>, Error> {
        let mut flat = vec![0.0; layout.total];
        for (index, buffer) in self.segments.iter().enumerate() {
            let values = context.read(buffer.all())?;
            for (tensor, piece) in pieces(layout, index) {
                flat[places(tensor, piece)].copy_from_slice(&values[piece.range.clone()]);
            }
        }
        Ok(flat)
    }

    /// Replaces the flat array, `[total]`.
    ///
    /// # Panics
    /// If it has another length.
    pub fn write(&self, context: &Context, layout: &Layout, flat: &[f32]) {
        assert_eq!(flat.len(), layout.total, "number of parameters");
        for (index, buffer) in self.segments.iter().enumerate() {
            let mut values = vec![0.0f32; buffer.len()];
            for (tensor, piece) in pieces(layout, index) {
                values[piece.range.clone()].copy_from_slice(&flat[places(tensor, piece)]);
            }
            context.write(buffer.all(), &values);
        }
    }
}

/// Pieces of a segment, with their tensors.
fn pieces(layout: &Layout, segment: usize) -> impl Iterator<Item = (&Tensor, &Piece)> {
    let all = layout.tensors.iter().flat_map(|tensor| tensor.pieces.iter().map(move |piece| (tensor, piece)));
    all.filter(move |(_, piece)| piece.segment == segment)
}

/// Range of a piece in the flat array.
fn places(tensor: &Tensor, piece: &Piece) -> Range<usize> {
    let row = |row: usize| tensor.range.start + row * tensor.columns;
    row(piece.rows.start)..row(piece.rows.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_hold_every_element_once_and_cut_only_what_is_too_large() {
        for config in [Config::new(2, 3, 12, 5, 97), Config { tied: false, ..Config::llama(2, 6, 2, 36, 21, 40, 97) }] {
            let list = ParamList::new(&config);
            for most in [1 << 20, 2048] {
                let layout = Layout::of_model(&config, &list, most);
                let mut seen = vec![0; list.total()];
                for segment in 0..layout.segments.len() {
                    let mut end = 0;
                    for (tensor, piece) in pieces(&layout, segment) {
                        assert!(piece.range.start >= end && piece.range.start.is_multiple_of(ALIGN));
                        assert_eq!(places(tensor, piece).len(), piece.range.len());
                        end = piece.range.end;
                        places(tensor, piece).for_each(|i| seen[i] += 1);
                    }
                    assert!(end <= layout.segments[segment].len && layout.segments[segment].len <= most);
                }
                assert!(seen.iter().all(|&count| count == 1));
                for param in &list {
                    let decays = layout.tensors.iter().find(|t| t.range.contains(&param.offset)).expect("a tensor");
                    assert_eq!(layout.segments[decays.pieces[0].segment].decays, param.decays(), "{}", param.name());
                }
                let whole = layout.tensor(&list.lm_head).pieces.len() == 1;
                assert_eq!(whole, most > 97 * config.n_embd);
                assert!(most < 1 << 20 || layout.is_whole_but(&[]));
            }
        }
    }
}
