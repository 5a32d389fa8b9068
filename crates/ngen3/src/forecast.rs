//! Forecast of training on many ranks, from the step of one and the network between them: docs/machines.md.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Instant;

use ngen3_cluster::wire::Wire;
use ngen3_cluster::{World, sums};
use ngen3_model::words::grouped;
use ngen3_train::ranks::overlaps;

/// Network between ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// Bytes per second that a rank sends and, at the same time, receives.
    pub bytes_per_s: f64,
    /// Seconds from the start of an exchange of nothing to its end.
    pub latency_s: f64,
}

/// Step of one rank, without exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Seconds of computation.
    pub seconds: f64,
    /// Tokens of its batch.
    pub tokens: f64,
    /// Bytes of the gradients.
    pub bytes: f64,
    /// Part of the gradients that are final before the backward pass ends.
    pub early: f64,
    /// Number of exchanges of these.
    pub parts: f64,
    /// Seconds from the first of them to the end of the pass, in which they are exchanged.
    pub window_s: f64,
}

impl Step {
    fn overlaps(&self, ranks: usize) -> bool {
        overlaps((self.bytes / 4.0) as usize, ranks)
    }
}

/// Numbers of ranks of the forecast.
const RANKS: [usize; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024];

/// Exchanges that are timed.
const ROUNDS: usize = 7;

impl Network {
    /// Measures the network between the ranks with the array that a step exchanges, which then holds nonsense. All ranks call it.
    pub fn measure(world: &dyn World, values: &mut [f32], shares: &[Range<usize>]) -> Self {
        let (rank, size) = (world.rank(), world.size());
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let latency_s = median(10 * ROUNDS, || {
            world.exchange(Some((next, &[0])), Some((before, &mut [0])));
        });
        let mut wire = Wire::default();
        let exchange_s = median(ROUNDS, || {
            sums::reduce_scatter(world, 0, values, shares, &mut wire);
            sums::all_gather(world, values, shares, &mut wire);
        });
        let bytes = sent(4.0 * values.len() as f64, size);
        Self { bytes_per_s: bytes / (exchange_s - messages(size) * latency_s).max(1e-9), latency_s }
    }

    /// Seconds in which `ranks` add up and return `bytes` of gradients.
    pub fn exchange_s(&self, bytes: f64, ranks: usize) -> f64 {
        sent(bytes, ranks) / self.bytes_per_s + messages(ranks) * self.latency_s
    }

    /// Seconds of the exchange that pass while the gradients of a step are computed: of its first half, in which they are added up.
    pub fn hidden_s(&self, step: Step, ranks: usize) -> f64 {
        let early = if step.overlaps(ranks) { step.early } else { 0.0 };
        (early * self.exchange_s(step.bytes, ranks) / 2.0).min(step.window_s)
    }
}

/// Bytes that a rank sends to add up `bytes` and to return the sum: its part of both halves of an all-reduce.
fn sent(bytes: f64, ranks: usize) -> f64 {
    2.0 * bytes * (ranks - 1) as f64 / ranks as f64
}

/// Messages that a rank sends one after another: one to each other rank, in both halves.
fn messages(ranks: usize) -> f64 {
    2.0 * (ranks - 1) as f64
}

/// Runs a function some times; returns the median of its seconds.
fn median(times: usize, mut function: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..times)
        .map(|_| {
            let started = Instant::now();
            function();
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[times / 2]
}

/// Formats the forecast: tokens per second of up to 1,024 ranks, each with a batch of its own, and their share of as many single
/// ones.
pub fn table(step: Step, network: Network) -> String {
    let mut out =
        format!("{:>6} {:>14} {:>11} {:>12} {:>12}\n", "ranks", "tokens/s", "efficiency", "exchange", "hidden");
    for ranks in RANKS {
        let parts = if step.overlaps(ranks) { step.parts } else { 0.0 };
        let more = parts * messages(ranks) / 2.0;
        let exchange = network.exchange_s(step.bytes, ranks) + more * network.latency_s;
        let hidden = network.hidden_s(step, ranks);
        let seconds = step.seconds + exchange - hidden;
        let _ = writeln!(
            out,
            "{:>6} {:>14} {:>9.0} % {:>9.1} ms {:>9.1} ms",
            grouped(ranks as u64),
            grouped((ranks as f64 * step.tokens / seconds) as u64),
            100.0 * step.seconds / seconds,
            1e3 * exchange,
            1e3 * hidden
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use ngen3_cluster::Threads;

    use super::*;

    #[test]
    fn a_rank_alone_waits_for_nobody_and_many_for_the_network() {
        let network = Network { bytes_per_s: 125e6, latency_s: 50e-6 };
        let step = Step { seconds: 0.25, tokens: 2_048.0, bytes: 29e6, early: 0.0, parts: 0.0, window_s: 0.1 };
        assert_eq!(network.exchange_s(step.bytes, 1), 0.0);
        // Twice half of 29 MB, and two messages.
        assert!((network.exchange_s(step.bytes, 2) - (0.232 + 100e-6)).abs() < 1e-9);
        let table = table(step, network);
        let row = |ranks: &str| {
            let line = table.lines().find(|line| line.trim_start().starts_with(ranks)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("1 ")[1..3], ["8,192", "100"]);
        assert_eq!(row("2 ")[1..3], ["8,496", "52"]);
        assert_eq!(table.lines().count(), 1 + RANKS.len());
        // Half of the gradients, in the first half of the exchange; never more than there is time for.
        let early = Step { early: 0.5, ..step };
        assert!((network.hidden_s(early, 2) - network.exchange_s(29e6, 2) / 4.0).abs() < 1e-9);
        assert_eq!(network.hidden_s(Step { window_s: 0.01, ..early }, 2), 0.01);
    }

    #[test]
    fn what_was_measured_forecasts_itself() {
        let networks = Threads::run(2, |world| {
            let mut values = vec![0.0; 300_000];
            Network::measure(&*world, &mut values, &[0..150_000, 150_000..300_000])
        });
        for network in networks {
            assert!(network.bytes_per_s > 1e6 && network.latency_s < 0.1, "{network:?}");
        }
    }
}
