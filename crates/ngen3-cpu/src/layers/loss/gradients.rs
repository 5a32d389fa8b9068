//! Destinations of the gradients of the loss.

/// Destinations of the gradients.
pub struct Gradients<'a> {
    /// Factor of all of them.
    pub weight: f32,
    /// `[tokens, width]`: set.
    pub dhidden: &'a mut [f32],
    /// `[vocab_size, width]`: added to; `None` where the embeddings do not learn, and their product is not made.
    pub dwte: Option<&'a mut [f32]>,
}
