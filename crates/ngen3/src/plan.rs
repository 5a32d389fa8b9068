//! Choices of `ngen3 make`: vocabulary, shape and length of a run for a text, a time and a machine. docs/recipe.md has the
//! measurements that the rules come from.

use ngen3_model::words::{grouped, grouped_count};
use ngen3_model::{ParamList, VARIANTS, Variant};

/// Choices for a run: what is trained, and how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Shape and batch.
    pub variant: &'static Variant,
    /// Fraction of activations dropped.
    pub dropout: f32,
    /// Length of the run.
    pub length: Length,
    /// Steps that the time has room for, as foreseen.
    pub steps_in_time: u64,
    /// Passes over the text in these steps.
    pub epochs: f64,
    /// Steps between evaluations.
    pub eval_interval: u64,
    /// Held-out share of the text.
    pub val_fraction: f64,
    /// Rate of this machine's products.
    gflops: f64,
}

/// Length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Until the time is over.
    Time,
    /// This many steps: the text is used up before the time.
    Steps(u64),
}

/// Share of the rate of large products that the training of a small model reaches: 0.6 as measured.
const EFFICIENCY: f64 = 0.6;

/// Passes over the text after which the validation loss no longer falls, with dropout.
const MAX_EPOCHS: f64 = 16.0;

/// Passes from which on dropout pays.
const DROPOUT_EPOCHS: f64 = 6.0;

/// Largest held-out text: enough for a loss to three digits.
const VAL_BYTES: f64 = 1e6;

/// Seconds after training, for the sample and the export.
const AFTER_S: f64 = 3.0;

impl Plan {
    /// Plans a run on a text of so many `bytes`, for `minutes` on a machine whose products reach `gflops`. `like` fixes the shape.
    pub fn new(bytes: u64, minutes: f64, gflops: f64, like: Option<&'static Variant>) -> Self {
        let seconds = 60.0 * minutes;
        let vocab_size = vocab_size(bytes, gflops * seconds);
        let affordable = |variant: &&Variant| steps_in(variant, vocab_size, gflops, seconds) >= MIN_STEPS;
        let variant = like.or_else(|| VARIANTS.iter().rev().find(affordable)).unwrap_or(&VARIANTS[0]);
        let steps_in_time = steps_in(variant, vocab_size, gflops, seconds);
        let val_fraction = (VAL_BYTES / bytes as f64).min(0.1);
        let val_fraction = (val_fraction * 1e4).round() / 1e4;
        let tokens = (1.0 - val_fraction) * bytes as f64 / bytes_per_token(vocab_size);
        let tokens_per_step = (variant.recipe.batch_size * variant.config().block_size) as f64;
        let epochs = steps_in_time as f64 * tokens_per_step / tokens;
        let length = if epochs > MAX_EPOCHS {
            Length::Steps((MAX_EPOCHS * tokens / tokens_per_step) as u64)
        } else {
            Length::Time
        };
        let steps = match length {
            Length::Time => steps_in_time,
            Length::Steps(steps) => steps,
        };
        let dropout = if epochs > DROPOUT_EPOCHS { 0.1 } else { 0.0 };
        // An evaluation takes the time of some seven steps.
        let eval_interval = (steps / 10).clamp(50, 1_000);
        Self { vocab_size, variant, dropout, length, steps_in_time, epochs, eval_interval, val_fraction, gflops }
    }

    /// Minutes of training that are left of all after so many `elapsed` seconds.
    pub fn train_minutes(&self, minutes: f64, elapsed: f64) -> f64 {
        (minutes - (elapsed + AFTER_S) / 60.0).max(0.05)
    }

