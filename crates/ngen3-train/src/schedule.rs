//! Learning rate schedules: linear warm-up, with nanoGPT's formula, then the course of [`Schedule`].

use crate::TrainSettings;
use crate::config::choices::Schedule;

impl TrainSettings {
    /// Returns the learning rate of update `step`, from 0.
    pub fn lr_at(&self, step: u64) -> f32 {
        let (peak, floor) = (f64::from(self.learning_rate), f64::from(self.min_lr));
        if step < self.warmup_iters {
            return (peak * (step + 1) as f64 / (self.warmup_iters + 1) as f64) as f32;
        }
        if step >= self.max_iters {
            return self.min_lr;
        }
        let done = (step - self.warmup_iters) as f64 / (self.max_iters - self.warmup_iters) as f64;
        let share = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Schedule::Linear => 1.0 - done,
            Schedule::Wsd => {
                // At most all of the run after the warm-up.
                let decays = (self.decay_fraction * self.max_iters as f64)
                    .clamp(1.0, (self.max_iters - self.warmup_iters) as f64);
                ((self.max_iters - step) as f64 / decays).min(1.0)
            }
        };
        (floor + share * (peak - floor)) as f32
    }
}

#[cfg(test)]
mod tests {
    use ngen3_model::{Config, Recipe};

    use crate::{Overrides, TrainSettings};

    fn settings(max_iters: u64, warmup_iters: u64) -> TrainSettings {
        let asked = Overrides {
            max_iters: Some(max_iters),
            warmup_iters: Some(warmup_iters),
            min_lr: Some(0.1),
            ..Overrides::default()
        };
        TrainSettings::settle(
            asked,
            &Recipe { batch_size: 1, learning_rate: 1.0, max_iters: 1 },
            &Config::new(1, 1, 4, 4, 5),
        )
        .unwrap()
    }

    #[test]
    fn it_climbs_and_falls_as_nanogpt_s_does() {
        let settings = settings(1_000, 99);
        // Values of nanoGPT's get_lr for the same settings.
        let expected =
            [(0, 0.01), (49, 0.5), (98, 0.99), (99, 1.0), (324, 0.868_475), (549, 0.550_785), (999, 0.100_003)];
        for (step, lr) in expected {
            let found = settings.lr_at(step);
            assert!((found - lr).abs() < 1e-5, "step {step}: expected {lr}, got {found}");
        }
        assert_eq!(settings.lr_at(1_000), 0.1);
        assert_eq!(settings.lr_at(u64::MAX), 0.1);
    }

    #[test]
    fn no_warm_up_starts_at_the_peak_and_all_warm_up_never_divides_by_zero() {
        assert_eq!(settings(10, 0).lr_at(0), 1.0);
        assert!((0..=10).all(|step| settings(10, 10).lr_at(step).is_finite()));
        assert_eq!(settings(0, 0).lr_at(0), 0.1);
    }
}
