//! Gradient outputs of the loss.

/// Gradient outputs of the loss.
pub struct Gradients<'a> {
    /// Factor of all gradients.
    pub weight: f32,
    /// `[tokens, width]`: overwritten.
    pub dhidden: &'a mut [f32],
    /// `[vocab_size, width]`: accumulated. `None` if the embeddings are frozen, which skips the product.
    pub dwte: Option<&'a mut [f32]>,
}
