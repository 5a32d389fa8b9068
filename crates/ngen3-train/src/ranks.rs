//! Several ranks that train one model: which micro-batches, which share of the update, and which parts of an evaluation are this one's.
//!
//! The micro-batches of a step are dealt out in turn, so that all ranks together train on those that one process would with
//! gradient accumulation. Their gradients are added up; each rank updates its share of the parameters, of which it alone keeps the
//! moments (stage 1 of ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054), and all ranks receive it.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use ngen3_cluster::wire::Wire;
use ngen3_cluster::{World, sums};
use ngen3_engine::{AdamW, Muon, Slot, Trainer};
use ngen3_model::Param;

use crate::{Error, ReduceDtype, TrainSettings};

/// Elements between two places where a share may end.
const CUT: usize = 1 << 12;

/// Elements of the smaller side of a matrix whose update by Muon takes as long as AdamW's of as many parameters: about n/16 times
/// as long, measured on the 120M.
const MUON_SIDE: f64 = 16.0;

/// Divides the parameters in `list` into a share for each rank. With `muon`, matrices that it updates are not cut.
pub fn shares<'a>(world: &dyn World, list: impl Iterator<Item = &'a Param>, muon: bool) -> Vec<Range<usize>> {
    let (mut cuts, mut cost) = (Vec::new(), 0.0);
    for param in list {
        let matrices = if muon { param.num_layer_matrices() } else { 0 };
        let (step, each) = match matrices {
            0 => (CUT, 1.0),
            _ => {
                let side = (param.shape[0] / matrices).min(param.shape[1]);
                (param.len() / matrices, 1.0 + side as f64 / MUON_SIDE)
            }
        };
        for start in (0..param.len()).step_by(step) {
            let end = (start + step).min(param.len());
            cost += each * (end - start) as f64;
            cuts.push((param.offset + end, cost));
        }
    }
    let total = cuts.last().map_or(0, |&(end, _)| end);
    sums::shares(total, world.size(), cuts.iter().copied())
}

/// Returns the way of what the ranks add up: gradients, or differences of parameters.
pub fn wire(world: &dyn World, shares: &[Range<usize>], settings: &TrainSettings) -> Wire {
    if world.size() == 1 {
        // Nothing travels, so nothing is rounded.
        return Wire::default();
    }
    Wire::new(settings.reduce_dtype.into(), shares.last().map_or(0, |last| last.end))
}

/// Returns the bytes that a rank needs beyond those of one process with a batch a step, or saves: its own share of the moments, what
/// rounding left out, what arrives from the others, gradients of a batch after its first, and the parameters and the momentum between
/// rounds.
pub fn extra_bytes(world: &dyn World, shares: &[Range<usize>], settings: &TrainSettings) -> i64 {
    let (total, own) = (shares.last().map_or(0, |last| last.end), shares[world.rank()].len());
    let (total, own) = (4 * total as i64, 4 * own as i64);
    let size = world.size();
    let when = |needed: bool, bytes: i64| if needed { bytes } else { 0 };
    let kept = if settings.sync_every > 1 { total + own } else { 2 * (own - total) };
    let received = ((size - 1) as i64).saturating_mul(4 * sums::PIECE as i64).min(total);
    let rounded = when(size > 1 && settings.reduce_dtype != ReduceDtype::F32, total);
    kept + received + rounded + when(settings.gradient_accumulation > size as u64, total)
}

/// Returns the numbers below `count` that are this rank's.
pub fn dealt(world: &dyn World, count: u64) -> impl Iterator<Item = u64> {
    (world.rank() as u64..count).step_by(world.size())
}

impl TrainSettings {
    /// Divides a step that was asked for in fewer micro-batches than there are ranks into one for each rank, with a note.
    ///
    /// # Errors
    /// [`Error::Usage`] if the step's sequences cannot be divided.
    pub(crate) fn dealt_to(mut self, world: &dyn World, notes: &mut Vec<String>) -> Result<Self, Error> {
        let size = world.size() as u64;
        let sequences = self.batch_size as u64 * self.gradient_accumulation;
        if self.gradient_accumulation < size && sequences.is_multiple_of(size) {
            (self.batch_size, self.gradient_accumulation) = ((sequences / size) as usize, size);
            notes.push(format!(
                "the {sequences} sequences of a step are divided among the ranks: --batch_size {} --gradient_accumulation {size}",
                self.batch_size
            ));
        }
        self.check_ranks(world)?;
        Ok(self)
    }

    /// Checks that each rank has a micro-batch of each step.
    ///
    /// # Errors
    /// [`Error::Usage`] if there are too few, with what to ask for.
    pub(crate) fn check_ranks(&self, world: &dyn World) -> Result<(), Error> {
        let (size, has) = (world.size() as u64, self.gradient_accumulation);
        if has >= size {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "gradient_accumulation: expected at least {size}, a batch of each step for each rank, got {has}; for nearly as many \
             sequences in a step, add --gradient_accumulation {size} --batch_size {}",
            (self.batch_size as u64 * has).div_ceil(size)
        )))
    }
}

/// Returns true if `ranks` exchange the gradients of `total` parameters part by part, as they become final: unless they are so many
/// that the messages are small, and each part takes only their latency once more.
pub fn overlaps(total: usize, ranks: usize) -> bool {
    ranks > 1 && (ranks <= 64 || total / ranks >= 1 << 19)
}

