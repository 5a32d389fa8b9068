//! Gradients that a backward pass adds to, and gives away from their end on as they become final.

use std::sync::mpsc::Sender;

/// Most parts of the gradients that are given away before the end: each costs a message to every rank.
const PARTS: usize = 8;

/// Part of the gradients that is final, with the index of its first value.
pub type FinalPart<'g> = (usize, &'g mut [f32]);

/// The gradients of all trainable parameters, less those that were given away.
pub struct Grads<'g> {
    /// From the first parameter on.
    pub values: &'g mut [f32],
    ready: Option<Sender<FinalPart<'g>>>,
    /// Number of values that a part has at least, but for the last.
    least: usize,
}

impl<'g> Grads<'g> {
    /// Gradients, `[total]`, whose final parts are sent to `ready`, if any.
    pub fn new(values: &'g mut [f32], ready: Option<Sender<FinalPart<'g>>>) -> Self {
        let least = values.len().div_ceil(PARTS);
        Self { values, ready, least }
    }

    /// Gives away the gradients of the parameters from `start` on, to which nothing is added any more, if they are wanted and enough, or
    /// the `last` to be given away.
    pub fn finish_from(&mut self, start: usize, last: bool) {
        if let Some(ready) = &self.ready
            && (last || self.values.len() - start >= self.least)
        {
            let (rest, part) = std::mem::take(&mut self.values).split_at_mut(start);
            self.values = rest;
            // A receiver that is gone wants no more of them.
            let _ = ready.send((start, part));
        }
    }
}
