//! Choices that every product takes.

/// Number format that the operands of a product are rounded to. Sums are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Not at all.
    F32,
    /// bfloat16: f32's range with 8 bits of precision.
    Bf16,
}

/// Treatment of what the destination of a product already holds: BLAS's beta, 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// It is replaced: `C = A·B`.
    Set,
    /// It is added to: `C += A·B`.
    Add,
}

/// Threads that work on one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread, for products that are themselves run in parallel.
    One,
    /// Every thread of the current rayon pool.
    All,
}
