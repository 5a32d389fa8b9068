//! Operands of attention's products: rows in place, or packed as the kernels read them.

use std::ops::Range;

use bytemuck::cast_slice_mut;

use crate::gemm::tiles::kernel::{self, NR};
use crate::gemm::tiles::shape::{BLOCK, ROWS, Rows};
use crate::gemm::tiles::{amx, cells, pack, packed_len, panels_a, strided};
use crate::gemm::{Accumulate, Mat, MatMut, Precision};
use ngen3_simd::Path;

/// Calls `$work` for the form of operands that a pass of this precision takes: `in_form!(precision, Form => work::<Form>(…))`.
macro_rules! in_form {
    ($precision:expr, $form:ident => $work:expr) => {
        match $crate::layers::attention::operands::Forms::of($precision) {
            $crate::layers::attention::operands::Forms::F32 => {
                type $form = $crate::layers::attention::operands::Cells<1>;
                $work
            }
            $crate::layers::attention::operands::Forms::Bf16 => {
                type $form = $crate::layers::attention::operands::Cells<2>;
                $work
            }
            $crate::layers::attention::operands::Forms::Blocks => {
                type $form = $crate::layers::attention::operands::Blocks;
                $work
            }
        }
    };
}
pub(super) use in_form;

/// Forms of operands, one of which a pass takes.
pub enum Forms {
    /// [`Cells`] of one f32.
    F32,
    /// [`Cells`] of two bf16.
    Bf16,
    /// [`Blocks`] of bf16.
    Blocks,
}

/// Returns true if attention's products in this precision round their operands to bf16.
pub fn rounds(precision: Precision) -> bool {
    !matches!(Forms::of(precision), Forms::F32)
}

impl Forms {
    /// Returns the form for products in this precision on this processor. On Arm only large products have kernels in bf16.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 if amx::available() => Self::Blocks,
            Precision::Bf16 if ngen3_simd::path() == Path::Neon => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// Form of operands, and their products. `to` is memory for a packed copy, as long as `shape.rs` says.
pub trait Form {
    /// Left operand, `[rows, k]`.
    type Left<'a>: LeftOperand;
    /// Right operand, `[k, columns]`.
    type Right<'a>: RightOperand;
    /// Rows of a left operand that are computed together.
    const ROWS: usize;

    /// Rows as a left operand, for products that sum over their width.
    fn left<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Self::Left<'a>;

    /// As [`Form::left`], for rows already in cache: possibly the rows themselves.
    fn left_or_same<'a>(rows: Mat<'a>, to: &'a mut [f32]) -> Self::Left<'a>;

    /// Columns of rows already in cache as the rows of a left operand, for products that sum over the rows.
    fn turned_or_same<'a>(rows: Mat<'a>, to: &'a mut [f32]) -> Self::Left<'a>;

    /// Rows as a right operand, for products that sum over the rows.
    fn right<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Self::Right<'a>;

    /// Computes the first columns of `left·right`, as many as `c` has; sets `c` or adds to it.
    fn product(c: MatMut<'_>, accumulate: Accumulate, left: Self::Left<'_>, right: Self::Right<'_>);

    /// Rows as the columns of a right operand, for products that sum over their width; zeros past the end, up to a multiple of [`NR`].
    fn right_turned<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Self::Right<'a>;
}

/// Left operand, of which some rows and a stretch of k can be taken.
pub trait LeftOperand: Copy {
    /// Takes rows from a multiple of [`Form::ROWS`] on, and a stretch that begins at an even index. Elements past its ends may take part
    /// in a product where one operand has zeros there.
    fn cut(self, rows: Range<usize>, k: Range<usize>) -> Self;
}

/// Right operand, of which a stretch of k can be taken.
pub trait RightOperand: Copy {
    /// Takes the stretch that the left operand has.
    fn cut(self, k: Range<usize>) -> Self;
}

/// Rows of cells of `P` elements, for [`strided`]: pairs of bf16, or single f32.
pub struct Cells<const P: usize>;

impl<const P: usize> Cells<P> {
    /// `[rows, width/P]`
    fn along<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Mat<'a, u32> {
        let depth = cells::<P>(rows.cols());
        let to = cast_slice_mut(&mut to[..rows.n_rows() * depth]);
        pack::along::<P>(rows, to);
        Mat::new(to, rows.n_rows(), depth)
    }

