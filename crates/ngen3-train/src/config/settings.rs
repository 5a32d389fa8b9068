//! The settings of a run: the one list of them, with what each means and is when nobody asks.
//!
//! [`TrainSettings`] is what a run uses. [`Overrides`] is the same list with every entry optional: what a command line
//! or a TOML file asks for. [`TrainSettings::settle`] turns the second into the first.

use std::fmt::Display;

use ngen3_engine::{AdamW, Dtype, Options};
use ngen3_model::Recipe;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::field::optional_fields;

/// More threads than any machine has cores are a mistake.
const MAX_THREADS: usize = 1_024;

/// More micro-batches than a step of a week has are a mistake.
const MAX_ACCUMULATION: u64 = 1 << 20;

/// Makes [`TrainSettings`] and [`Overrides`] of the list below. Of each setting it says, in this order:
///
/// - `name: type`;
/// - `= DEFAULT`, which may use the settings above it and the variant's `recipe`, and then has a `=> "TEXT"` for the help;
/// - its range: a function that returns, as an error, what the value must be; it may use the other settings;
/// - `"VALUE_NAME": "HELP"` of its flag.
macro_rules! settings {
    (
        $recipe:ident
        $(
            $(#[doc = $doc:literal])* $(#[serde($serde:meta)])?
            $name:ident: $type:ty = $default:expr $(=> $default_text:literal)?,
                $range:expr, $value_name:literal: $help:literal;
        )*
    ) => {
        /// Everything that decides how a run goes, but for the model's shape and the data.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct TrainSettings {
            $($(#[doc = $doc])* $(#[serde($serde)])? pub $name: $type,)*
        }

        optional_fields! {
            /// Settings that somebody asked for; `None` where nobody did.
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
            /// Fills in what nobody asked for, from the variant's recipe and the defaults of the list.
            ///
            /// # Errors
            /// As [`TrainSettings::validate`].
            pub fn settle(asked: Overrides, $recipe: &Recipe) -> Result<Self, Error> {
                $(let $name: $type = asked.$name.unwrap_or($default);)*
                let settings = Self { $($name),* };
                settings.validate()?;
                Ok(settings)
            }

            /// Checks that every setting is in its range.
            ///
            /// # Errors
            /// [`Error::Usage`] naming the first that is not, and what it must be.
            pub fn validate(&self) -> Result<(), Error> {
                let Self { $($name),* } = self;
                $(check(stringify!($name), $name, $range)?;)*
                Ok(())
            }

            /// The settings that differ from `before`, each as `name before → now`.
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

/// The default of a setting as the help text has it.
macro_rules! default_text {
    ($default:expr) => {
        &$default
    };
    ($default:expr => $text:literal) => {
        &$text
    };
}

settings! {
    recipe
    /// Optimizer steps of the whole run.
    max_iters: u64 = recipe.max_iters as u64 => "the variant's", any, "N": "Steps of the whole run";
    /// Steps from one line of metrics.jsonl to the next.
    log_interval: u64 = 10, at_least_1,
        "N": "Steps between two lines of metrics.jsonl, and of the output where it is no terminal";
    /// Steps from one evaluation on the validation tokens to the next.
    eval_interval: u64 = 250, at_least_1, "N": "Steps between two evaluations";
    /// Validation batches in an evaluation; always the same ones, so that evaluations can be compared.
    eval_iters: u64 = 20, at_least_1, "N": "Validation batches in an evaluation";
    /// Steps from one save to the next.
    save_interval: u64 = eval_interval => "eval_interval", at_least_1, "N": "Steps between two saves";
    /// `true` if the model that stays is that of the lowest validation loss, not the latest.
    #[serde(default)]
    keep_best: bool = false, any,
        "true|false": "Keep the model of the lowest validation loss rather than the latest";
    /// Evaluations without a lower validation loss after which the run stops; 0 disables it.
    #[serde(default)]
    patience: u64 = 0, any, "N": "Stop after so many evaluations without a lower validation loss; 0 is never";
    /// Rows of `block_size` tokens in one micro-batch.
    batch_size: usize = recipe.batch_size => "the variant's", at_least_1, "N": "Rows in a batch";
    /// Micro-batches in one optimizer step.
    gradient_accumulation: u64 = 1, |n| at_least_1(n).and(at_most(n, MAX_ACCUMULATION)),
        "N": "Batches whose gradients make one step";
    /// Peak learning rate.
    learning_rate: f32 = recipe.learning_rate => "the variant's",
        |&lr| must(lr > 0.0 && lr.is_finite(), "a number above 0"), "LR": "Highest learning rate";
    /// Learning rate at the end of the run.
    min_lr: f32 = learning_rate / 10.0 => "learning_rate / 10",
        |lr| must((0.0..=*learning_rate).contains(lr), format!("between 0 and the learning_rate of {learning_rate}")),
        "LR": "Learning rate at the end, after a cosine";
    /// Steps in which the learning rate climbs to its peak.
    warmup_iters: u64 = Self::default_warmup(max_iters) => "100, in a short run a tenth of it",
        |n| must(n <= max_iters, format!("at most max_iters, which is {max_iters}")),
        "N": "Steps in which the learning rate climbs";
    /// AdamW's decay of matrices and embeddings.
    weight_decay: f32 = 0.1, not_negative, "X": "AdamW's decay of matrices and embeddings";
    /// AdamW's decay of the first moment.
    beta1: f32 = 0.9, share, "X": "AdamW's first beta";
    /// AdamW's decay of the second moment. 0.95 rather than Adam's 0.999: a shorter memory is steadier at few tokens a step
    /// (Brown et al. 2020).
    beta2: f32 = 0.95, share, "X": "AdamW's second beta";
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    grad_clip: f32 = 1.0, not_negative, "X": "Largest norm of the gradient; 0 lets it be any";
    /// Probability with which an activation is zeroed.
    dropout: f32 = 0.0, share, "P": "Share of activations that are zeroed";
    /// Decides the initial weights, the order of the data and the dropout masks.
    seed: u64 = 1337, any, "N": "Decides the first weights, the batches and the dropout";
    /// Share of the tokens, at their end, that are kept for validation.
    val_fraction: f64 = 0.1, share,
        "P": "Share of the tokens, at their end, to validate on, where there is no val.bin";
    /// Threads to compute with; 0 is all cores.
    threads: usize = 0, |n| at_most(n, MAX_THREADS), "N": "Threads to compute with; 0 is all cores";
    /// Precision of the matrix products' operands.
    dtype: Dtype = Dtype::Auto, any,
        "TYPE": "Numbers to compute with: auto (the fastest that the processor has), f32 or bf16";
    /// `true` if activations are computed again on the way back rather than kept.
    #[serde(default)]
    recompute: bool = false, any,
        "true|false": "Keep only each layer's input and compute the rest again on the way back: the same numbers in less \
                       memory and an eighth to a quarter more time";
}

/// Checks a setting against its range.
fn check<T: Display>(name: &str, value: &T, range: impl FnOnce(&T) -> Result<(), String>) -> Result<(), Error> {
    range(value).map_err(|must| Error::Usage(format!("{name} is {value}; it must be {must}")))
}

/// Fails with what a value must be if a condition does not hold.
fn must(holds: bool, be: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(be.into()) }
}

/// The range of all values.
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
    must(*value >= 0.0 && value.is_finite(), "a number of at least 0")
}

fn share<T: PartialOrd + From<u8>>(value: &T) -> Result<(), String> {
    must((T::from(0)..T::from(1)).contains(value), "at least 0 and below 1")
}

/// The text of a setting in files and flags.
fn text_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and names serialise").trim_matches('"').into()
}

impl TrainSettings {
    /// AdamW's ε, which nobody has had reason to change.
    const EPS: f32 = 1e-8;

    /// 100 steps, but in a short run a tenth of them.
    pub(crate) fn default_warmup(max_iters: u64) -> u64 {
        100.min(max_iters / 10)
    }

    /// Tokens that one optimizer step trains on, in rows of `block_size`.
    pub fn tokens_per_step(&self, block_size: usize) -> u64 {
        (self.batch_size as u64).saturating_mul(block_size as u64).saturating_mul(self.gradient_accumulation)
    }

    /// The options of an engine that trains with these settings.
    pub fn options(&self) -> Options {
        let Self { threads, dtype, recompute, .. } = *self;
        Options { threads, dtype, recompute, ..Options::default() }
    }

    /// The update numbered `step`, from 1.
    pub(crate) fn adamw(&self, step: u64, lr: f32) -> AdamW {
        let Self { beta1, beta2, weight_decay, grad_clip, .. } = *self;
        AdamW { step, lr, beta1, beta2, eps: Self::EPS, weight_decay, grad_clip }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Recipe = Recipe { batch_size: 16, learning_rate: 3e-4, max_iters: 2_000 };

    #[test]
    fn the_first_who_asks_is_heard() {
        let flags = Overrides { learning_rate: Some(1e-3), seed: Some(7), ..Overrides::default() };
        let file = Overrides { learning_rate: Some(2e-3), batch_size: Some(4), ..Overrides::default() };
        let settings = TrainSettings::settle(flags.or(file), &RECIPE).unwrap();
        assert_eq!(settings.learning_rate, 1e-3, "the command line comes before the file");
        assert_eq!(settings.batch_size, 4, "the file comes before the recipe");
        assert_eq!(settings.max_iters, 2_000, "the recipe fills in the rest");
        assert_eq!(settings.seed, 7);
    }

    #[test]
    fn what_depends_on_another_setting_follows_it() {
        let settle = |asked| TrainSettings::settle(asked, &RECIPE).unwrap();
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
            TrainSettings::settle(Overrides { seed: Some(u64::MAX), ..Overrides::default() }, &RECIPE).unwrap();
        let again = TrainSettings::settle(settings.clone().into(), &Recipe { batch_size: 1, ..RECIPE }).unwrap();
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
            ("grad_clip", Overrides { grad_clip: Some(f32::INFINITY), ..none() }),
            ("beta1", Overrides { beta1: Some(1.0), ..none() }),
            ("dropout", Overrides { dropout: Some(1.0), ..none() }),
            ("dropout", Overrides { dropout: Some(-0.1), ..none() }),
            ("val_fraction", Overrides { val_fraction: Some(1.0), ..none() }),
            ("threads", Overrides { threads: Some(100_000), ..none() }),
        ];
        for (name, asked) in cases {
            let error = TrainSettings::settle(asked, &RECIPE).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name} is ")), "{name}: {error}");
        }
    }
}
