//! Training settings: one list with the meaning, default and range of each.
//!
//! [`TrainSettings`] holds the settings of a run. [`Overrides`] is the same list with every entry optional, as given on the
//! command line or in a TOML file. [`TrainSettings::settle`] turns the second into the first.

use std::fmt::Display;

use ngen3_engine::{AdamW, Dtype, Muon, Options};
use ngen3_model::{Config, Recipe};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::choices::{OptimizerKind, RecipeName, ReduceDtype, Schedule};
use crate::config::field::optional_fields;

/// Maximum of `threads`: more than any machine has cores.
const MAX_THREADS: usize = 1_024;

/// Maximum of `gradient_accumulation`: such a step would take a week.
const MAX_ACCUMULATION: u64 = 1 << 20;

/// Maximum of eval_sample: longer texts would outgrow what the page reads at once.
const MAX_EVAL_SAMPLE: usize = 10_000;

/// Maximum of `minutes`: a year.
const MAX_MINUTES: f64 = 366.0 * 24.0 * 60.0;

/// Defines [`TrainSettings`] and [`Overrides`] from the list below. An entry has, in this order:
///
/// - `name: type`;
/// - `= DEFAULT`; one that uses the settings above it, the `variant`'s recipe or the `model`'s shape also has `=> "TEXT"` for the help;
/// - its range: a function that returns the expected values as its error; it may use the other settings;
/// - `"VALUE_NAME": "HELP"` of its flag.
macro_rules! settings {
    (
        ($variant:ident, $model:ident)
        $(
            $(#[doc = $doc:literal])* $(#[serde($serde:meta)])?
            $name:ident: $type:ty = $default:expr $(=> $default_text:literal)?,
                $range:expr, $value_name:literal: $help:literal;
        )*
    ) => {
        /// Hyperparameters of a run: everything except the model's shape and the data.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct TrainSettings {
            $($(#[doc = $doc])* $(#[serde($serde)])? pub $name: $type,)*
        }

        optional_fields! {
            /// Settings given on the command line or in a TOML file; `None` takes the default.
            Overrides {
                $($(#[doc = $doc])* $name: $type,
                    flag ($value_name, $help, default_text!($default $(=> $default_text)?));)*
            }
        }

        impl From<TrainSettings> for Overrides {
            fn from(settings: TrainSettings) -> Self {
                Self { $($name: Some(settings.$name),)* }
            }
        }

        impl TrainSettings {
            /// Fills in missing settings from the variant's recipe and the defaults of the list, for a model of this shape.
            ///
            /// # Errors
            /// As [`TrainSettings::validate`].
            pub fn settle(asked: Overrides, $variant: &Recipe, $model: &Config) -> Result<Self, Error> {
                $(let $name: $type = asked.$name.unwrap_or($default);)*
                let settings = Self { $($name),* };
                settings.validate()?;
                Ok(settings)
            }

            /// Checks the range of each setting.
            ///
            /// # Errors
            /// [`Error::Usage`] naming the first that is out of range, and the expected values.
            pub fn validate(&self) -> Result<(), Error> {
                let Self { $($name),* } = self;
                $(check(stringify!($name), $name, $range)?;)*
                Ok(())
            }

            /// Lists the settings that differ from `before`, each as `name before → now`.
            pub fn changes_since(&self, before: &Self) -> Vec<String> {
                let mut changes = Vec::new();
                $(if self.$name != before.$name {
                    changes.push(format!("{} {} → {}", stringify!($name), text_of(&before.$name), text_of(&self.$name)));
                })*
                changes
            }
        }
    };
}

/// Default of a setting in the help text.
macro_rules! default_text {
    ($default:expr) => {
        &$default
    };
    ($default:expr => $text:literal) => {
        &$text
    };
}

settings! {
    (variant, model)
    /// Defaults of the optimizer, the learning rates and the schedule.
    #[serde(default)]
    recipe: RecipeName = RecipeName::Standard, any,
        "NAME": "Defaults of optimizer, learning rates and schedule: standard, or fast, which needs about a third of the steps";
    /// Number of optimizer steps; in a run of so many minutes the number that is foreseen.
    max_iters: u64 = variant.max_iters as u64 => "the variant's", any, "N": "Number of training steps";
    /// Minutes of training, evaluations and saving included, in place of `max_iters`; 0 for `max_iters` steps.
    #[serde(default)]
    minutes: f64 = 0.0, |m| must((0.0..=MAX_MINUTES).contains(m), format!("between 0 and {MAX_MINUTES}")),
        "N": "Minutes to train, in place of max_iters; the schedule ends with the last. 0 trains max_iters steps";
    /// Steps between lines of metrics.jsonl.
    log_interval: u64 = 10, at_least_1,
        "N": "Steps between lines of metrics.jsonl, and of the output if it is not a terminal";
    /// Steps between evaluations of the validation loss.
    eval_interval: u64 = 250, at_least_1, "N": "Steps between evaluations";
    /// Validation batches per evaluation: always the same ones, so that evaluations are comparable.
    eval_iters: u64 = 20, at_least_1, "N": "Validation batches per evaluation";
    /// Tokens of a sample that is written after each evaluation, except at step 0; 0 for none.
    #[serde(default)]
    eval_sample: usize = 0, |n| at_most(n, MAX_EVAL_SAMPLE),
        "N": "Tokens to generate after each evaluation, except at step 0, for samples.jsonl and the page of ngen3 serve; 0 disables it";
    /// Steps between checkpoints.
    save_interval: u64 = eval_interval => "eval_interval", at_least_1, "N": "Steps between checkpoints";
    /// `true` to keep the model with the lowest validation loss instead of the latest.
    #[serde(default)]
    keep_best: bool = false, any,
        "true|false": "Keep the model with the lowest validation loss instead of the latest";
    /// Evaluations without a lower validation loss before the run stops; 0 disables it.
    #[serde(default)]
    patience: u64 = 0, any, "N": "Evaluations without improvement before stopping; 0 disables it";
    /// Sequences of `block_size` tokens per micro-batch.
    batch_size: usize = variant.batch_size => "the variant's", at_least_1, "N": "Sequences per batch";
    /// Micro-batches per optimizer step.
    gradient_accumulation: u64 = 1, |n| at_least_1(n).and(at_most(n, MAX_ACCUMULATION)),
        "N": "Batches accumulated per optimizer step";
    /// Optimizer of the matrices of the blocks' linear layers.
    #[serde(default)]
    optimizer: OptimizerKind = if recipe == RecipeName::Fast { OptimizerKind::Muon } else { OptimizerKind::AdamW }
        => "adamw; muon with --recipe fast", any,
        "NAME": "Optimizer: adamw, or muon for the matrices of the blocks (and adamw for the rest)";
    /// Peak learning rate.
    learning_rate: f32 = if recipe == RecipeName::Fast { fast_learning_rate(model) } else { variant.learning_rate }
        => "the variant's",
        |&lr| must(lr > 0.0 && lr.is_finite(), "a positive number"), "LR": "Peak learning rate";
    /// Peak learning rate of the matrices that Muon updates; 0 for that of the other parameters.
    #[serde(default)]
    matrix_lr: f32 = if recipe == RecipeName::Fast && optimizer == OptimizerKind::Muon { learning_rate / 2.0 } else { 0.0 }
        => "0; learning_rate / 2 with --recipe fast", not_negative,
        "LR": "Peak learning rate of the matrices that muon updates; 0 for learning_rate";
    /// Course of the learning rate after the warm-up.
    #[serde(default)]
    schedule: Schedule = if recipe == RecipeName::Fast { Schedule::Wsd } else { Schedule::Cosine }
        => "cosine; wsd with --recipe fast", any,
        "NAME": "Learning rate after the warm-up: cosine or linear to min_lr, or wsd (stable, then linear to min_lr)";
    /// Share of the run in which the schedule `wsd` decays.
    #[serde(default = "default_decay_fraction")]
    decay_fraction: f64 = default_decay_fraction(), |share| must((0.0..=1.0).contains(share), "between 0 and 1"),
        "P": "Fraction of the steps in which the schedule wsd decays, at the end of the run";
    /// Learning rate at the end of the run.
    min_lr: f32 = default_min_lr(schedule, learning_rate) => "learning_rate / 10; 0 with linear and wsd",
        |lr| must((0.0..=*learning_rate).contains(lr), format!("between 0 and the learning_rate of {learning_rate}")),
        "LR": "Final learning rate";
    /// Steps of linear learning rate warm-up.
    warmup_iters: u64 = Self::default_warmup(max_iters) => "100, at most max_iters / 10",
        |n| must(n <= max_iters, format!("at most the max_iters of {max_iters}")),
        "N": "Steps of linear learning rate warm-up";
    /// Weight decay of matrices and embeddings.
    weight_decay: f32 = 0.1,
        |wd| not_negative(wd).and(must(wd * learning_rate.max(*matrix_lr) <= 1.0, weight_decay_limit(learning_rate.max(*matrix_lr)))), "X": "Weight decay of matrices and embeddings";
    /// AdamW's decay rate of the first moment.
    beta1: f32 = if recipe == RecipeName::Fast { 0.65 } else { 0.9 } => "0.9; 0.65 with --recipe fast", share,
        "X": "AdamW's decay rate of the first moment";
    /// AdamW's decay rate of the second moment: GPT-3's and nanoGPT's 0.95 (Brown et al. 2020).
    beta2: f32 = if recipe == RecipeName::Fast { fast_beta2(batch_size, gradient_accumulation, model) } else { 0.95 }
        => "0.95; with --recipe fast 0.995 for steps of 2,048 tokens, less for larger ones", share,
        "X": "AdamW's decay rate of the second moment";
    /// Muon's decay rate of the average of gradients.
    #[serde(default = "default_momentum")]
    momentum: f32 = if recipe == RecipeName::Fast && optimizer == OptimizerKind::Muon { 0.85 } else { default_momentum() }
        => "0.95; 0.85 with --recipe fast", share, "X": "Muon's decay rate of the average of gradients";
    /// Maximum global norm of the gradients; 0 disables clipping.
    grad_clip: f32 = 1.0, not_negative, "X": "Maximum norm of the gradients; 0 disables clipping";
    /// Fraction of activations set to zero during training.
    dropout: f32 = 0.0, share, "P": "Fraction of activations set to zero during training";
    /// Random seed of the initial weights, the batches and the dropout masks.
    seed: u64 = 1337, any, "N": "Random seed of initial weights, batches and dropout";
    /// Fraction of the data held out for validation: the last tokens of a file, or conversations drawn at random.
    val_fraction: f64 = 0.1, share,
        "P": "Fraction of the data held out for validation, unless there is a val.bin";
    /// Number of compute threads; 0 uses all cores.
    threads: usize = 0, |n| at_most(n, MAX_THREADS), "N": "Number of compute threads; 0 uses all cores";
    /// Precision of the operands of matrix products.
    dtype: Dtype = Dtype::Auto, any,
        "TYPE": "Precision of matrix products: auto (the fastest on this processor), f32 or bf16";
    /// `true` to recompute activations in the backward pass instead of keeping them.
    #[serde(default)]
    recompute: bool = false, any,
        "true|false": "Recompute each layer's activations in the backward pass: same results, less memory, 12 to 25 % \
                       slower";
    /// Steps between exchanges of ranks; 1 adds up the gradients of every step.
    #[serde(default = "default_sync_every")]
    sync_every: u64 = default_sync_every(), at_least_1,
        "N": "Steps that each of several ranks trains by itself before they exchange what they learned, for slow networks (DiLoCo); \
              1 adds up the gradients of every step";
    /// Learning rate of the exchanges of `sync_every`: part of the ranks' mean difference that is taken over.
    #[serde(default = "default_outer_lr")]
    outer_lr: f32 = default_outer_lr(), not_negative,
        "LR": "Learning rate of the exchanges of sync_every";
    /// Nesterov momentum of the exchanges of `sync_every`.
    #[serde(default = "default_outer_momentum")]
    outer_momentum: f32 = default_outer_momentum(), share, "X": "Nesterov momentum of the exchanges of sync_every";
    /// Type of the numbers that ranks send each other to be added up.
    #[serde(default)]
    reduce_dtype: ReduceDtype = ReduceDtype::F32, any,
        "TYPE": "Type of the numbers that ranks exchange to add them up: f32, bf16 or int8; what rounding leaves out is added to the \
                 next";
}

/// Final learning rate of a schedule with this peak.
pub(crate) fn default_min_lr(schedule: Schedule, learning_rate: f32) -> f32 {
    if schedule == Schedule::Cosine { learning_rate / 10.0 } else { 0.0 }
}

/// Peak learning rate of the recipe `fast`: 0.012 at a width of 128, where it was found, and falling with the square root of the
/// width, as nanochat's does: the norm of an update, relative to that of the weights, then stays the same (Yang et al. 2023,
/// arXiv:2310.17813).
fn fast_learning_rate(model: &Config) -> f32 {
    0.012 * (128.0 / model.n_embd as f32).sqrt()
}

/// AdamW's β₂ of the recipe `fast`: 0.995 for steps of 2,048 tokens, where it was found. For other steps it remembers as many tokens
/// (Marek et al. 2025, arXiv:2507.07101). Most rows of a large vocabulary's embeddings have a gradient in few steps: a short memory
/// forgets how large it was, and moves them too far when the next comes.
fn fast_beta2(batch_size: usize, gradient_accumulation: u64, model: &Config) -> f32 {
    let tokens = batch_size as f64 * gradient_accumulation as f64 * model.block_size as f64;
    0.995_f64.powf(tokens / 2_048.0).clamp(0.9, 0.999) as f32
}

const fn default_decay_fraction() -> f64 {
    0.7
}

const fn default_momentum() -> f32 {
    0.95
}

const fn default_sync_every() -> u64 {
    1
}

const fn default_outer_lr() -> f32 {
    0.7
}

/// Found on a few dozen rounds (docs/machines.md); Douillard et al. use 0.9 for hundreds.
const fn default_outer_momentum() -> f32 {
    0.5
}

/// Checks the range of a setting.
fn check<T: Display>(name: &str, value: &T, range: impl FnOnce(&T) -> Result<(), String>) -> Result<(), Error> {
    range(value).map_err(|must| Error::Usage(format!("{name}: expected {must}, got {value}")))
}

/// Fails with the expected values `be` unless the condition holds.
fn must(holds: bool, be: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(be.into()) }
}

/// Accepts every value.
fn any<T>(_: &T) -> Result<(), String> {
    Ok(())
}

fn at_least_1<T: PartialOrd + From<u8>>(value: &T) -> Result<(), String> {
    must(*value >= T::from(1), "at least 1")
}

fn at_most<T: PartialOrd + Display>(value: &T, most: T) -> Result<(), String> {
    must(*value <= most, format!("at most {most}"))
}

fn not_negative(value: &f32) -> Result<(), String> {
    must(*value >= 0.0 && value.is_finite(), "a non-negative number")
}

/// Expected weight decay: a larger one would turn the sign of the weights around at each step.
fn weight_decay_limit(learning_rate: f32) -> String {
    format!("at most 1 / learning_rate ({})", 1.0 / learning_rate)
}

fn share<T: PartialOrd + From<u8>>(value: &T) -> Result<(), String> {
    must((T::from(0)..T::from(1)).contains(value), "at least 0 and below 1")
}

/// Text of a setting, as in files and flags.
fn text_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and names serialise").trim_matches('"').into()
}

impl TrainSettings {
    /// AdamW's ε, which is not configurable.
    const EPS: f32 = 1e-8;

    /// Returns 100 steps, at most a tenth of the run.
    pub(crate) fn default_warmup(max_iters: u64) -> u64 {
        100.min(max_iters / 10)
    }

    /// Number of tokens per optimizer step, in sequences of `block_size`.
    pub fn tokens_per_step(&self, block_size: usize) -> u64 {
        (self.batch_size as u64).saturating_mul(block_size as u64).saturating_mul(self.gradient_accumulation)
    }

    /// Formats notes on settings that differ from the default and have no effect, one line each.
    pub(crate) fn notes(&self) -> Vec<String> {
        let muon = self.optimizer == OptimizerKind::Muon;
        let wsd = self.schedule == Schedule::Wsd;
        [
            (!muon && self.matrix_lr != 0.0, "--matrix_lr has no effect without --optimizer muon"),
            (!muon && self.momentum != default_momentum(), "--momentum has no effect without --optimizer muon"),
            (
                !wsd && self.decay_fraction != default_decay_fraction(),
                "--decay_fraction has no effect without --schedule wsd",
            ),
            (
                self.sync_every == 1
                    && (self.outer_lr, self.outer_momentum) != (default_outer_lr(), default_outer_momentum()),
                "--outer_lr and --outer_momentum have no effect without --sync_every",
            ),
        ]
        .into_iter()
        .filter(|&(says, _)| says)
        .map(|(_, note)| note.into())
        .collect()
    }

    /// Engine options of these settings.
    pub fn options(&self) -> Options {
        let Self { threads, dtype, recompute, .. } = *self;
        Options { threads, dtype, recompute, ..Options::default() }
    }

    /// AdamW's parameters for the update `step`, from 1.
    pub(crate) fn adamw(&self, step: u64, lr: f32) -> AdamW {
        let Self { beta1, beta2, weight_decay, grad_clip, .. } = *self;
        AdamW { step, lr, beta1, beta2, eps: Self::EPS, weight_decay, grad_clip }
    }

    /// Muon's parameters for an update in which the other parameters have this learning rate; `None` without Muon.
    pub(crate) fn muon(&self, lr: f32) -> Option<Muon> {
        let Self { optimizer, learning_rate, matrix_lr, momentum, weight_decay, .. } = *self;
        let lr = if matrix_lr == 0.0 { lr } else { lr / learning_rate * matrix_lr };
        (optimizer == OptimizerKind::Muon).then_some(Muon { lr, momentum, weight_decay })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Recipe = Recipe { batch_size: 16, learning_rate: 3e-4, max_iters: 2_000 };

    fn model() -> Config {
        Config::new(1, 1, 512, 16, 100)
    }

    #[test]
    fn the_fast_recipe_is_a_set_of_defaults() {
        let fast = Overrides { recipe: Some(RecipeName::Fast), ..Overrides::default() };
        let settings = TrainSettings::settle(fast.clone(), &RECIPE, &model()).unwrap();
        assert_eq!((settings.optimizer, settings.schedule), (OptimizerKind::Muon, Schedule::Wsd));
        assert!((settings.learning_rate - 6e-3).abs() < 1e-8, "half the rate at four times the width");
        assert_eq!((settings.matrix_lr, settings.min_lr), (settings.learning_rate / 2.0, 0.0));
        assert_eq!((settings.beta1, settings.momentum), (0.65, 0.85));
        let beta2 = |batch_size, gradient_accumulation| {
            let (batch_size, gradient_accumulation) = (Some(batch_size), Some(gradient_accumulation));
            let asked = Overrides { batch_size, gradient_accumulation, ..fast.clone() };
            TrainSettings::settle(asked, &RECIPE, &model()).unwrap().beta2
        };
        assert!((beta2(128, 1) - 0.995).abs() < 1e-6, "128 sequences of 16 tokens");
        assert!((1.0 - beta2(512, 1) - 4.0 * 0.005).abs() < 2e-4, "four times the tokens, a quarter of the steps");
        assert_eq!(beta2(512, 1), beta2(128, 4), "however they are divided");
        assert_eq!((beta2(1, 1), beta2(100_000, 1)), (0.999, 0.9));
        let adamw = Overrides { optimizer: Some(OptimizerKind::AdamW), ..fast.clone() };
        assert!(TrainSettings::settle(adamw, &RECIPE, &model()).unwrap().notes().is_empty());
        let own = Overrides { learning_rate: Some(1e-3), schedule: Some(Schedule::Cosine), ..fast };
        let settings = TrainSettings::settle(own, &RECIPE, &model()).unwrap();
        assert_eq!((settings.learning_rate, settings.matrix_lr, settings.min_lr), (1e-3, 5e-4, 1e-3 / 10.0));
    }

    #[test]
    fn the_first_who_asks_is_heard() {
        let flags = Overrides { learning_rate: Some(1e-3), seed: Some(7), ..Overrides::default() };
        let file = Overrides { learning_rate: Some(2e-3), batch_size: Some(4), ..Overrides::default() };
        let settings = TrainSettings::settle(flags.or(file), &RECIPE, &model()).unwrap();
        assert_eq!(settings.learning_rate, 1e-3, "the command line overrides the file");
        assert_eq!(settings.batch_size, 4, "the file overrides the recipe");
        assert_eq!(settings.max_iters, 2_000, "the recipe fills in the rest");
        assert_eq!(settings.seed, 7);
    }

    #[test]
    fn what_depends_on_another_setting_follows_it() {
        let settle = |asked| TrainSettings::settle(asked, &RECIPE, &model()).unwrap();
        let settings = settle(Overrides { max_iters: Some(50), learning_rate: Some(0.5), ..Overrides::default() });
        assert_eq!(settings.min_lr, 0.05);
        assert_eq!(settings.warmup_iters, 5, "a tenth of a short run");
        assert_eq!(settle(Overrides::default()).warmup_iters, 100);
        let settings = settle(Overrides { eval_interval: Some(7), ..Overrides::default() });
        assert_eq!(settings.save_interval, 7);
    }

    #[test]
    fn settings_survive_being_asked_for_again() {
        let settings =
            TrainSettings::settle(Overrides { seed: Some(u64::MAX), ..Overrides::default() }, &RECIPE, &model())
                .unwrap();
        let again =
            TrainSettings::settle(settings.clone().into(), &Recipe { batch_size: 1, ..RECIPE }, &model()).unwrap();
        assert_eq!(again, settings);
        let json = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<TrainSettings>(&json).unwrap(), settings);
        let longer = TrainSettings { max_iters: 3_000, ..settings.clone() };
        assert_eq!(longer.changes_since(&settings), ["max_iters 2000 → 3000"]);
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let none = Overrides::default;
        let cases = [
            ("batch_size", Overrides { batch_size: Some(0), ..none() }),
            ("gradient_accumulation", Overrides { gradient_accumulation: Some(u64::MAX), ..none() }),
            ("log_interval", Overrides { log_interval: Some(0), ..none() }),
            ("save_interval", Overrides { save_interval: Some(0), ..none() }),
            ("learning_rate", Overrides { learning_rate: Some(0.0), ..none() }),
            ("learning_rate", Overrides { learning_rate: Some(f32::NAN), ..none() }),
            ("learning_rate", Overrides { learning_rate: Some(f32::INFINITY), ..none() }),
            ("min_lr", Overrides { min_lr: Some(1.0), ..none() }),
            ("min_lr", Overrides { min_lr: Some(f32::NAN), ..none() }),
            ("warmup_iters", Overrides { warmup_iters: Some(2_001), ..none() }),
            ("weight_decay", Overrides { weight_decay: Some(-0.1), ..none() }),
            ("weight_decay", Overrides { weight_decay: Some(1e6), ..none() }),
            ("grad_clip", Overrides { grad_clip: Some(f32::INFINITY), ..none() }),
            ("minutes", Overrides { minutes: Some(-1.0), ..none() }),
            ("minutes", Overrides { minutes: Some(f64::NAN), ..none() }),
            ("matrix_lr", Overrides { matrix_lr: Some(-1.0), ..none() }),
            ("weight_decay", Overrides { matrix_lr: Some(30.0), ..none() }),
            ("decay_fraction", Overrides { decay_fraction: Some(1.5), ..none() }),
            ("momentum", Overrides { momentum: Some(1.0), ..none() }),
            ("beta1", Overrides { beta1: Some(1.0), ..none() }),
            ("dropout", Overrides { dropout: Some(1.0), ..none() }),
            ("dropout", Overrides { dropout: Some(-0.1), ..none() }),
            ("val_fraction", Overrides { val_fraction: Some(1.0), ..none() }),
            ("threads", Overrides { threads: Some(100_000), ..none() }),
        ];
        for (name, asked) in cases {
            let error = TrainSettings::settle(asked, &RECIPE, &model()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: expected ")), "{name}: {error}");
        }
    }
}