    /// Formats the choices and the reasons, one line each.
    pub fn describe(&self, bytes: u64) -> [String; 4] {
        let mut config = self.variant.config();
        config.vocab_size = self.vocab_size;
        let parameters = grouped_count(ParamList::new(&config).total() as u64, "parameter");
        let epochs = format!("{:.1} passes over the text", self.epochs.min(MAX_EPOCHS));
        let run = match self.length {
            Length::Time => format!("about {} in the time, {epochs}", grouped_count(self.steps_in_time, "step")),
            Length::Steps(steps) => {
                format!("{}, {epochs}: it is used up then, before the time is over", grouped_count(steps, "step"))
            }
        };
        let held_out = grouped_count((self.val_fraction * bytes as f64).round() as u64, "byte");
        [
            format!(
                "vocabulary: {} tokens, for {} of text",
                grouped(self.vocab_size as u64),
                grouped_count(bytes, "byte")
            ),
            format!(
                "model:      {}, {parameters}: what this machine trains in the time at {:.0} GFLOP/s",
                self.variant.name, self.gflops
            ),
            format!("run:        recipe fast, {run}; dropout {}", self.dropout),
            format!("held out:   {held_out}, on which the best model is chosen"),
        ]
    }
}

/// Steps without which a larger shape is not worth its time: the smaller one learns more in as many minutes.
const MIN_STEPS: u64 = 1_500;

/// Returns the steps of a variant that fit into a time.
fn steps_in(variant: &Variant, vocab_size: usize, gflops: f64, seconds: f64) -> u64 {
    let mut config = variant.config();
    config.vocab_size = vocab_size;
    let tokens = (variant.recipe.batch_size * config.block_size) as f64;
    let flops = 6.0 * ParamList::new(&config).total() as f64 * tokens;
    (1e9 * gflops * EFFICIENCY * seconds / flops) as u64
}

/// Bytes of English text per token of a vocabulary.
fn bytes_per_token(vocab_size: usize) -> f64 {
    // 2.0 with 512 tokens, 4.2 with 16,384.
    0.44 * (vocab_size as f64).log2() - 1.96
}

/// Chooses the size of the vocabulary: a power of 2 that grows with the text, and is smaller if there is little time, since most of
/// a small model's work is its head.
fn vocab_size(bytes: u64, gflop: f64) -> usize {
    let of_text = 4_000.0 * (bytes as f64 / 1e6).sqrt();
    let of_time = gflop / 2.0;
    let size = of_text.min(of_time).clamp(512.0, 32_768.0);
    1 << size.log2().round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_follow_text_time_and_machine() {
        let plan = |bytes, minutes, gflops| Plan::new(bytes, minutes, gflops, None);
        let english = plan(20_900_000, 2.0, 400.0);
        assert_eq!((english.vocab_size, english.variant.name, english.length), (16_384, "7M", Length::Time));
        assert!((700..1_400).contains(&english.steps_in_time), "{}", english.steps_in_time);
        assert_eq!(english.dropout, 0.0);
        let plays = plan(1_115_394, 20.0, 400.0);
        assert_eq!((plays.vocab_size, plays.dropout), (4_096, 0.1));
        assert!(matches!(plays.length, Length::Steps(steps) if steps < plays.steps_in_time), "the text is used up");
        assert_eq!(plan(20_900_000, 0.2, 100.0).vocab_size, 512, "little time");
        let long = plan(2_000_000_000, 6_000.0, 2_000.0);
        assert!(long.variant.name != "7M" && long.vocab_size == 32_768, "{long:?}");
        let fixed = Plan::new(1_000_000, 1.0, 100.0, Variant::by_name("120M").ok());
        assert_eq!(fixed.variant.name, "120M");
    }

    #[test]
    fn any_request_has_a_plan() {
        for bytes in [10_000, 1_000_000, u64::MAX] {
            for minutes in [0.1, 20.0, 1e6] {
                for gflops in [0.5, 1e6] {
                    let plan = Plan::new(bytes, minutes, gflops, None);
                    assert!(plan.eval_interval >= 50 && plan.vocab_size.is_power_of_two(), "{plan:?}");
                    assert!((0.0..=0.1).contains(&plan.val_fraction));
                    assert!(plan.describe(bytes).iter().all(|line| !line.contains("NaN") && !line.contains("inf")));
                }
            }
        }
    }
}
