//! Gradients that a backward pass adds to, and gives away from their end on as they become final.

use std::sync::mpsc::Sender;

/// Part of the gradients that is final, with the index of its first value.
pub type FinalPart<'g> = (usize, &'g mut [f32]);

/// The gradients of all trainable parameters, less those that were given away.
pub struct Grads<'g> {
    /// From the first parameter on.
    pub values: &'g mut [f32],
    ready: Option<Sender<FinalPart<'g>>>,
}

impl<'g> Grads<'g> {
    /// Gradients, `[total]`, whose final parts are sent to `ready`, if any.
    pub fn new(values: &'g mut [f32], ready: Option<Sender<FinalPart<'g>>>) -> Self {
        Self { values, ready }
    }

    /// Gives away the gradients of the parameters from `start` on, if they are wanted: nothing is added to them any more.
    pub fn finish_from(&mut self, start: usize) {
        if let Some(ready) = &self.ready {
            let (rest, part) = std::mem::take(&mut self.values).split_at_mut(start);
            self.values = rest;
            // A receiver that is gone wants no more of them.
            let _ = ready.send((start, part));
        }
    }
}
