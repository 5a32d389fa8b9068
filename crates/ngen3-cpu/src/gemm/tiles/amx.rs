//! Micro-kernels on AMX: a tile of C, or two below one another, from panels of A in blocks and one panel of B, in bf16.
//!
//! A tile register holds up to 16 rows of 64 bytes: of A one block, [`ROWS`] rows of [`BLOCK`] cells; of B [`BLOCK`] cells of 16
//! columns, as they lie in a panel; of C [`ROWS`] rows of 16 sums. One instruction multiplies two of them and adds the result to the
//! third, in 16 cycles whatever the number of rows. Two tiles of C at a time share the loads of B: one load for each product instead
//! of one and a half. The tests have a plain twin with the same bits.

#[cfg(test)]
use super::kernel::{high, low};
#[cfg(any(target_arch = "x86_64", test))]
use super::shape::{BLOCK, BLOCK_CELLS, NR};
#[cfg(any(target_arch = "x86_64", test))]
use crate::gemm::operation::Accumulate;
#[cfg(any(target_arch = "x86_64", test))]
use crate::gemm::view::MatMut;

pub use super::shape::ROWS;

/// Returns true if the AMX kernels run: the processor has the instructions, and `NGEN3_SIMD` forces no narrower path.
pub fn available() -> bool {
    ngen3_simd::path() == ngen3_simd::Path::Amx
}

/// Computes `c = a·b` or `c += a·b` for `c` of at most [`ROWS`] x [`NR`], with sums in f32. `a`: blocks of `[ROWS, BLOCK]`
/// cells, as many as reach the end of `b`, `[depth, NR]`; what they have past it is finite.
///
/// # Panics
/// If AMX is not available, `a` has too few blocks, or `c` is larger than a tile.
#[cfg(target_arch = "x86_64")]
pub fn tile(a: &[u32], b: &[u32], c: &mut MatMut<'_>, accumulate: Accumulate) {
    assert!(available(), "AMX is not available");
    assert!(c.rows <= ROWS && c.cols <= NR, "a tile of {} x {}", c.rows, c.cols);
    assert!(b.len().div_ceil(NR * BLOCK) * BLOCK_CELLS <= a.len(), "expected blocks as deep as the panel of B");
    if c.rows == ROWS && c.cols == NR {
        // SAFETY: AMX is available, and the lengths were checked above; `c` has ROWS rows of NR elements.
        return unsafe { x86::tile(a, b, c.data, c.row_stride, accumulate) };
    }
    let cols = c.cols;
    let mut whole = Sums([[0.0; NR]; ROWS]);
    if accumulate == Accumulate::Add {
        (0..c.rows).for_each(|i| whole.0[i][..cols].copy_from_slice(c.row_mut(i)));
    }
    // SAFETY: as above.
    unsafe { x86::tile(a, b, whole.0.as_flattened_mut().as_mut_ptr(), NR, accumulate) };
    (0..c.rows).for_each(|i| c.row_mut(i).copy_from_slice(&whole.0[i][..cols]));
}

/// Computes [`tile`] for two whole tiles below one another, `c` of 2·[`ROWS`] x [`NR`]: their panels start at `a[0]` and
/// `a[below]`. The bits are those of two calls of [`tile`].
///
/// # Panics
/// As [`tile`].
#[cfg(target_arch = "x86_64")]
pub fn two_tiles(a: &[u32], below: usize, b: &[u32], c: &mut MatMut<'_>, accumulate: Accumulate) {
    assert!(available(), "AMX is not available");
    assert!(c.rows == 2 * ROWS && c.cols == NR, "two tiles of {} x {}", c.rows, c.cols);
    let depth = b.len().div_ceil(NR * BLOCK) * BLOCK_CELLS;
    assert!(depth <= a[..below].len() && depth <= a[below..].len(), "expected blocks as deep as the panel of B");
    // SAFETY: AMX is available, and the lengths were checked above; `c` has 2·ROWS rows of NR elements.
    unsafe { x86::two_tiles(a, below, b, c.data, c.row_stride, accumulate) };
}

