//! Reductions over all ranks.
//!
//! Large arrays are divided into a share for each rank. [`reduce_scatter`] gives each rank the sum of its share over all ranks,
//! [`all_gather`] gives all ranks the shares of all: together they are an all-reduce, between which each rank can work on its share
//! alone. Each rank sends `(size − 1)/size` of the array in each of them, the least that is possible (Patarasuk & Yuan 2009).

use std::ops::Range;

use crate::World;
use crate::wire::{Format, Wire};

/// Numbers that are exchanged at a time: 1 MB, so that those of a few ranks stay in the cache until they are added; a multiple of what
/// shares a scale.
pub const PIECE: usize = 1 << 18;

/// Divides `total` elements into consecutive shares, one for each of `size` ranks, of nearly equal cost. They are cut only after the
/// elements that `cuts` yields, in ascending order with the cost of everything before; the last is `total`.
pub fn shares(total: usize, size: usize, cuts: impl Iterator<Item = (usize, f64)> + Clone) -> Vec<Range<usize>> {
    let all = cuts.clone().last().map_or(0.0, |(_, cost)| cost);
    let mut start = 0;
    (1..=size)
        .map(|rank| {
            let wanted = all * rank as f64 / size as f64;
            // The nearest cut that is not before the share's start.
            let nearest = cuts
                .clone()
                .filter(|&(at, _)| at >= start)
                .min_by(|(_, a), (_, b)| (a - wanted).abs().total_cmp(&(b - wanted).abs()));
            let end = if rank == size { total } else { nearest.map_or(start, |(at, _)| at) };
            let share = start..end;
            start = end;
            share
        })
        .collect()
}

/// Replaces the own share of `values` by its sum over all ranks, in their order: rank 0's, then rank 1's, and so on. All else in
/// `values` stays. They are the part of the array from `start` on: all of it, or one part after the other.
pub fn reduce_scatter(world: &dyn World, start: usize, values: &mut [f32], shares: &[Range<usize>], wire: &mut Wire) {
    let (rank, size, format) = (world.rank(), world.size(), wire.format());
    if size == 1 {
        return;
    }
    let part = |share: &Range<usize>| {
        let within = |at: usize| at.clamp(start, start + values.len());
        within(share.start)..within(share.end)
    };
    let shares: Vec<Range<usize>> = shares.iter().map(part).collect();
    let at = |piece: Range<usize>| piece.start - start..piece.end - start;
    for i in 0..shares.iter().map(pieces).max().unwrap_or(0) {
        let own = piece(&shares[rank], i);
        let (bytes, own) = (format.bytes(own.len()), at(own));
        for distance in 1..size {
            let (to, from) = ((rank + distance) % size, (rank + size - distance) % size);
            let send = piece(&shares[to], i);
            let sent = wire.pack(&values[at(send.clone())], send);
            let received = wire.received.from(from, bytes);
            exchange(world, (to, &sent), (from, received));
        }
        let own = &mut values[own];
        wire.own.clear();
        wire.own.extend_from_slice(own);
        for theirs in 0..size {
            match (theirs == rank, theirs == 0) {
                (true, true) => {}
                (true, false) => own.iter_mut().zip(&wire.own).for_each(|(sum, value)| *sum += value),
                (false, true) => format.read(wire.received.from(theirs, bytes), own),
                (false, false) => format.add(wire.received.from(theirs, bytes), own),
            }
        }
    }
}

/// Replaces each share of `values` by its owner's. If the wire rounds, the owner's is rounded too: all ranks have the same.
pub fn all_gather(world: &dyn World, values: &mut [f32], shares: &[Range<usize>], wire: &mut Wire) {
    let (rank, size, format) = (world.rank(), world.size(), wire.format());
    let own = shares[rank].clone();
    let rounded = (format != Format::F32).then(|| wire.pack(&values[own.clone()], own.clone()).into_owned());
    if let Some(rounded) = &rounded {
        format.read(rounded, &mut values[own.clone()]);
    }
    for distance in 1..size {
        let (to, from) = ((rank + distance) % size, (rank + size - distance) % size);
        let theirs = &shares[from];
        for i in 0..pieces(&own).max(pieces(theirs)) {
            let (send, receive) = (piece(&own, i), piece(theirs, i));
            match &rounded {
                None => {
                    let (sent, received) = two(values, send, receive);
                    exchange(world, (to, bytemuck::cast_slice(sent)), (from, bytemuck::cast_slice_mut(received)));
                }
                Some(rounded) => {
                    let at = |place: usize| format.bytes(place - own.start);
                    let received = wire.received.from(from, format.bytes(receive.len()));
                    exchange(world, (to, &rounded[at(send.start)..at(send.end)]), (from, &mut *received));
                    format.read(received, &mut values[receive]);
                }
            }
        }
    }
}

