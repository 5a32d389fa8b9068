//! Matrix products c = alpha·a·b, plain and transposed, with what follows them fused.

use super::dropout::Mask;
use crate::device::{Kernel, Recorder, View, read, write};

/// A row-major matrix in memory: rows `stride` elements apart, the first element at `first`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Memory.
    pub view: View<'a>,
    /// First element.
    pub first: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<'a> Matrix<'a> {
    /// Returns all of a memory as a matrix of this many columns.
    pub fn new(view: View<'a>, columns: usize) -> Self {
        Self { view, first: 0, stride: columns }
    }

    /// Checks that a matrix of this shape lies within the memory.
    fn check(&self, [rows, columns]: [usize; 2]) {
        let Self { view, first, stride } = *self;
        assert!(columns <= stride && rows > 0, "[{rows}, {columns}] in rows of {stride}");
        let end = first + (rows - 1) * stride + columns;
        assert!(end <= view.len, "[{rows}, {columns}] of {}: {end} of {}", view.buffer.what(), view.len);
    }
}

/// Orientation of the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// a: `[m, k]`, b: `[k, n]`.
    Nn,
    /// a: `[m, k]`, b: `[n, k]`, as a linear layer's weight.
    Nt,
    /// a: `[k, m]`, b: `[k, n]`, as a weight's gradient.
    Tn,
}

/// Use of the product.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// c = product (+ bias, `[n]`).
    Set(Option<View<'a>>),
    /// c += product.
    Add,
    /// c = residual + dropout(product + bias): the end of a branch. `residual`: `[m, n]`; c has no gaps.
    Branch {
        /// `[n]`
        bias: Option<View<'a>>,
        /// `[m, n]`
        residual: View<'a>,
        /// Mask of the branch.
        mask: Mask,
    },
}

/// Tile of a workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 64 × 64, 4 × 4 for a thread: for products that have few tiles.
    Small,
    /// 128 × 128, 8 × 8 for a thread: half the reads.
    Large,
}

/// Tiles that keep a large GPU busy.
const BUSY: usize = 128;

impl Tile {
    /// Chooses by shape: large tiles if there are enough of them.
    fn of([m, n]: [usize; 2]) -> Self {
        if m.div_ceil(128) * n.div_ceil(128) >= BUSY { Self::Large } else { Self::Small }
    }

    fn quads(self) -> usize {
        match self {
            Self::Small => 1,
            Self::Large => 2,
        }
    }
}

/// Records c = alpha·a·b with `shape` `[m, n, k]`.
///
/// # Panics
/// If a matrix does not lie within its memory.
#[expect(clippy::too_many_arguments, reason = "three matrices, their shape and what is done with the result")]
pub fn product(
    recorder: &mut Recorder<'_>,
    form: Form,
    shape: [usize; 3],
    alpha: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: Matrix<'_>,
    epilogue: Epilogue<'_>,
) {
    product_in(recorder, Tile::of([shape[0], shape[1]]), form, shape, alpha, a, b, c, epilogue);
}

/// As [`product`], in these tiles.
#[expect(clippy::too_many_arguments, reason = "a product: its operands, their shape and what becomes of it")]
pub fn product_in(
    recorder: &mut Recorder<'_>,
    tile: Tile,
    form: Form,
    [m, n, k]: [usize; 3],
    alpha: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: Matrix<'_>,
    epilogue: Epilogue<'_>,
) {
    a.check(if form == Form::Tn { [k, m] } else { [m, k] });
    b.check(if form == Form::Nt { [n, k] } else { [k, n] });
    c.check([m, n]);
    let (kind, bias, residual, mask) = match epilogue {
        Epilogue::Set(bias) => (0, bias, None, Mask::NONE),
        Epilogue::Add => (1, None, None, Mask::NONE),
        Epilogue::Branch { bias, residual, mask } => {
            residual.expect(m * n);
            assert!(c.first == 0 && c.stride == n, "a branch ends in a matrix without gaps");
            (2, bias, Some(residual), mask)
        }
    };
    if let Some(bias) = bias {
        bias.expect(n);
    }
    let quads = tile.quads();
    let constants = [
        ("ROW_QUADS", quads as u32),
        ("COLUMN_QUADS", quads as u32),
        ("DEPTH", 16),
        ("TRANS_A", u32::from(form == Form::Tn)),
        ("TRANS_B", u32::from(form == Form::Nt)),
        ("EPILOGUE", kind),
        ("BIAS", u32::from(bias.is_some())),
    ];
    let source = concat!(include_str!("mask.wgsl"), include_str!("product.wgsl"));
    let sizes = [m, n, k, a.stride, b.stride, c.stride, a.first, b.first, c.first].map(|size| size as u32);
    let immediates = [&sizes[..], &[alpha.to_bits()], &mask.0].concat();
    // A binding that the kernel does not read needs memory all the same.
    let bindings =
        [read(a.view), read(b.view), write(c.view), read(bias.unwrap_or(b.view)), read(residual.unwrap_or(a.view))];
    let groups = [n.div_ceil(64 * quads), m.div_ceil(64 * quads), 1];
    recorder.dispatch(Kernel { name: "product", source, constants: &constants }, &bindings, &immediates, groups);
}