/// Sums of a whole tile, on cache lines.
#[cfg(target_arch = "x86_64")]
#[repr(align(64))]
pub struct Sums(pub [[f32; NR]; ROWS]);

/// [`tile`] in plain Rust, with the same bits for operands that are normal numbers: within a block the products of the cells' first
/// elements are added up, and those of their second, then both sums. (Intel, "Architecture Instruction Set Extensions Programming
/// Reference", TDPBF16PS; subnormal numbers count as 0 there.)
#[cfg(test)]
pub fn tile_plain(a: &[u32], b: &[u32], c: &mut MatMut<'_>, accumulate: Accumulate) {
    for i in 0..c.rows {
        for j in 0..c.cols {
            let mut sum = if accumulate == Accumulate::Add { c.row_mut(i)[j] } else { 0.0 };
            for (a, b) in a.chunks(BLOCK_CELLS).zip(b.chunks(NR * BLOCK)) {
                let mut sums = [0.0f32; 2];
                for (&a, b) in a[i * BLOCK..].iter().zip(b.chunks_exact(NR)) {
                    let [a, b] = [a, b[j]].map(|cell| [low(cell), high(cell)]);
                    sums = [0, 1].map(|half| a[half].mul_add(b[half], sums[half]));
                }
                sum += sums[0] + sums[1];
            }
            c.row_mut(i)[j] = sum;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    use super::{Accumulate, BLOCK, BLOCK_CELLS, NR, ROWS};
    use ngen3_simd::amx::{ROW, Shapes, configure};

    /// Tiles 0 to 3 hold sums, 4 and 5 blocks of A, 6 and 7 cells of B.
    const SHAPES: Shapes = {
        let (rows, cells) = (ROWS as u8, BLOCK as u8);
        [rows, rows, rows, rows, rows, rows, cells, cells]
    };

    /// # Safety
    /// AMX is available; `a` has a block for every [`BLOCK`] rows of `b`, or fewer at its end, of NR cells each; ROWS rows of NR
    /// elements, `stride` apart, are readable and writable at `c`.
    pub unsafe fn tile(a: &[u32], b: &[u32], c: *mut f32, stride: usize, accumulate: Accumulate) {
        configure(SHAPES);
        let blocks = b.len() / (NR * BLOCK);
        let (whole, rest) = b.split_at(blocks * NR * BLOCK);
        // SAFETY: the caller promises the operands.
        unsafe {
            if rest.is_empty() {
                return multiply(a.as_ptr(), whole.as_ptr(), blocks, c, stride, accumulate);
            }
            let mut accumulate = accumulate;
            if blocks > 0 {
                multiply(a.as_ptr(), whole.as_ptr(), blocks, c, stride, accumulate);
                accumulate = Accumulate::Add;
            }
            // Zeros past the end, where nothing may be read.
            let mut last = [0; NR * BLOCK];
            last[..rest.len()].copy_from_slice(rest);
            multiply(a.as_ptr().add(blocks * BLOCK_CELLS), last.as_ptr(), 1, c, stride, accumulate);
        }
    }

    /// # Safety
    /// As [`tile`], for a panel of A at `a[below]` too and for 2·ROWS rows at `c`.
    pub unsafe fn two_tiles(a: &[u32], below: usize, b: &[u32], c: *mut f32, stride: usize, accumulate: Accumulate) {
        configure(SHAPES);
        let blocks = b.len() / (NR * BLOCK);
        // SAFETY: the caller promises the operands; the rest of B is less deep than a block.
        unsafe {
            multiply_two(a.as_ptr(), below, b.as_ptr(), blocks, c, stride, accumulate);
            let rest = &b[blocks * NR * BLOCK..];
            if !rest.is_empty() {
                let mut last = [0; NR * BLOCK];
                last[..rest.len()].copy_from_slice(rest);
                let a = a.as_ptr().add(blocks * BLOCK_CELLS);
                multiply_two(a, below, last.as_ptr(), 1, c, stride, Accumulate::Add);
            }
        }
    }

    /// # Safety
    /// The tiles have their shapes; `blocks` blocks are readable at `a`, at `a + below` and at `b`, and two tiles, below one
    /// another, are readable and writable at `c`.
    unsafe fn multiply_two(
        a: *const u32,
        below: usize,
        b: *const u32,
        blocks: usize,
        c: *mut f32,
        stride: usize,
        accumulate: Accumulate,
    ) {
        // SAFETY: the caller promises the memory; no tile holds other values.
        unsafe {
            asm!(
                "test {add}, {add}",
                "jz 2f",
                "tileloadd tmm0, [{c} + {stride}*1]",
                "tileloadd tmm1, [{c} + {stride}*1 + 64]",
                "tileloadd tmm2, [{lower_c} + {stride}*1]",
                "tileloadd tmm3, [{lower_c} + {stride}*1 + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "test {blocks}, {blocks}",
                "jz 5f",
                "4:",
                "tileloadd tmm6, [{b} + {across_b}*1]",
                "tileloadd tmm4, [{a} + {across_a}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower_a} + {across_a}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b} + {across_b}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, {block_a}",
                "add {lower_a}, {block_a}",
                "add {b}, {block_b}",
                "dec {blocks}",
                "jnz 4b",
                "5:",
                "tilestored [{c} + {stride}*1], tmm0",
                "tilestored [{c} + {stride}*1 + 64], tmm1",
                "tilestored [{lower_c} + {stride}*1], tmm2",
                "tilestored [{lower_c} + {stride}*1 + 64], tmm3",
                a = inout(reg) a => _,
                lower_a = inout(reg) a.add(below) => _,
                b = inout(reg) b => _,
                blocks = inout(reg) blocks => _,
                add = in(reg) usize::from(accumulate == Accumulate::Add),
                c = in(reg) c,
                lower_c = in(reg) c.wrapping_add(ROWS * stride),
                stride = in(reg) stride * size_of::<f32>(),
                across_a = in(reg) ROW,
                across_b = in(reg) 2 * ROW,
                block_a = const BLOCK_CELLS * size_of::<u32>(),
                block_b = const BLOCK * NR * size_of::<u32>(),
                out("tmm0") _,
                out("tmm1") _,
                out("tmm2") _,
                out("tmm3") _,
                out("tmm4") _,
                out("tmm5") _,
                out("tmm6") _,
                out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// # Safety
    /// The tiles have their shapes; `blocks` blocks are readable at `a` and at `b`, and a tile is readable and writable at `c`.
    unsafe fn multiply(
        a: *const u32,
        b: *const u32,
        blocks: usize,
        c: *mut f32,
        stride: usize,
        accumulate: Accumulate,
    ) {
        // SAFETY: the caller promises the memory; no tile holds other values.
        unsafe {
            asm!(
                "test {add}, {add}",
                "jz 2f",
                "tileloadd tmm0, [{c} + {stride}*1]",
                "tileloadd tmm1, [{c} + {stride}*1 + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "3:",
                "test {blocks}, {blocks}",
                "jz 5f",
                "4:",
                "tileloadd tmm4, [{a} + {across_a}*1]",
                "tileloadd tmm6, [{b} + {across_b}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {across_b}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, {block_a}",
                "add {b}, {block_b}",
                "dec {blocks}",
                "jnz 4b",
                "5:",
                "tilestored [{c} + {stride}*1], tmm0",
                "tilestored [{c} + {stride}*1 + 64], tmm1",
                a = inout(reg) a => _,
                b = inout(reg) b => _,
                blocks = inout(reg) blocks => _,
                add = in(reg) usize::from(accumulate == Accumulate::Add),
                c = in(reg) c,
                stride = in(reg) stride * size_of::<f32>(),
                across_a = in(reg) ROW,
                across_b = in(reg) 2 * ROW,
                block_a = const BLOCK_CELLS * size_of::<u32>(),
                block_b = const BLOCK * NR * size_of::<u32>(),
                out("tmm0") _,
                out("tmm1") _,
                out("tmm4") _,
                out("tmm6") _,
                out("tmm7") _,
                options(nostack)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;
    use crate::gemm::tiles::kernel::{self, MR, Rows};
    use crate::gemm::tiles::pack::pair;

    const SIZES: [(usize, usize, usize); 8] =
        [(16, 32, 16), (16, 32, 96), (1, 1, 1), (5, 17, 64), (16, 15, 3), (7, 16, 130), (11, 31, 31), (3, 4, 0)];

    /// Blocks of A and a panel of B of this depth.
    fn operands(depth: usize) -> (Vec<u32>, Vec<u32>) {
        let cells = |n: usize, seed| random(2 * n, seed).as_chunks::<2>().0.iter().map(|x| pair(x[0], x[1])).collect();
        (cells(depth.div_ceil(BLOCK) * BLOCK_CELLS, 1), cells(depth * NR, 2))
    }

    #[test]
    fn blocks_multiply_as_interleaved_rows_do() {
        for (m, n, depth) in SIZES {
            let (m, (a, b)) = (m.min(MR), operands(depth));
            let together: Vec<u32> = (0..depth * MR).map(|i| a[Rows::Blocks.at(i % MR, i / MR)]).collect();
            for accumulate in [Accumulate::Set, Accumulate::Add] {
                let (mut found, mut expected) = (random(m * n, 3), random(m * n, 3));
                tile_plain(&a, &b, &mut MatMut::new(&mut found, m, n), accumulate);
                let c = &mut MatMut::new(&mut expected, m, n);
                kernel::tile_plain::<2, MR>(&together, Rows::Together, &b, c, accumulate);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-5, "{m}x{n}x{depth}: expected {expected}, got {found}");
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_instructions_give_the_bits_of_the_plain_twin() {
        if !available() {
            return crate::base::testing::skip("product tiles on AMX against the plain version");
        }
        for (m, n, depth) in SIZES {
            let (a, b) = operands(depth);
            for accumulate in [Accumulate::Set, Accumulate::Add] {
                let stride = n + 3;
                let (mut found, mut expected) = (random(m * stride, 3), random(m * stride, 3));
                tile(&a, &b, &mut MatMut::strided(&mut found, m, n, stride), accumulate);
                tile_plain(&a, &b, &mut MatMut::strided(&mut expected, m, n, stride), accumulate);
                assert_eq!(found, expected, "{m} x {n} x {depth}, {accumulate:?}");
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn two_tiles_have_the_bits_of_one_and_one() {
        if !available() {
            return crate::base::testing::skip("two product tiles on AMX against one and one");
        }
        for depth in [0, 1, 16, 31, 96, 130] {
            let ((upper, b), stride) = (operands(depth), NR + 3);
            let lower: Vec<u32> = upper.iter().rev().copied().collect();
            let (a, below) = ([&upper[..], &[7; 5], &lower].concat(), upper.len() + 5);
            for accumulate in [Accumulate::Set, Accumulate::Add] {
                let [mut found, mut expected] = [3, 3].map(|seed| random(2 * ROWS * stride, seed));
                two_tiles(&a, below, &b, &mut MatMut::strided(&mut found, 2 * ROWS, NR, stride), accumulate);
                let mut c = MatMut::strided(&mut expected, 2 * ROWS, NR, stride);
                tile_plain(&upper, &b, &mut c.rows(0..ROWS), accumulate);
                tile_plain(&lower, &b, &mut c.rows(ROWS..2 * ROWS), accumulate);
                assert_eq!(found, expected, "depth {depth}, {accumulate:?}");
            }
        }
    }
}
