//! Batches of token sequences.

use ngen3_model::Config;

use crate::Error;

/// Target of a position that has no loss (PyTorch's `ignore_index`).
pub const IGNORE: u32 = u32::MAX;

/// Maximum number of tokens in one pass. A larger batch is split into passes of whole sequences: a sequence stays with those
/// that continue it, and one that is longer than this is a pass of its own. Every engine splits a training batch alike, since
/// each pass has its own dropout seed ([`pass_seed`](crate::pass_seed)).
pub const PASS_TOKENS: usize = 2048;

/// One sequence of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Number of tokens, at least 1.
    pub len: usize,
    /// True if it continues a prefix: the nearest sequence before it that continues none. It attends to the prefix, and its
    /// positions count on from the prefix's length. Sequences with the same prefix do not attend to each other. For evaluation
    /// only: such a batch has no gradient.
    pub continues: bool,
}

/// Token sequences, concatenated, with a target for each position.
///
/// Sequences can differ in length and are not padded. They do not attend to each other, and the positions of each start at 0;
/// [`Sequence::continues`] is the exception to both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[tokens]`: token ids.
    pub inputs: Vec<u32>,
    /// `[tokens]`: the token that follows each position, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// The sequences in order; their lengths add up to `tokens`.
    pub sequences: Vec<Sequence>,
}

impl Batch {
    /// Creates a batch of sequences of `seq_len` tokens each.
    pub fn even(seq_len: usize, inputs: Vec<u32>, targets: Vec<u32>) -> Self {
        let count = inputs.len().div_ceil(seq_len.max(1));
        Self { inputs, targets, sequences: vec![Sequence { len: seq_len, continues: false }; count] }
    }

    /// Appends a sequence.
    pub fn push(&mut self, inputs: &[u32], targets: &[u32]) {
        self.add(inputs, targets, false);
    }

    /// Appends a sequence that continues the last one added by [`Batch::push`].
    pub fn push_after(&mut self, inputs: &[u32], targets: &[u32]) {
        self.add(inputs, targets, true);
    }

    fn add(&mut self, inputs: &[u32], targets: &[u32], continues: bool) {
        self.inputs.extend_from_slice(inputs);
        self.targets.extend_from_slice(targets);
        self.sequences.push(Sequence { len: inputs.len(), continues });
    }

    /// Removes all sequences but keeps the allocated memory.
    pub fn clear(&mut self) {
        self.inputs.clear();
        self.targets.clear();
        self.sequences.clear();
    }

    /// Number of targets that are not [`IGNORE`].
    pub fn num_target_tokens(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }

    /// Returns [`Batch::num_target_tokens`], the divisor of a mean loss.
    ///
    /// # Errors
    /// [`Error::Input`] when it is 0.
    pub fn check_targets(&self) -> Result<usize, Error> {
        match self.num_target_tokens() {
            0 => Err(Error::Input("the batch has no targets: all are ignored".into())),
            targets => Ok(targets),
        }
    }

    /// Returns the mean over the targets that are not ignored of `losses`, `[tokens]`.
    ///
    /// # Errors
    /// As [`Batch::check_targets`].
    pub fn mean(&self, losses: &[f32]) -> Result<f32, Error> {
        let total = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        Ok((total / self.check_targets()? as f64) as f32)
    }

    /// Checks the batch against a model's shape.
    ///
    /// # Errors
    /// [`Error::Input`] when a sequence is empty or, with its prefix, longer than `block_size`; when the first sequence
    /// continues another; when `inputs`, `targets` and the lengths disagree; when a token or target is outside the vocabulary.
    pub fn check(&self, config: &Config) -> Result<(), Error> {
        let Self { inputs, targets, sequences } = self;
        let block = config.block_size;
        let mut total = 0usize;
        let mut before = None;
        for sequence in sequences {
            let prefix = match (sequence.continues, before) {
                (false, _) => 0,
                (true, Some(len)) => len,
                (true, None) => {
                    return Err(Error::Input("the first sequence of a batch cannot continue another".into()));
                }
            };
            if sequence.len == 0 {
                return Err(Error::Input("a sequence of the batch has no tokens".into()));
            }
            if sequence.len.saturating_add(prefix) > block {
                let len = sequence.len.saturating_add(prefix);
                return Err(Error::Input(format!(
                    "a sequence of {len} tokens exceeds the model's context length of {block}"
                )));
            }
            if !sequence.continues {
                before = Some(sequence.len);
            }
            total += sequence.len;
        }
        if total == 0 || inputs.len() != total || targets.len() != total {
            let (inputs, targets) = (inputs.len(), targets.len());
            return Err(Error::Input(format!(
                "expected {total} inputs and targets, the sum of the sequence lengths, got {inputs} and {targets}"
            )));
        }
        check_tokens(inputs, config)?;
        match targets.iter().find(|&&target| target != IGNORE && target as usize >= config.vocab_size) {
            Some(target) => Err(outside(*target, config)),
            None => Ok(()),
        }
    }
}

/// Checks that every token is in the vocabulary.
///
/// # Errors
/// [`Error::Input`] naming the first token that is not.
pub fn check_tokens(tokens: &[u32], config: &Config) -> Result<(), Error> {
    match tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
        Some(token) => Err(outside(*token, config)),
        None => Ok(()),
    }
}

fn outside(token: u32, config: &Config) -> Error {
    Error::Input(format!("token {token} is outside the vocabulary of {}", config.vocab_size))
}
