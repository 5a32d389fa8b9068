//! A small chart in one line of text: ▇▅▃▂▁▁.

/// Characters from the lowest value to the highest.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Buckets at which two neighbours become one. Enough that a merge does not show in the widest chart.
const MAX_BUCKETS: usize = 128;

/// A series of any length, kept as the means of equally many neighbouring values.
#[derive(Debug)]
pub struct Sparkline {
    /// Means of the full buckets.
    means: Vec<f32>,
    /// Values per bucket.
    width: u32,
    /// Sum and number of the values in the bucket that is being filled.
    sum: f32,
    filled: u32,
}

impl Sparkline {
    /// Returns a chart of no values.
    pub fn new() -> Self {
        Self { means: Vec::with_capacity(MAX_BUCKETS), width: 1, sum: 0.0, filled: 0 }
    }

    /// Adds a value; one that is not finite is ignored.
    pub fn push(&mut self, value: f32) {
        if !value.is_finite() {
            return;
        }
        self.sum += value;
        self.filled += 1;
        if self.filled < self.width {
            return;
        }
        self.means.push(self.sum / self.filled as f32);
        (self.sum, self.filled) = (0.0, 0);
        if self.means.len() == MAX_BUCKETS {
            self.means = self.means.chunks(2).map(mean).collect();
            self.width *= 2;
        }
    }

    /// Draws all values in at most `columns` characters, between their lowest and highest mean.
    pub fn draw(&self, columns: usize) -> String {
        let count = self.means.len();
        let columns = columns.min(count);
        let values: Vec<f32> =
            (0..columns).map(|i| mean(&self.means[i * count / columns..(i + 1) * count / columns])).collect();
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let top = (BARS.len() - 1) as f32;
        // A constant series is drawn low: 0/0 casts to 0.
        values.iter().map(|value| BARS[((value - low) / (high - low) * top).round() as usize]).collect()
    }
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(values: impl IntoIterator<Item = f32>, columns: usize) -> String {
        let mut line = Sparkline::new();
        values.into_iter().for_each(|value| line.push(value));
        line.draw(columns)
    }

    #[test]
    fn values_stand_between_the_lowest_and_the_highest() {
        assert_eq!(drawn([], 16), "");
        assert_eq!(drawn([3.0, 3.0], 16), "▁▁");
        assert_eq!(drawn([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 16), "█▇▆▅▄▃▂▁");
        assert_eq!(drawn([1.0, f32::NAN, 2.0, f32::INFINITY], 16), "▁█");
    }

    #[test]
    fn a_long_series_takes_the_columns_that_there_are() {
        assert_eq!(drawn([4.0, 4.0, 2.0, 2.0, 1.0, 1.0], 3), "█▃▁");
        assert_eq!(drawn([1.0, 2.0], 0), "");
        for len in [17, 100, 127, 128, 129, 1_000, 100_000] {
            let text = drawn((0..len).map(|i| -(i as f32)), 16);
            assert_eq!(text.chars().count(), 16, "{len}");
            assert!(text.starts_with('█') && text.ends_with('▁'), "{len}: {text}");
            let heights: Vec<_> = text.chars().map(|c| BARS.iter().position(|bar| *bar == c)).collect();
            assert!(heights.is_sorted_by(|a, b| a >= b), "{len}: {text}");
        }
    }

    #[test]
    fn neighbours_share_a_column_by_their_mean() {
        // Noise of one step is gone where a column holds many.
        let noisy = drawn((0..4_096).map(|i| if i % 2 == 0 { 1.0 } else { 3.0 }), 16);
        assert_eq!(noisy, "▁".repeat(16));
    }
}
