//! How a model is trained: every setting, what it means and what it is when nobody says.
//!
//! [`TrainSettings`] is what a run uses. [`Overrides`] is the same list with every entry optional: what a command line
//! or a TOML file asks for. [`TrainSettings::settle`] turns the second into the first, and holds every default.

use ngen3_engine::{AdamW, Dtype, Options};
use ngen3_model::Recipe;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config_file::Entries;

/// More threads than any machine has cores are a mistake.
const MAX_THREADS: usize = 1_024;

/// More micro-batches than a step of a week has are a mistake.
const MAX_ACCUMULATION: u64 = 1 << 20;

/// Writes the list of settings down once, as [`TrainSettings`] and as [`Overrides`].
macro_rules! settings {
    ($($(#[doc = $doc:literal])* $(#[serde($serde:meta)])? $name:ident: $type:ty,)*) => {
        /// Everything that decides how a run goes, but for the model's shape and the data.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct TrainSettings {
            $($(#[doc = $doc])* $(#[serde($serde)])? pub $name: $type,)*
        }

        /// Settings that somebody asked for; `None` where nobody did.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Overrides {
            $($(#[doc = $doc])* pub $name: Option<$type>,)*
        }

        impl Overrides {
            /// The names of the settings: the keys of a TOML file.
            pub const KEYS: &[&str] = &[$(stringify!($name)),*];

            /// These, and where these say nothing, `below`.
            pub fn or(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)* }
            }

            /// Takes its keys out of what a TOML file says.
            pub(crate) fn take_from(entries: &mut Entries) -> Result<Self, String> {
                Ok(Self { $($name: entries.take(stringify!($name))?,)* })
            }
        }

        impl From<TrainSettings> for Overrides {
            fn from(settings: TrainSettings) -> Self {
                Self { $($name: Some(settings.$name),)* }
            }
        }

        impl TrainSettings {
            /// The settings that differ from `before`, each as `name before → now`.
            pub fn changes_since(&self, before: &Self) -> Vec<String> {
                let mut changes = Vec::new();
                $(if self.$name != before.$name {
                    changes.push(format!("{} {} → {}", stringify!($name), said(&before.$name), said(&self.$name)));
                })*
                changes
            }
        }
    };
}

/// A setting as files and flags have it.
fn said(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and names serialise").trim_matches('"').into()
}

settings! {
    /// Optimizer steps of the whole run.
    max_iters: u64,
    /// Steps from one line of metrics.jsonl to the next.
    log_interval: u64,
    /// Steps from one evaluation on the validation tokens to the next.
    eval_interval: u64,
    /// Validation batches in an evaluation; always the same ones, so that evaluations can be compared.
    eval_iters: u64,
    /// Steps from one save to the next.
    save_interval: u64,
    /// Whether the model that stays is that of the lowest validation loss, not the latest.
    #[serde(default)]
    keep_best: bool,
    /// Evaluations without a lower validation loss after which the run stops; 0 is never.
    #[serde(default)]
    patience: u64,
    /// Rows of `block_size` tokens in one micro-batch.
    batch_size: usize,
    /// Micro-batches in one optimizer step.
    gradient_accumulation: u64,
    /// Peak learning rate.
    learning_rate: f32,
    /// Learning rate at the end of the run.
    min_lr: f32,
    /// Steps in which the learning rate climbs to its peak.
    warmup_iters: u64,
    /// AdamW's decay of matrices and embeddings.
    weight_decay: f32,
    /// AdamW's decay of the first moment.
    beta1: f32,
    /// AdamW's decay of the second moment.
    beta2: f32,
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    grad_clip: f32,
    /// Probability with which an activation is zeroed.
    dropout: f32,
    /// Decides the initial weights, the order of the data and the dropout masks.
    seed: u64,
    /// Share of the tokens, at their end, that are kept for validation.
    val_fraction: f64,
    /// Threads to compute with; 0 is all cores.
    threads: usize,
    /// Precision of the matrix products' operands.
    dtype: Dtype,
    /// Whether activations are computed again on the way back rather than kept.
    #[serde(default)]
    recompute: bool,
}

impl TrainSettings {
    /// AdamW's ε, which nobody has had reason to change.
    const EPS: f32 = 1e-8;

    /// Fills in what nobody asked for, from the variant's recipe and the defaults below.
    ///
    /// # Errors
    /// As [`TrainSettings::validate`].
    pub fn settle(asked: Overrides, recipe: &Recipe) -> Result<Self, Error> {
        let max_iters = asked.max_iters.unwrap_or(recipe.max_iters as u64);
        let learning_rate = asked.learning_rate.unwrap_or(recipe.learning_rate);
        let eval_interval = asked.eval_interval.unwrap_or(250);
        let settings = Self {
            max_iters,
            log_interval: asked.log_interval.unwrap_or(10),
            eval_interval,
            eval_iters: asked.eval_iters.unwrap_or(20),
            save_interval: asked.save_interval.unwrap_or(eval_interval),
            keep_best: asked.keep_best.unwrap_or(false),
            patience: asked.patience.unwrap_or(0),
            batch_size: asked.batch_size.unwrap_or(recipe.batch_size),
            gradient_accumulation: asked.gradient_accumulation.unwrap_or(1),
            learning_rate,
            min_lr: asked.min_lr.unwrap_or(learning_rate / 10.0),
            warmup_iters: asked.warmup_iters.unwrap_or(Self::default_warmup(max_iters)),
            weight_decay: asked.weight_decay.unwrap_or(0.1),
            beta1: asked.beta1.unwrap_or(0.9),
            // 0.95 rather than Adam's 0.999: a shorter memory is steadier at few tokens a step (Brown et al. 2020).
            beta2: asked.beta2.unwrap_or(0.95),
            grad_clip: asked.grad_clip.unwrap_or(1.0),
            dropout: asked.dropout.unwrap_or(0.0),
            seed: asked.seed.unwrap_or(1337),
            val_fraction: asked.val_fraction.unwrap_or(0.1),
            threads: asked.threads.unwrap_or(0),
            dtype: asked.dtype.unwrap_or_default(),
            recompute: asked.recompute.unwrap_or(false),
        };
        settings.validate()?;
        Ok(settings)
    }

    /// 100 steps, but in a short run a tenth of them.
    pub(crate) fn default_warmup(max_iters: u64) -> u64 {
        100.min(max_iters / 10)
    }

    /// Tokens that one optimizer step trains on, in rows of `block_size`.
    pub fn tokens_per_step(&self, block_size: usize) -> u64 {
        (self.batch_size as u64).saturating_mul(block_size as u64).saturating_mul(self.gradient_accumulation)
    }

    /// What they say to the engine.
    pub fn options(&self) -> Options {
        let Self { threads, dtype, recompute, .. } = *self;
        Options { threads, dtype, recompute, ..Options::default() }
    }

    /// The update numbered `step`, from 1.
    pub(crate) fn adamw(&self, step: u64, lr: f32) -> AdamW {
        let Self { beta1, beta2, weight_decay, grad_clip, .. } = *self;
        AdamW { step, lr, beta1, beta2, eps: Self::EPS, weight_decay, grad_clip }
    }

    /// Checks that every setting is one a run can have.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the first that is not, and what it must be.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |name: &str, value: &dyn std::fmt::Display, must: &str| {
            Err(Error::Usage(format!("{name} is {value}; it must be {must}")))
        };
        let at_least_one = [
            ("log_interval", self.log_interval),
            ("eval_interval", self.eval_interval),
            ("eval_iters", self.eval_iters),
            ("save_interval", self.save_interval),
            ("batch_size", self.batch_size as u64),
            ("gradient_accumulation", self.gradient_accumulation),
        ];
        for (name, value) in at_least_one {
            if value == 0 {
                return wrong(name, &value, "at least 1");
            }
        }
        if self.gradient_accumulation > MAX_ACCUMULATION {
            return wrong("gradient_accumulation", &self.gradient_accumulation, &format!("at most {MAX_ACCUMULATION}"));
        }
        if self.threads > MAX_THREADS {
            return wrong("threads", &self.threads, &format!("at most {MAX_THREADS}"));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return wrong("learning_rate", &self.learning_rate, "a number above 0");
        }
        if !(0.0..=self.learning_rate).contains(&self.min_lr) {
            let must = format!("between 0 and the learning_rate of {}", self.learning_rate);
            return wrong("min_lr", &self.min_lr, &must);
        }
        if self.warmup_iters > self.max_iters {
            let must = format!("at most max_iters, which is {}", self.max_iters);
            return wrong("warmup_iters", &self.warmup_iters, &must);
        }
        for (name, value) in [("weight_decay", self.weight_decay), ("grad_clip", self.grad_clip)] {
            if !(value >= 0.0 && value.is_finite()) {
                return wrong(name, &value, "a number of at least 0");
            }
        }
        for (name, value) in [("beta1", self.beta1), ("beta2", self.beta2), ("dropout", self.dropout)] {
            if !(0.0..1.0).contains(&value) {
                return wrong(name, &value, "at least 0 and below 1");
            }
        }
        if !(0.0..1.0).contains(&self.val_fraction) {
            return wrong("val_fraction", &self.val_fraction, "at least 0 and below 1");
        }
        Ok(())
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