/// Sends bytes to a rank and receives some from one, except where there are none.
fn exchange(world: &dyn World, (to, sent): (usize, &[u8]), (from, received): (usize, &mut [u8])) {
    if sent.is_empty() && received.is_empty() {
        return;
    }
    world.exchange((!sent.is_empty()).then_some((to, sent)), (!received.is_empty()).then_some((from, received)));
}

/// Calls `each` on rank 0 with the shares of all ranks in turn: `own` on each rank is its share. Stops at the first error, after
/// which the other ranks still wait: it must end them.
///
/// # Errors
/// Those of `each`.
pub fn collect<E>(
    world: &dyn World,
    own: &[f32],
    shares: &[Range<usize>],
    mut each: impl FnMut(&[f32]) -> Result<(), E>,
) -> Result<(), E> {
    if !world.is_root() {
        own.chunks(PIECE).for_each(|piece| world.exchange(Some((0, bytemuck::cast_slice(piece))), None));
        return Ok(());
    }
    each(own)?;
    let mut received = Vec::new();
    for (rank, share) in shares.iter().enumerate().skip(1) {
        for i in 0..pieces(share) {
            received.resize(piece(share, i).len(), 0.0);
            world.exchange(None, Some((rank, bytemuck::cast_slice_mut(&mut received))));
            each(&received)?;
        }
    }
    Ok(())
}

