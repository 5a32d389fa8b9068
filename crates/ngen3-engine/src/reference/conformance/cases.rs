//! The models and batches that devices are compared on, and how near a device has to come.

use ngen3_model::{Activation, Config, Family, Rope, RopeScaling};

use crate::{Batch, IGNORE, splitmix};

/// A model and a batch that engines are compared on.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name in messages.
    pub name: &'static str,
    /// The model's shape.
    pub config: Config,
    /// The batch; if one of its sequences continues another only losses are compared.
    pub batch: Batch,
    /// Dropout in training.
    pub dropout: f32,
}

/// Largest differences from the reference.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Of a loss in nats or a log probability, relative where that is above 1; of logits, relative to their norm.
    pub loss: f64,
    /// Of the gradient of each parameter, relative to its norm.
    pub gradient: f64,
}

impl Case {
    /// True unless a sequence of the batch continues another: such a batch has losses only.
    pub fn has_gradient(&self) -> bool {
        !self.batch.sequences.iter().any(|sequence| sequence.continues)
    }
}

impl Tolerance {
    /// For products in f32.
    pub const F32: Self = Self { loss: 5e-6, gradient: 2e-5 };
    /// For operands of products rounded to bf16, those of adapters too.
    pub const BF16: Self = Self { loss: 0.1, gradient: 0.15 };
}

/// Sequences of these lengths, whose tokens follow from `seed`; of their targets one in `ignored` is [`IGNORE`].
fn batch(config: &Config, lens: &[usize], ignored: u64, seed: u64) -> Batch {
    let mut batch = Batch::default();
    for (sequence, &len) in lens.iter().enumerate() {
        let token = |i: usize, which: u64| {
            let bits = splitmix(splitmix(seed + 100 * which) ^ splitmix((sequence << 20 | i) as u64));
            (bits % config.vocab_size as u64) as u32
        };
        let target = |i| if i as u64 % ignored == ignored - 1 { IGNORE } else { token(i, 1) };
        let (inputs, targets): (Vec<_>, Vec<_>) = (0..len).map(|i| (token(i, 0), target(i))).unzip();
        batch.push(&inputs, &targets);
    }
    batch
}

/// The cases, smallest first.
pub fn cases() -> Vec<Case> {
    let smallest = Config::new(1, 1, 1, 1, 2);
    let parity = Config::new(2, 3, 12, 5, 97);
    let uneven = Config { block_size: 40, ..parity.clone() };
    let narrow_heads = Config::new(1, 7, 7, 9, 11);
    let past_tiles = Config::new(3, 2, 34, 70, 301);
    let exact_gelu =
        Config { activation: Activation::Gelu, layer_norm_epsilon: 1e-3, ..Config::new(2, 5, 40, 33, 1031) };
    let without_biases = Config { bias: false, ..Config::new(2, 3, 12, 40, 97) };
    let passes = Config::new(1, 2, 8, 64, 53);
    let llama = Config::llama(2, 6, 2, 36, 21, 40, 97);
    let llama_biases = Config { qkv_bias: true, mlp_bias: true, ..Config::llama(2, 3, 3, 30, 17, 20, 61) };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 10,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: false,
        attention_factor: 1.2,
    };
    let qwen2 = Config {
        family: Family::Qwen2,
        qkv_bias: true,
        tied: false,
        rope: Some(Rope { theta: 100.0, context: 70, scaling: yarn }),
        ..Config::llama(1, 4, 4, 24, 33, 70, 301)
    };
    let qwen3 =
        Config { family: Family::Qwen3, qk_norm: true, head_dim: Some(10), ..Config::llama(2, 3, 1, 12, 40, 33, 61) };
    let all = u64::MAX;
    let mut one_target = batch(&uneven, &[40, 7], all, 8);
    one_target.targets.iter_mut().skip(1).for_each(|target| *target = IGNORE);
    let mut continued = batch(&uneven, &[5, 11], 3, 9);
    for (ending, len) in [(0, 4), (1, 29), (2, 1)] {
        let Batch { inputs, targets, .. } = batch(&uneven, &[len], all, 10 + ending);
        continued.push_after(&inputs, &targets);
    }
    let case = |name, config: &Config, batch, dropout| Case { name, config: config.clone(), batch, dropout };
    vec![
        case("the smallest model", &smallest, batch(&smallest, &[1, 1, 1], all, 1), 0.0),
        case("the fixtures' model", &parity, batch(&parity, &[5; 5], all, 2), 0.0),
        case("heads of width 1", &narrow_heads, batch(&narrow_heads, &[9, 8], 4, 3), 0.2),
        case("uneven sequences, ignored targets, dropout", &uneven, batch(&uneven, &[40, 1, 17, 33], 3, 4), 0.2),
        case("one target", &uneven, one_target, 0.0),
        case("sequences that continue another", &uneven, continued, 0.0),
        case("longer than a tile", &past_tiles, batch(&past_tiles, &[70, 70, 3], all, 5), 0.0),
        case("exact GELU, large epsilon, dropout", &exact_gelu, batch(&exact_gelu, &[33, 20, 7], 5, 6), 0.1),
        case("no biases", &without_biases, batch(&without_biases, &[40, 9], 4, 11), 0.1),
        case("Llama, dropout", &llama, batch(&llama, &[40, 1, 17], 3, 12), 0.2),
        case("Llama with biases", &llama_biases, batch(&llama_biases, &[20, 11], 3, 15), 0.1),
        case("Qwen2, own head, several tiles", &qwen2, batch(&qwen2, &[70, 69], all, 13), 0.0),
        case("Qwen3, heads wider than the model", &qwen3, batch(&qwen3, &[33, 9], 4, 14), 0.1),
        case("several passes, dropout", &passes, batch(&passes, &[61; 42], 7, 7), 0.3),
    ]
}
