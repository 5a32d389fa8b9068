//! Gradients that a backward pass adds to, and gives away from their end on as they become final.
//!
//! A batch after the step's first has gradients of its own, which are added to the step's once they are final.

use std::sync::mpsc::Sender;

use rayon::prelude::*;

use crate::optimizer::BatchGrads;
use ngen3_simd::simd;

/// Most parts of the gradients that are given away before the end: each costs a message to every rank.
const PARTS: usize = 8;

/// Elements added by one task.
const CHUNK: usize = 1 << 14;

/// Part of the gradients that is final, with the index of its first value.
pub type FinalPart<'g> = (usize, &'g mut [f32]);

/// The gradients of all trainable parameters, less those that are final.
pub struct Grads<'g> {
    /// Those of this batch, from the first parameter on.
    pub values: &'g mut [f32],
    /// Those of the step so far, if it had a batch before; as many.
    step: Option<&'g mut [f32]>,
    ready: Option<Sender<FinalPart<'g>>>,
    /// Number of values that a part has at least, but for the last.
    least: usize,
}

impl<'g> Grads<'g> {
    /// Gradients of a batch, whose final parts are sent to `ready`, if any.
    pub fn new(BatchGrads { own, step }: BatchGrads<'g>, ready: Option<Sender<FinalPart<'g>>>) -> Self {
        let least = own.len().div_ceil(PARTS);
        Self { values: own, step, ready, least }
    }

    /// Gives away the gradients of the parameters from `start` on, to which nothing is added any more, if they are wanted and enough, or
    /// the `last` to be given away.
    pub fn finish_from(&mut self, start: usize, last: bool) {
        if self.ready.is_some() && (last || self.values.len() - start >= self.least) {
            let part = self.cut(start);
            if let Some(ready) = &self.ready {
                // A receiver that is gone wants no more of them.
                let _ = ready.send((start, part));
            }
        }
    }

    /// Adds those that are left to the step's: they are final.
    pub fn finish(mut self) {
        self.cut(0);
    }

    /// Returns the step's gradients of the parameters from `start` on, with those of this batch, which are zeroed for the next.
    fn cut(&mut self, start: usize) -> &'g mut [f32] {
        let cut = |values: &mut &'g mut [f32]| {
            let (rest, part) = std::mem::take(values).split_at_mut(start);
            *values = rest;
            part
        };
        let own = cut(&mut self.values);
        let Some(step) = &mut self.step else { return own };
        let step = cut(step);
        step.par_chunks_mut(CHUNK).zip(own.par_chunks_mut(CHUNK)).for_each(|(step, own)| {
            simd(
                #[inline(always)]
                || {
                    for (step, own) in step.iter_mut().zip(own) {
                        *step += *own;
                        *own = 0.0;
                    }
                },
            );
        });
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_batch_is_added_once_whether_it_is_given_away_or_left() {
        let (mut own, mut step): (Vec<f32>, Vec<f32>) = ((0..100).map(|i| i as f32).collect(), vec![1000.0; 100]);
        let (sender, parts) = std::sync::mpsc::channel();
        let mut grads = Grads::new(BatchGrads { own: &mut own, step: Some(&mut step) }, Some(sender));
        grads.finish_from(95, false);
        assert!(parts.try_recv().is_err(), "five of a hundred are too few");
        grads.finish_from(60, false);
        let (start, part) = parts.try_recv().unwrap();
        assert_eq!((start, part.len(), part[0], part[39]), (60, 40, 1060.0, 1099.0));
        grads.values[3] += 0.5;
        grads.finish();
        drop(parts);
        assert_eq!((step[0], step[3], step[59], step[60]), (1000.0, 1003.5, 1059.0, 1060.0));
        assert!(own.iter().all(|&own| own == 0.0), "zeroed for the next batch");
    }
}
