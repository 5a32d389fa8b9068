//! Defaults of `finetune` that differ from those of `train`, and their help texts.

use crate::Overrides;

/// Help texts of flags with other defaults in `finetune`: (setting, help).
pub const FINETUNE_HELP: [(&str, &str); 4] = [
    ("max_iters", "Same as --finetune_iters"),
    ("eval_interval", "Steps between evaluations [default: finetune_iters / 20]"),
    ("keep_best", "Keep the model with the lowest validation loss instead of the latest [default: true]"),
    ("learning_rate", "Peak learning rate [default: a third of the variant's; with --lora_rank the variant's]"),
];

/// Fills in the defaults of fine-tuning. The weights are trained already, so the learning rate is lower, evaluations are more
/// frequent, and the best model is kept. Adapters start from zero and use the learning rate of training from scratch.
/// `recipe_lr` is the variant's learning rate.
pub(crate) fn finetune_defaults(asked: Overrides, recipe_lr: f32, adapters: bool) -> Overrides {
    let max_iters = asked.max_iters.unwrap_or(1_000);
    let defaults = Overrides {
        max_iters: Some(max_iters),
        learning_rate: Some(if adapters { recipe_lr } else { recipe_lr / 3.0 }),
        eval_interval: Some((max_iters / 20).max(1)),
        keep_best: Some(true),
        ..Overrides::default()
    };
    asked.or(defaults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asks_for_follows_from_the_run() {
        let asked = |max_iters, learning_rate| Overrides { max_iters, learning_rate, ..Overrides::default() };
        let found = finetune_defaults(asked(None, None), 3e-4, false);
        assert_eq!((found.max_iters, found.eval_interval, found.keep_best), (Some(1_000), Some(50), Some(true)));
        assert!((found.learning_rate.unwrap() - 1e-4).abs() < 1e-9);
        assert_eq!(finetune_defaults(asked(None, None), 3e-4, true).learning_rate, Some(3e-4));
        let found = finetune_defaults(asked(Some(7), Some(0.5)), 3e-4, false);
        assert_eq!((found.max_iters, found.eval_interval, found.learning_rate), (Some(7), Some(1), Some(0.5)));
    }
}