    /// `[rows/P, width]`
    fn down<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Mat<'a, u32> {
        let depth = cells::<P>(rows.n_rows());
        let to = cast_slice_mut(&mut to[..depth * rows.cols()]);
        pack::down::<P>(rows, to);
        Mat::new(to, depth, rows.cols())
    }
}

impl<const P: usize> Form for Cells<P> {
    type Left<'a> = CellRows<'a, P>;
    type Right<'a> = RowsOrPanels<'a, P>;
    const ROWS: usize = strided::ROWS;

    fn left<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> CellRows<'a, P> {
        CellRows(Self::along(rows, to))
    }

    fn left_or_same<'a>(rows: Mat<'a>, to: &'a mut [f32]) -> CellRows<'a, P> {
        CellRows(if P == 1 { rows.cells() } else { Self::along(rows, to) })
    }

    fn turned_or_same<'a>(rows: Mat<'a>, to: &'a mut [f32]) -> CellRows<'a, P> {
        CellRows(if P == 1 { rows.cells().t() } else { Self::down(rows, to).t() })
    }

    fn right<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> RowsOrPanels<'a, P> {
        RowsOrPanels::Rows(Self::down(rows, to))
    }

    fn right_turned<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> RowsOrPanels<'a, P> {
        RowsOrPanels::Panels(panels::<P>(rows, to))
    }

    fn product(mut c: MatMut<'_>, accumulate: Accumulate, left: CellRows<'_, P>, right: RowsOrPanels<'_, P>) {
        let CellRows(left) = left;
        match right {
            RowsOrPanels::Rows(right) => strided::matmul::<P>(c, accumulate, left, right),
            RowsOrPanels::Panels(panels) => {
                let (columns, depth) = (c.n_cols(), left.cols());
                for (panel, column) in panels.chunks_exact(NR * depth).zip((0..columns).step_by(NR)) {
                    let c = c.columns(column..(column + NR).min(columns));
                    let panel = Mat::new(panel, depth, NR).columns(0..c.n_cols());
                    strided::matmul::<P>(c, accumulate, left, panel);
                }
            }
        }
    }
}

/// Left operand in rows of cells, `[rows, k/P]`.
#[derive(Clone, Copy)]
pub struct CellRows<'a, const P: usize>(Mat<'a, u32>);

impl<const P: usize> LeftOperand for CellRows<'_, P> {
    fn cut(self, rows: Range<usize>, k: Range<usize>) -> Self {
        Self(self.0.rows(rows).columns(k.start / P..k.end.div_ceil(P)))
    }
}

/// Right operand in cells.
#[derive(Clone, Copy)]
pub enum RowsOrPanels<'a, const P: usize> {
    /// `[k/P, columns]`
    Rows(Mat<'a, u32>),
    /// Panels of [`NR`] columns, `[k/P, NR]` each, always whole.
    Panels(&'a [u32]),
}

impl<const P: usize> RightOperand for RowsOrPanels<'_, P> {
    fn cut(self, k: Range<usize>) -> Self {
        match self {
            Self::Rows(rows) => Self::Rows(rows.rows(k.start / P..k.end.div_ceil(P))),
            Self::Panels(_) => self,
        }
    }
}

/// Blocks and panels of bf16, for AMX.
pub struct Blocks;

/// Panels of rows or columns, of each a stretch of cells along k.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    panels: &'a [u32],
    /// Cells along k of a panel.
    depth: usize,
    /// Those of the stretch.
    first: usize,
    end: usize,
}

impl<'a> Panels<'a> {
    fn whole(panels: &'a [u32], depth: usize) -> Self {
        Self { panels, depth, first: 0, end: depth }
    }

