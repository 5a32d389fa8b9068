//! Token sequences to compute with.

use ngen3_model::Config;

use crate::Error;

/// Marks a position whose next token is not to be predicted.
pub const IGNORE: u32 = u32::MAX;

/// Tokens of a batch that go through a model together: a larger batch goes through in passes of up to so many, or of one sequence
/// where that is longer. Sequences are never cut, and one stays with those that continue it.
pub const PASS_TOKENS: usize = 2048;

/// One sequence of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Number of tokens.
    pub len: usize,
    /// True if it continues the last sequence before it that continues none: it attends to that one's tokens, and its positions
    /// go on after them. Several may continue the same one and do not attend to each other. Losses only, no gradients.
    pub continues: bool,
}

/// Token sequences back to back and, for each token, the one that follows it.
///
/// Sequences may be of different lengths: nothing is padded. They never attend to each other, and their positions start at 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[tokens]`
    pub inputs: Vec<u32>,
    /// `[tokens]`: what is to be predicted at each position, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// Their lengths add up to `tokens`.
    pub sequences: Vec<Sequence>,
}

impl Batch {
    /// Sequences of `seq_len` tokens each.
    pub fn even(seq_len: usize, inputs: Vec<u32>, targets: Vec<u32>) -> Self {
        let count = inputs.len().div_ceil(seq_len.max(1));
        Self { inputs, targets, sequences: vec![Sequence { len: seq_len, continues: false }; count] }
    }

    /// Adds a sequence.
    pub fn push(&mut self, inputs: &[u32], targets: &[u32]) {
        self.add(inputs, targets, false);
    }

    /// Adds a sequence that continues the last one added by [`Batch::push`].
    pub fn push_after(&mut self, inputs: &[u32], targets: &[u32]) {
        self.add(inputs, targets, true);
    }

    fn add(&mut self, inputs: &[u32], targets: &[u32], continues: bool) {
        self.inputs.extend_from_slice(inputs);
        self.targets.extend_from_slice(targets);
        self.sequences.push(Sequence { len: inputs.len(), continues });
    }

    /// Takes all sequences out; what was allocated is kept.
    pub fn clear(&mut self) {
        self.inputs.clear();
        self.targets.clear();
        self.sequences.clear();
    }

    /// Number of targets that are not [`IGNORE`].
    pub fn num_target_tokens(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }

    /// Number of targets that are not [`IGNORE`], of which there must be one.
    ///
    /// # Errors
    /// [`Error::Input`] when there is none: there is no mean.
    pub fn check_targets(&self) -> Result<usize, Error> {
        match self.num_target_tokens() {
            0 => Err(Error::Input("no target of the batch counts".into())),
            targets => Ok(targets),
        }
    }

    /// Checks that a model of this shape can take the batch.
    ///
    /// # Errors
    /// [`Error::Input`] for sequences that are empty, that reach past the block or do not add up, for a first one that continues
    /// nothing, or a token outside the vocabulary.
    pub fn check(&self, config: &Config) -> Result<(), Error> {
        let Self { inputs, targets, sequences } = self;
        let block = config.block_size;
        let mut total = 0usize;
        let mut before = None;
        for sequence in sequences {
            let prefix = match (sequence.continues, before) {
                (false, _) => 0,
                (true, Some(len)) => len,
                (true, None) => return Err(Error::Input("the first row of a batch continues nothing".into())),
            };
            if sequence.len == 0 {
                return Err(Error::Input("a row without tokens".into()));
            }
            if sequence.len.saturating_add(prefix) > block {
                let len = sequence.len.saturating_add(prefix);
                return Err(Error::Input(format!("a row of {len} tokens in a model with a block of {block}")));
            }
            if !sequence.continues {
                before = Some(sequence.len);
            }
            total += sequence.len;
        }
        if total == 0 || inputs.len() != total || targets.len() != total {
            let (inputs, targets) = (inputs.len(), targets.len());
            return Err(Error::Input(format!(
                "{inputs} inputs and {targets} targets do not make rows of {total} tokens"
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
/// [`Error::Input`] naming the first that is not.
pub fn check_tokens(tokens: &[u32], config: &Config) -> Result<(), Error> {
    match tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
        Some(token) => Err(outside(*token, config)),
        None => Ok(()),
    }
}

fn outside(token: u32, config: &Config) -> Error {
    Error::Input(format!("token {token} is outside the vocabulary of {}", config.vocab_size))
}