#[cfg(test)]
mod tests {
    use ngen3_engine::{Dropout, DropoutSite};

    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    /// Sum over the inner dimension, in f64.
    fn twin(form: Form, [m, n, k]: [usize; 3], a: &[f32], [sa, sb]: [usize; 2], b: &[f32]) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                let at = |l: usize| {
                    let x = if form == Form::Tn { a[l * sa + i] } else { a[i * sa + l] };
                    let y = if form == Form::Nt { b[j * sb + l] } else { b[l * sb + j] };
                    f64::from(x) * f64::from(y)
                };
                c[i * n + j] = (0..k).map(at).sum();
            }
        }
        c
    }

    #[test]
    fn every_form_tile_and_epilogue_equals_the_plain_sums() {
        let Some(context) = context() else { return };
        for [m, n, k] in [[1, 1, 1], [65, 3, 17], [3, 130, 33], [130, 67, 5], [64, 64, 16]] {
            for (form, tile) in [Form::Nn, Form::Nt, Form::Tn]
                .into_iter()
                .flat_map(|form| [Tile::Small, Tile::Large].map(|tile| (form, tile)))
            {
                // Rows with gaps, which do not begin at the first element.
                let a_shape = if form == Form::Tn { [k, m] } else { [m, k] };
                let b_shape = if form == Form::Nt { [n, k] } else { [k, n] };
                let (sa, sb) = (a_shape[1] + 2, b_shape[1] + 3);
                let (a, b) = (numbers(1, 5 + a_shape[0] * sa), numbers(2, 7 + b_shape[0] * sb));
                let (bias, old) = (numbers(3, n), numbers(4, m * n));
                let plain = twin(form, [m, n, k], &a[5..], [sa, sb], &b[7..]);
                let upload = |values: &[f32]| context.upload("an operand", values).unwrap();
                let [a, b, bias_view, old_view] = [&a, &b, &bias, &old].map(|values| upload(values));
                let dropout = Dropout::new(0.3, 9, DropoutSite::MlpProjection(0));
                for which in 0..4 {
                    let c = upload(&old);
                    let epilogue = match which {
                        0 => Epilogue::Set(None),
                        1 => Epilogue::Set(Some(bias_view.all())),
                        2 => Epilogue::Add,
                        _ => Epilogue::Branch {
                            bias: Some(bias_view.all()),
                            residual: old_view.all(),
                            mask: Mask::new(dropout),
                        },
                    };
                    let expected = |(i, &sum): (usize, &f64)| {
                        let (sum, bias, old) = (0.5 * sum, f64::from(bias[i % n]), f64::from(old[i]));
                        match which {
                            0 => sum,
                            1 => sum + bias,
                            2 => old + sum,
                            _ => old + (sum + bias) * f64::from(dropout.unwrap().factor(i as u32)),
                        }
                    };
                    let expected: Vec<f64> = plain.iter().enumerate().map(expected).collect();
                    let a = Matrix { view: a.all(), first: 5, stride: sa };
                    let b = Matrix { view: b.all(), first: 7, stride: sb };
                    let to = Matrix::new(c.all(), n);
                    let mut recorder = Recorder::new(context);
                    product_in(&mut recorder, tile, form, [m, n, k], 0.5, a, b, to, epilogue);
                    drop(recorder);
                    let what = format!("{form:?} {tile:?} {m} {n} {k} epilogue {which}");
                    close(&what, &context.read(c.all()).unwrap(), &expected, 2e-6);
                }
            }
        }
    }
}
