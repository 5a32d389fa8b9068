//! Results of the loss.

/// Results to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The losses alone.
    Losses,
    /// Also the gradient of the hidden states. The embeddings are frozen.
    Dhidden,
    /// Also the gradient of the embeddings.
    All,
}

impl Wanted {
    /// Returns the results for a pass with or without gradients, through a model whose embeddings are frozen or not.
    pub fn of(backward: bool, frozen: bool) -> Self {
        match (backward, frozen) {
            (false, _) => Self::Losses,
            (true, true) => Self::Dhidden,
            (true, false) => Self::All,
        }
    }
}

/// Gradient outputs of the loss.
pub struct Gradients<'a> {
    /// Factor of all gradients.
    pub weight: f32,
    /// `[tokens, width]`: overwritten.
    pub dhidden: &'a mut [f32],
    /// `[vocab_size, width]`: accumulated. `None` if the embeddings are frozen.
    pub dwte: Option<&'a mut [f32]>,
}
