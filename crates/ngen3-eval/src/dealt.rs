//! [`Dealt`]: a model that each of several ranks holds, and that computes a part of every batch on each.

use ngen3_cluster::{World, sums};
use ngen3_engine::{Batch, ComputeInfo, Error, Model};
use ngen3_model::Config;

/// A model on all ranks. Each computes the losses of a part of every batch and receives those of all, so that whatever is computed from
/// losses is the same everywhere. All ranks evaluate the same batches.
pub struct Dealt<'a> {
    model: &'a mut dyn Model,
    world: &'a dyn World,
}

impl<'a> Dealt<'a> {
    /// Joins this rank's model with those of all ranks.
    pub fn new(model: &'a mut dyn Model, world: &'a dyn World) -> Self {
        Self { model, world }
    }
}

impl Model for Dealt<'_> {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn info(&self) -> ComputeInfo {
        self.model.info()
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        if self.world.size() == 1 {
            return self.model.losses(batch);
        }
        batch.check(self.model.config())?;
        let own = part(batch, self.world);
        let losses = if own.inputs.is_empty() { Vec::new() } else { self.model.losses(&own)? };
        let bytes: Vec<u8> = losses.iter().flat_map(|loss| loss.to_le_bytes()).collect();
        let all = self.world.gather(&bytes).concat();
        Ok(all.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

/// Returns this rank's part of a batch: consecutive sequences, together with those that they continue.
fn part(batch: &Batch, world: &dyn World) -> Batch {
    let (mut end, mut cuts) = (0, Vec::new());
    for (index, sequence) in batch.sequences.iter().enumerate() {
        end += sequence.len;
        if batch.sequences.get(index + 1).is_none_or(|next| !next.continues) {
            cuts.push((end, end as f64));
        }
    }
    let own = sums::shares(end, world.size(), cuts.iter().copied()).swap_remove(world.rank());
    let mut end = 0;
    let sequences = batch.sequences.iter().filter(|sequence| {
        end += sequence.len;
        own.contains(&(end - 1))
    });
    let sequences = sequences.copied().collect();
    Batch { inputs: batch.inputs[own.clone()].to_vec(), targets: batch.targets[own].to_vec(), sequences }
}

#[cfg(test)]
mod tests {
    use ngen3_cluster::Threads;

    use super::*;
    use crate::testing::CountingModel;
    use crate::{Request, Scorer};

    #[test]
    fn any_number_of_ranks_scores_as_one() {
        let requests: Vec<_> = (0..40u32)
            .map(|i| Request { tokens: (0..5 + i % 7).map(|at| (at * (i / 3)) % 11).collect(), context: 2 })
            .collect();
        let score = |model: &mut dyn Model| Scorer::new(model).score(&requests, &mut |_| true).unwrap();
        let mut alone = CountingModel::new(16);
        let expected = score(&mut alone);
        for size in [1, 2, 3, 7, 50] {
            let results = Threads::run(size, |world| {
                let mut model = CountingModel::new(16);
                (score(&mut Dealt::new(&mut model, &*world)), model.tokens)
            });
            assert!(results.iter().all(|(scores, _)| *scores == expected), "{size} ranks");
            let tokens: Vec<_> = results.iter().map(|(_, tokens)| *tokens).collect();
            assert_eq!(tokens.iter().sum::<usize>(), alone.tokens, "nothing is computed twice: {tokens:?}");
            if size < 4 {
                let fair = alone.tokens / size;
                assert!(tokens.iter().all(|&tokens| tokens.abs_diff(fair) < fair / 2), "{tokens:?}");
            }
        }
    }
}