    /// The stretch of all blocks with an element of `k`.
    fn stretch(self, k: Range<usize>) -> Self {
        let blocks = cells::<2>(k.end).next_multiple_of(BLOCK);
        Self { first: k.start / 2 / BLOCK * BLOCK, end: blocks.min(self.depth), ..self }
    }

    /// The stretch of the panel with this number, whose cells along k are `height` values each.
    fn panel(self, number: usize, height: usize) -> &'a [u32] {
        &self.panels[number * self.depth * height..][self.first * height..self.end * height]
    }
}

impl LeftOperand for Panels<'_> {
    fn cut(self, rows: Range<usize>, k: Range<usize>) -> Self {
        assert!(rows.start.is_multiple_of(ROWS), "rows from {} on", rows.start);
        Self { panels: &self.panels[rows.start * self.depth..], ..self }.stretch(k)
    }
}

impl RightOperand for Panels<'_> {
    fn cut(self, k: Range<usize>) -> Self {
        self.stretch(k)
    }
}

impl Blocks {
    fn blocks<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Panels<'a> {
        let to = cast_slice_mut(&mut to[..panels_a::packed_len::<2>(rows.n_rows(), rows.cols())]);
        panels_a::panels::<2>(rows, 0, to);
        Panels::whole(to, panels_a::depth::<2>(rows.cols()))
    }
}

impl Form for Blocks {
    type Left<'a> = Panels<'a>;
    type Right<'a> = Panels<'a>;
    const ROWS: usize = ROWS;

    fn left<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Panels<'a> {
        Self::blocks(rows, to)
    }

    fn left_or_same<'a>(rows: Mat<'a>, to: &'a mut [f32]) -> Panels<'a> {
        Self::blocks(rows, to)
    }

    fn turned_or_same<'a>(rows: Mat<'a>, to: &'a mut [f32]) -> Panels<'a> {
        Self::blocks(rows.t(), to)
    }

    fn right<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Panels<'a> {
        Panels::whole(panels::<2>(rows.t(), to), cells::<2>(rows.n_rows()))
    }

    fn right_turned<'a>(rows: Mat<'_>, to: &'a mut [f32]) -> Panels<'a> {
        Panels::whole(panels::<2>(rows, to), cells::<2>(rows.cols()))
    }

    fn product(mut c: MatMut<'_>, accumulate: Accumulate, left: Panels<'_>, right: Panels<'_>) {
        let (rows, columns) = (c.n_rows(), c.n_cols());
        for row in (0..rows).step_by(ROWS) {
            let mut c = c.rows(row..(row + ROWS).min(rows));
            let a = left.panel(row / ROWS, ROWS);
            for column in (0..columns).step_by(NR) {
                let mut c = c.columns(column..(column + NR).min(columns));
                kernel::tile::<2>(a, Rows::Blocks, right.panel(column / NR, NR), &mut c, accumulate);
            }
        }
    }
}

/// Packs rows into panels of [`NR`] rows, `[width/P, NR]` each; rows past the end are zeros.
fn panels<'a, const P: usize>(rows: Mat<'_>, to: &'a mut [f32]) -> &'a [u32] {
    let to = cast_slice_mut(&mut to[..packed_len::<P, NR>(rows.n_rows(), rows.cols())]);
    pack::panels::<P, NR>(rows, 0, to);
    to
}

/// Puts rows of a prefix before `own`. Copies only if there are any.
pub fn joined_rows<'a, 'r>(
    prefix: impl ExactSizeIterator<Item = &'r [f32]>,
    own: Mat<'a>,
    to: &'a mut [f32],
) -> Mat<'a> {
    if prefix.len() == 0 {
        return own;
    }
    let (n, width) = (prefix.len() + own.n_rows(), own.cols());
    let (before, after) = to[..n * width].split_at_mut(prefix.len() * width);
    before.chunks_exact_mut(width).zip(prefix).for_each(|(to, row)| to.copy_from_slice(row));
    after.chunks_exact_mut(width).enumerate().for_each(|(i, to)| to.copy_from_slice(own.row(i)));
    Mat::new(&to[..n * width], n, width)
}
