//! Options of a matrix product.

/// Number format of a product's operands. Sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// float32: no rounding.
    F32,
    /// bfloat16: f32's range with 8 bits of precision.
    Bf16,
}

/// Treatment of the destination's previous values: beta of BLAS, 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// Overwrite: `C = A·B`.
    Set,
    /// Accumulate: `C += A·B`.
    Add,
}

/// Threads that compute one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread: for products that already run in parallel with others.
    One,
    /// Every thread of the current rayon pool.
    All,
}