/// Adds up the gradients of all ranks, of which each receives the sum of its share: those that the last backward pass of a step
/// finishes while it computes the others, the rest after it.
pub struct Reduction<'a> {
    world: &'a dyn World,
    shares: &'a [Range<usize>],
    wire: RefCell<&'a mut Wire>,
    /// Start of the gradients that are added up.
    from: Cell<usize>,
}

impl<'a> Reduction<'a> {
    /// Prepares the sums of a step, which travel on `wire`.
    pub fn new(world: &'a dyn World, shares: &'a [Range<usize>], wire: &'a mut Wire) -> Self {
        let from = Cell::new(shares.last().map_or(0, |last| last.end));
        Self { world, shares, wire: RefCell::new(wire), from }
    }

    /// Adds up a part of the gradients, which ends where the one before begins.
    pub fn add(&self, start: usize, values: &mut [f32]) {
        sums::reduce_scatter(self.world, start, values, self.shares, &mut self.wire.borrow_mut());
        self.from.set(start);
    }

    /// Adds up the gradients that are left.
    fn finish(self, grads: &mut [f32]) {
        self.add(0, &mut grads[..self.from.get()]);
    }
}

/// Updates the parameters with the gradients of all ranks; see [`Trainer::update`]. Returns the norm of their sum.
///
/// # Errors
/// As [`Trainer::update`].
pub fn update(
    reduction: Reduction<'_>,
    trainer: &mut dyn Trainer,
    adamw: &AdamW,
    muon: Option<&Muon>,
) -> Result<f32, Error> {
    let Reduction { world, shares, .. } = reduction;
    if world.size() == 1 {
        return Ok(trainer.update(adamw, muon)?);
    }
    reduction.finish(trainer.values_mut(Slot::Grads)?);
    let mut square_sum = [trainer.grad_square_sum()];
    sums::sum(world, &mut square_sum);
    let norm = square_sum[0].sqrt() as f32;
    trainer.update_share(adamw, muon, norm)?;
    sums::all_gather(world, trainer.values_mut(Slot::Params)?, shares, &mut Wire::default());
    Ok(norm)
}

/// Checks that all ranks agree with rank 0 in each of these facts, a name and a value each.
///
/// # Errors
/// [`Error::Usage`] on all ranks, naming the first that differs, and in what.
pub fn check_same(world: &dyn World, facts: &[(&str, String)]) -> Result<(), Error> {
    if world.size() == 1 {
        return Ok(());
    }
    let own = serde_json::to_vec(facts).expect("names and texts serialise");
    let all = world.gather(&own);
    let read = |bytes: &[u8]| serde_json::from_slice::<Vec<(String, String)>>(bytes).unwrap_or_default();
    let root = read(&all[0]);
    for (rank, theirs) in all.iter().enumerate().skip(1) {
        let theirs = read(theirs);
        if theirs.len() != root.len() {
            return Err(Error::Usage(format!("rank {rank} runs another version of ngen3 than rank 0")));
        }
        for ((name, expected), (_, found)) in root.iter().zip(&theirs) {
            if expected != found {
                return Err(Error::Usage(format!(
                    "rank {rank} differs from rank 0 in its {name}: expected {expected}, got {found}"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ngen3_cluster::Threads;
    use ngen3_model::{Config, ParamList};

    use super::*;

    #[test]
    fn shares_cost_about_the_same_and_keep_matrices_whole() {
        let list = ParamList::new(&Config::new(3, 4, 64, 32, 500));
        for size in [1, 2, 3, 8, 100] {
            for muon in [false, true] {
                let all = Threads::run(size, |world| shares(&*world, list.iter(), muon));
                assert!(all.iter().all(|shares| *shares == all[0]));
                let shares = &all[0];
                assert_eq!((shares.len(), shares[0].start, shares[size - 1].end), (size, 0, list.total()));
                let whole = |end: usize| {
                    let cut = list.iter().find(|param| param.offset < end && end < param.range().end);
                    cut.is_none_or(|param| match param.num_layer_matrices() {
                        matrices @ 1.. if muon => (end - param.offset).is_multiple_of(param.len() / matrices),
                        _ => true,
                    })
                };
                assert!(shares.iter().all(|share| whole(share.end)), "{size} ranks, muon {muon}");
                if !muon && size < 8 {
                    let fair = list.total() / size;
                    assert!(shares.iter().all(|share| share.len().abs_diff(fair) <= CUT), "{shares:?}");
                }
            }
        }
    }

    #[test]
    fn a_rank_that_differs_is_named() {
        let errors = Threads::run(3, |world| {
            let data = if world.rank() == 2 { "b" } else { "a" };
            check_same(&*world, &[("version", "1".into()), ("data", data.into())]).map_err(|error| error.to_string())
        });
        let expected = Err("rank 2 differs from rank 0 in its data: expected a, got b".into());
        assert_eq!(errors, [expected.clone(), expected.clone(), expected]);
        assert_eq!(Threads::run(2, |world| check_same(&*world, &[]).is_ok()), [true, true]);
    }

    #[test]
    fn micro_batches_are_dealt_in_turn() {
        let dealt = Threads::run(3, |world| dealt(&*world, 7).collect::<Vec<_>>());
        assert_eq!(dealt, [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
    }
}