/// Adds up a few numbers over all ranks, in the order of the ranks.
pub fn sum(world: &dyn World, values: &mut [f64]) {
    if world.size() == 1 {
        return;
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    values.fill(0.0);
    for theirs in world.gather(&bytes) {
        for (sum, bytes) in values.iter_mut().zip(theirs.as_chunks().0) {
            *sum += f64::from_le_bytes(*bytes);
        }
    }
}

/// Returns `true` on all ranks if the flag is set on one of them.
pub fn any(world: &dyn World, flag: bool) -> bool {
    let mut count = [f64::from(u8::from(flag))];
    sum(world, &mut count);
    count[0] > 0.0
}

/// Returns the number that rank 0 has.
pub fn of_root(world: &dyn World, value: u64) -> u64 {
    if world.size() == 1 {
        return value;
    }
    let all = world.gather(&value.to_le_bytes());
    all[0].as_slice().try_into().map_or(value, u64::from_le_bytes)
}

fn pieces(share: &Range<usize>) -> usize {
    share.len().div_ceil(PIECE)
}

/// Returns the piece of a share with this number; an empty one after the last.
fn piece(share: &Range<usize>, number: usize) -> Range<usize> {
    let at = |number: usize| (share.start + number * PIECE).min(share.end);
    at(number)..at(number + 1)
}

/// Borrows two ranges that do not overlap, the second to write.
fn two(values: &mut [f32], read: Range<usize>, write: Range<usize>) -> (&[f32], &mut [f32]) {
    if read.end <= write.start {
        let (before, after) = values.split_at_mut(write.start);
        (&before[read], &mut after[..write.len()])
    } else {
        let (before, after) = values.split_at_mut(read.start);
        (&after[..read.len()], &mut before[write])
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest, test_runner::Config as ProptestConfig};

    use super::*;
    use crate::{Single, Threads};

    /// Shares with these sizes.
    fn consecutive(sizes: &[usize]) -> Vec<Range<usize>> {
        let mut start = 0;
        sizes
            .iter()
            .map(|size| {
                start += size;
                start - size..start
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_sum_over_ranks_is_that_of_one_process(
            sizes in proptest::collection::vec(0usize..20, 1..6),
            cut in 0usize..60,
        ) {
            let (size, shares) = (sizes.len(), consecutive(&sizes));
            let total: usize = sizes.iter().sum();
            let value = |rank: usize, i: usize| (rank * 31 + i * 7) as f32 * 0.37 - 3.0;
            let results = Threads::run(size, |world| {
                let mut values: Vec<f32> = (0..total).map(|i| value(world.rank(), i)).collect();
                // In two parts, the later first.
                let (before, after) = values.split_at_mut(cut.min(total));
                let mut wire = Wire::default();
                reduce_scatter(&*world, before.len(), after, &shares, &mut wire);
                reduce_scatter(&*world, 0, before, &shares, &mut wire);
                let mut collected = Vec::new();
                collect(&*world, &values[shares[world.rank()].clone()], &shares, |some| {
                    collected.extend_from_slice(some);
                    Ok::<_, ()>(())
                }).unwrap();
                all_gather(&*world, &mut values, &shares, &mut Wire::default());
                (values, collected)
            });
            for share in &shares {
                for i in share.clone() {
                    let expected = (0..size).fold(0.0, |sum, rank| sum + value(rank, i));
                    prop_assert!(results.iter().all(|(values, _)| values[i] == expected));
                    prop_assert_eq!(results[0].1[i], expected);
                }
            }
        }

        #[test]
        fn shares_are_dense_and_cut_only_where_they_may(
            costs in proptest::collection::vec((1usize..50, 0.1f64..9.0), 1..30),
            size in 1usize..9,
        ) {
            let mut all = (0, 0.0);
            let cuts: Vec<_> = costs.iter().map(|&(len, cost)| { all = (all.0 + len, all.1 + cost); all }).collect();
            let shares = shares(all.0, size, cuts.iter().copied());
            prop_assert_eq!(shares.len(), size);
            prop_assert_eq!(shares[0].start, 0);
            prop_assert_eq!(shares[size - 1].end, all.0);
            prop_assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            prop_assert!(shares.iter().all(|share| share.end == 0 || cuts.iter().any(|&(at, _)| at == share.end)));
        }
    }

    #[test]
    fn rounded_sums_are_near_and_the_same_on_all_ranks() {
        let shares = consecutive(&[PIECE + 300, 0, 77]);
        let total = PIECE + 377;
        let value = |rank: usize, i: usize| ((i * 37 + rank * 11) % 1_000) as f32 / 500.0 - 1.0;
        for (format, step) in [(Format::Bf16, 1.0 / 256.0), (Format::Int8, 1.0 / 254.0)] {
            let results = Threads::run(3, |world| {
                let mut values: Vec<f32> = (0..total).map(|i| value(world.rank(), i)).collect();
                let mut wire = Wire::new(format, total);
                reduce_scatter(&*world, 0, &mut values, &shares, &mut wire);
                all_gather(&*world, &mut values, &shares, &mut wire);
                values
            });
            assert!(results.iter().all(|values| *values == results[0]), "{format:?}");
            for (i, found) in results[0].iter().enumerate() {
                let expected: f32 = (0..3).map(|rank| value(rank, i)).sum();
                // Two numbers of at most 1 are rounded, then their sum of at most 3.
                assert!((found - expected).abs() <= 5.0 * step, "{format:?}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn arrays_of_many_pieces_arrive_whole() {
        let total = 3 * PIECE + 5;
        let shares = vec![0..PIECE / 2, PIECE / 2..2 * PIECE + 1, 2 * PIECE + 1..total];
        let results = Threads::run(3, |world| {
            let mut values: Vec<f32> = (0..total).map(|i| ((i % 1_000) * (world.rank() + 1)) as f32).collect();
            reduce_scatter(&*world, 0, &mut values, &shares, &mut Wire::default());
            all_gather(&*world, &mut values, &shares, &mut Wire::default());
            values
        });
        assert!(results.iter().all(|values| (0..total).all(|i| values[i] == (i % 1_000 * 6) as f32)));
    }

    #[test]
    fn a_few_numbers_a_flag_and_the_number_of_the_root() {
        let results = Threads::run(3, |world| {
            let mut values = [1.0, world.rank() as f64];
            sum(&*world, &mut values);
            (values, any(&*world, world.rank() == 2), any(&*world, false), of_root(&*world, 7 + world.rank() as u64))
        });
        assert_eq!(results, [([3.0, 3.0], true, false, 7); 3]);
        let mut alone = [2.0];
        sum(&Single, &mut alone);
        assert_eq!((alone, any(&Single, true), of_root(&Single, 5)), ([2.0], true, 5));
        let mut values = [1.0, 2.0];
        reduce_scatter(&Single, 0, &mut values, std::slice::from_ref(&(0..2)), &mut Wire::default());
        all_gather(&Single, &mut values, std::slice::from_ref(&(0..2)), &mut Wire::default());
        assert_eq!(values, [1.0, 2.0]);
    }
}
