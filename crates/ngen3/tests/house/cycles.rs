//! Cycles in a graph.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Finds cycles, shortest first: for each arrow on a cycle, a shortest one through it, unless a listed cycle already covers the
/// arrow. Each starts with the first of its names in order, which is not repeated at the end.
pub fn find<T>(arrows: &BTreeMap<String, BTreeMap<String, T>>) -> Vec<Vec<String>> {
    let all = arrows.iter().flat_map(|(from, uses)| uses.keys().map(move |to| (from, to)));
    let mut cycles: Vec<_> = all.filter_map(|(from, to)| shortest(arrows, to, from)).collect();
    for cycle in &mut cycles {
        let first = cycle.iter().enumerate().min_by_key(|(_, name)| *name).map_or(0, |(index, _)| index);
        cycle.rotate_left(first);
    }
    cycles.sort_by_key(|cycle| (cycle.len(), cycle.clone()));
    let mut covered = BTreeSet::new();
    cycles.retain(|cycle| {
        let known = covered.len();
        covered.extend(cycle.iter().copied().zip(cycle.iter().copied().cycle().skip(1)));
        covered.len() > known
    });
    cycles.into_iter().map(|cycle| cycle.into_iter().cloned().collect()).collect()
}

/// Names on a shortest path, including both ends.
fn shortest<'a, T>(
    arrows: &'a BTreeMap<String, BTreeMap<String, T>>,
    from: &'a String,
    to: &'a String,
) -> Option<Vec<&'a String>> {
    let mut before = BTreeMap::from([(from, None)]);
    let mut open = VecDeque::from([from]);
    while let Some(name) = open.pop_front() {
        if name == to {
            let mut way: Vec<_> = std::iter::successors(Some(name), |name| before[name]).collect();
            way.reverse();
            return Some(way);
        }
        for next in arrows.get(name).into_iter().flat_map(BTreeMap::keys) {
            before.entry(next).or_insert_with(|| {
                open.push_back(next);
                Some(name)
            });
        }
    }
    None
}
