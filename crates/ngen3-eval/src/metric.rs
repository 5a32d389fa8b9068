//! Metrics from log-likelihoods: the chosen answer, the mean over questions, and its standard error.

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Accuracy: share of questions whose right answer has the highest log-likelihood.
    Acc,
    /// Accuracy with log-likelihoods divided by the answer's length in characters.
    AccNorm,
    /// Accuracy with log-likelihoods divided by the answer's length in UTF-8 bytes.
    AccBytes,
    /// exp of the mean negative log-likelihood per token.
    Perplexity,
    /// exp of the negative log-likelihood per byte of text.
    BytePerplexity,
    /// Negative log-likelihood per byte of text, in bits: comparable between tokenizers.
    BitsPerByte,
}

impl Metric {
    /// Metrics for answers of different lengths. The harness defines the first two for its tasks.
    pub const NORMALISED: &[Self] = &[Self::Acc, Self::AccNorm, Self::AccBytes];

    /// Name in the harness.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccBytes => "acc_bytes",
            Self::Perplexity => "perplexity",
            Self::BytePerplexity => "byte_perplexity",
            Self::BitsPerByte => "bits_per_byte",
        }
    }

    /// Returns whether higher values are better.
    pub fn higher_is_better(self) -> bool {
        matches!(self, Self::Acc | Self::AccNorm | Self::AccBytes)
    }

    /// Returns the index of the answer with the highest score; the first one on a tie.
    ///
    /// # Panics
    /// If there are no answers, or the metric is not an accuracy.
    pub fn choose(self, answers: &[String], loglikelihoods: &[f64]) -> usize {
        let length = |answer: &String| match self {
            Self::Acc => 1,
            Self::AccNorm => answer.chars().count(),
            Self::AccBytes => answer.len(),
            Self::Perplexity | Self::BytePerplexity | Self::BitsPerByte => {
                panic!("{} does not choose answers", self.name())
            }
        };
        let scores = answers.iter().zip(loglikelihoods).map(|(answer, value)| value / length(answer) as f64);
        let best = scores.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.expect("a question has answers").0
    }
}

/// Share of `right` among `n`, and its standard error: the sample standard deviation over √n; `None` for n = 1.
pub(crate) fn proportion(right: usize, n: usize) -> (f64, Option<f64>) {
    let mean = right as f64 / n as f64;
    let error = (n > 1).then(|| (mean * (1.0 - mean) / (n - 1) as f64).sqrt());
    (mean, error)
}

/// Mean over groups of questions, each with its mean, error and size, weighted by size; and its standard error, from the
/// pooled variance of the groups.
pub(crate) fn pooled(parts: &[(f64, Option<f64>, usize)]) -> (f64, Option<f64>) {
    let total: usize = parts.iter().map(|&(.., size)| size).sum();
    let mean = parts.iter().map(|&(mean, _, size)| mean * size as f64).sum::<f64>() / total as f64;
    let squares = parts.iter().map(|&(_, error, size)| {
        let size = size as f64;
        Some((size - 1.0) * error?.powi(2) * size)
    });
    let error =
        squares.sum::<Option<f64>>().map(|squares| (squares / (total - parts.len()) as f64 / total as f64).sqrt());
    (mean, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_chosen_by_their_length() {
        let answers = ["aaaa".to_owned(), "éé".to_owned()];
        let chosen =
            |values: [f64; 2]| Metric::NORMALISED.iter().map(|m| m.choose(&answers, &values)).collect::<Vec<_>>();
        // By character: −1 and −1.5; by byte: −1 and −0.75.
        assert_eq!(chosen([-4.0, -3.0]), [1, 0, 1]);
        assert_eq!(chosen([-4.0, -4.0]), [0, 0, 0]);
        // An empty answer has length 0: its score is not finite, and it is never chosen.
        assert_eq!(Metric::AccNorm.choose(&[String::new(), "a".into()], &[-1.0, -100.0]), 1);
    }

    /// Values of the harness's `mean_stderr` and `pooled_sample_stderr`.
    #[test]
    fn standard_errors_are_those_of_the_harness() {
        let (mean, error) = proportion(1, 4);
        assert_eq!((mean, error), (0.25, Some(0.25)));
        assert_eq!(proportion(1, 1), (1.0, None));
        let parts = [proportion(30, 100), proportion(20, 50)];
        let (mean, error) = pooled(&[(parts[0].0, parts[0].1, 100), (parts[1].0, parts[1].1, 50)]);
        assert!((mean - 50.0 / 150.0).abs() < 1e-15);
        assert!((error.unwrap() - 0.038_554_980_047_802_986).abs() < 1e-15, "{error:?}");
        assert_eq!(pooled(&[(1.0, None, 1), (0.5, Some(0.1), 4)]).1, None);
    }
}
