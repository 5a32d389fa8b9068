//! Training sequences, each within one conversation.
//!
//! A conversation that fits into the model's block is one sequence. A longer one is split before turns into several, each but the
//! first beginning with one earlier turn as context, which is not learned again. A text without turns is split anywhere, and so
//! is a conversation that cannot be split where turns are known because the template does not reveal all of them. A batch holds
//! as many sequences as fit into `batch_size` × `block_size` tokens. In an epoch every sequence comes once, in an order that the
//! seed and the epoch determine; the contents of a batch depend on the seed and its number alone, so a resumed run draws the
//! same batches as an uninterrupted one.

use std::ops::Range;
use std::str::FromStr;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::chats::Chats;
use super::marks;
use crate::Error;
use crate::batch::{check_sizes, rng_of};
use crate::tokenizer::{ByteCounter, TextSize};

/// Target that the loss ignores.
pub const IGNORE_INDEX: u32 = u32::MAX;

/// Seed for choosing the held-out conversations and their order. It is fixed, so that runs with different seeds can be compared.
const HELD_OUT_SEED: u64 = 0x6865_6c64;

/// Turns that are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainOn {
    /// The assistant's; of a text without turns, all of it.
    #[default]
    Assistant,
    /// Every turn.
    All,
}

impl FromStr for TrainOn {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "assistant" => Ok(Self::Assistant),
            "all" => Ok(Self::All),
            _ => Err(Error::Input(format!("unknown turns {name:?}: expected assistant or all"))),
        }
    }
}

/// Treatment of conversations longer than the block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TooLong {
    /// Split between turns; a single message that is too long is an error.
    #[default]
    Split,
    /// Keep the last tokens.
    CutLeft,
    /// Keep the first tokens.
    CutRight,
    /// Skip the conversation.
    Skip,
    /// Stop with an error.
    Error,
}

impl TooLong {
    const NAMES: [(&str, Self); 5] = [
        ("split", Self::Split),
        ("cut_left", Self::CutLeft),
        ("cut_right", Self::CutRight),
        ("skip", Self::Skip),
        ("error", Self::Error),
    ];

    /// Returns the name of the treatment.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for TooLong {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Self::NAMES.into_iter().find(|(known, _)| *known == name);
        known.map(|(_, treatment)| treatment).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            Error::Input(format!("unknown treatment {name:?}: expected one of {names}"))
        })
    }
}

/// Statistics of conversations that were split, cut or skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitStats {
    /// Conversations longer than the block.
    pub long: usize,
    /// Sequences that these were split into.
    pub pieces: usize,
    /// Conversations longer than the block, cut, and the tokens that were dropped.
    pub cut: usize,
    /// Tokens that were cut off.
    pub cut_tokens: usize,
    /// Conversations longer than the block, skipped, or with a message that is longer.
    pub too_long: usize,
    /// Conversations without tokens to train on, skipped.
    pub without_targets: usize,
}

/// A sequence: the tokens `start..end`, of which those from `first_target` on may be targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sequence {
    start: usize,
    first_target: usize,
    end: usize,
}

/// Draws batches of sequences.
#[derive(Debug)]
pub struct ChatSampler {
    chats: Chats,
    train_on: TrainOn,
    train: Vec<Sequence>,
    val: Vec<Sequence>,
    /// Start of each held-out batch in `val`, and the end of the last.
    val_batches: Vec<usize>,
    /// Maximum number of tokens in a batch.
    max_batch_tokens: usize,
    seed: u64,
    split_stats: SplitStats,
    train_chats: usize,
    val_chats: usize,
    epoch: Option<Epoch>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

/// One pass over the training sequences.
#[derive(Debug)]
struct Epoch {
    number: u64,
    /// Number of batches in the epochs before it.
    before: u64,
    order: Vec<u32>,
    /// Start of each batch in `order`, and the end of the last.
    batches: Vec<usize>,
}

/// Settings of a [`ChatSampler`].
#[derive(Clone, Copy, Debug)]
pub struct ChatSampling {
    /// Length of the longest sequence, in tokens.
    pub block_size: usize,
    /// A batch has at most `batch_size` × `block_size` tokens.
    pub batch_size: usize,
    /// Fraction of the conversations that is held out.
    pub val_fraction: f64,
    /// Turns that are learned.
    pub train_on: TrainOn,
    /// Treatment of conversations longer than the block.
    pub too_long: TooLong,
    /// True to skip and count conversations with a message longer than the block; otherwise they are an error.
    pub skip_bad: bool,
    /// Seed of the order.
    pub seed: u64,
}

impl ChatSampler {
    /// Makes a sampler of conversations.
    ///
    /// # Errors
    /// [`Error::Data`] naming a conversation with a message longer than the block, unless `skip_bad`; also if no tokens to train
    /// on are left. [`Error::Input`] for a fraction outside [0, 1) or a size of 0.
    pub fn new(chats: Chats, sampling: &ChatSampling) -> Result<Self, Error> {
        let ChatSampling { block_size, batch_size, val_fraction, train_on, too_long, skip_bad, seed } = *sampling;
        check_sizes(block_size, batch_size, val_fraction)?;
        let mut split_stats = SplitStats::default();
        let mut pieces = Vec::with_capacity(chats.count());
        for conversation in 0..chats.count() {
            let tokens = chats.range(conversation).len();
            let treatment = if tokens > block_size + 1 { too_long } else { TooLong::Split };
            let found = match treatment {
                TooLong::Split => split(&chats, conversation, block_size).map_err(Some),
                TooLong::CutLeft | TooLong::CutRight => Ok(vec![cut(&chats, conversation, block_size, treatment)]),
                TooLong::Skip | TooLong::Error => Err(None),
            };
            let mut sequences = match found {
                Ok(sequences) => sequences,
                Err(message) if treatment == TooLong::Skip || (message.is_some() && skip_bad) => {
                    split_stats.too_long += 1;
                    continue;
                }
                Err(message) => {
                    let (what, tokens) = message.map_or(("it", tokens), |tokens| ("a message", tokens));
                    return Err(Error::Data(format!(
                        "{}: {what} has {tokens} tokens, but block_size is {block_size} (shorten it, use a model with a \
                         larger block_size, skip such conversations with --skip_bad, or cut them with --too_long)",
                        chats.title(conversation)
                    )));
                }
            };
            let long = sequences.len() > 1;
            sequences.retain(|sequence| targets(&chats, *sequence, train_on).any(|is_target| is_target));
            if sequences.is_empty() {
                split_stats.without_targets += 1;
                continue;
            }
            if treatment != TooLong::Split {
                split_stats.cut += 1;
                split_stats.cut_tokens += tokens - (block_size + 1);
            }
            if long {
                split_stats.long += 1;
                split_stats.pieces += sequences.len();
            }
            pieces.push(sequences);
        }
        if pieces.is_empty() {
            let why = match (split_stats.too_long, train_on) {
                (1.., _) => "every conversation, or a message of it, is longer than block_size",
                (0, TrainOn::Assistant) => {
                    "no conversation has an assistant turn with context before it (--train_on all trains on every turn)"
                }
                (0, TrainOn::All) => "every conversation is a single token",
            };
            return Err(Error::Data(format!("{}: no tokens to train on: {why}", chats.name())));
        }
        let mut held_out: Vec<usize> = (0..pieces.len()).collect();
        held_out.shuffle(&mut ChaCha8Rng::seed_from_u64(HELD_OUT_SEED));
        held_out.truncate(match val_fraction > 0.0 && pieces.len() > 1 {
            true => ((pieces.len() as f64 * val_fraction).round() as usize).clamp(1, pieces.len() - 1),
            false => 0,
        });
        let val: Vec<Sequence> = held_out.iter().flat_map(|&index| std::mem::take(&mut pieces[index])).collect();
        let train_chats = pieces.len() - held_out.len();
        let train: Vec<Sequence> = pieces.into_iter().flatten().collect();
        let max_batch_tokens = batch_size.saturating_mul(block_size);
        let val_batches = pack(val.iter().map(|sequence| sequence.inputs()), max_batch_tokens);
        Ok(Self {
            chats,
            train_on,
            train,
            val,
            val_batches,
            max_batch_tokens,
            seed,
            split_stats,
            train_chats,
            val_chats: held_out.len(),
            epoch: None,
            inputs: Vec::new(),
            targets: Vec::new(),
        })
    }

    /// The conversations.
    pub fn chats(&self) -> &Chats {
        &self.chats
    }

    /// Statistics of conversations that were split, cut or skipped.
    pub fn split_stats(&self) -> SplitStats {
        self.split_stats
    }

    /// Numbers of training and held-out conversations.
    pub fn counts(&self) -> (usize, usize) {
        (self.train_chats, self.val_chats)
    }

    /// Numbers of training and held-out target tokens.
    pub fn num_target_tokens(&self) -> (usize, usize) {
        let count = |sequences: &[Sequence]| -> usize {
            sequences
                .iter()
                .map(|&sequence| targets(&self.chats, sequence, self.train_on).filter(|&counts| counts).count())
                .sum()
        };
        (count(&self.train), count(&self.val))
    }

    /// Counts the text of the held-out targets.
    pub fn val_text_size(&self, counter: &ByteCounter) -> TextSize {
        let mut ids = Vec::new();
        let size = |&sequence: &Sequence| -> TextSize {
            ids.clear();
            self.chats.copy(sequence.start + 1..sequence.end, &mut ids);
            let learned: Vec<bool> = targets(&self.chats, sequence, self.train_on).collect();
            let mut rest = &ids[..];
            let runs = learned.chunk_by(|a, b| a == b).map(|run| {
                let (part, after) = rest.split_at(run.len());
                rest = after;
                if run[0] { counter.count(part) } else { TextSize::default() }
            });
            runs.sum()
        };
        self.val.iter().map(size).sum()
    }

    /// Number of held-out batches; 0 if nothing is held out.
    pub fn val_batches(&self) -> usize {
        self.val_batches.len() - 1
    }

    /// Passes each sequence of training batch `number` to `put`: its input tokens, and for each the target or [`IGNORE_INDEX`].
    pub fn train_batch(&mut self, number: u64, put: &mut dyn FnMut(&[u32], &[u32])) {
        let epoch = match self.epoch.take() {
            Some(epoch) if epoch.before <= number => epoch,
            _ => self.begin_epoch(0, 0),
        };
        let mut epoch = epoch;
        while number >= epoch.before + epoch.len() {
            epoch = self.begin_epoch(epoch.number + 1, epoch.before + epoch.len());
        }
        let batch = (number - epoch.before) as usize;
        for &sequence in &epoch.order[epoch.batches[batch]..epoch.batches[batch + 1]] {
            self.put(self.train[sequence as usize], put);
        }
        self.epoch = Some(epoch);
    }

    /// Passes each sequence of held-out batch `index` to `put`, as [`ChatSampler::train_batch`]; always the same.
    ///
    /// # Panics
    /// If `index` is not below [`ChatSampler::val_batches`].
    pub fn val_batch(&mut self, index: usize, put: &mut dyn FnMut(&[u32], &[u32])) {
        for sequence in self.val_batches[index]..self.val_batches[index + 1] {
            self.put(self.val[sequence], put);
        }
    }

    fn begin_epoch(&self, number: u64, before: u64) -> Epoch {
        let mut order: Vec<u32> = (0..self.train.len() as u32).collect();
        order.shuffle(&mut rng_of([self.seed, number, 0, 0]));
        let batches = pack(order.iter().map(|&sequence| self.train[sequence as usize].inputs()), self.max_batch_tokens);
        Epoch { number, before, order, batches }
    }

    fn put(&mut self, sequence: Sequence, put: &mut dyn FnMut(&[u32], &[u32])) {
        let Sequence { start, end, .. } = sequence;
        self.inputs.clear();
        self.chats.copy(start..end, &mut self.inputs);
        self.targets.clear();
        self.targets.extend_from_slice(&self.inputs[1..]);
        for (target, is_target) in self.targets.iter_mut().zip(targets(&self.chats, sequence, self.train_on)) {
            if !is_target {
                *target = IGNORE_INDEX;
            }
        }
        put(&self.inputs[..end - start - 1], &self.targets);
    }
}

impl Sequence {
    /// Number of input tokens: the last token is only a target.
    fn inputs(self) -> usize {
        self.end - self.start - 1
    }
}

impl Epoch {
    fn len(&self) -> u64 {
        self.batches.len() as u64 - 1
    }
}

/// For each token of a sequence after the first, true if it is a target.
fn targets(chats: &Chats, sequence: Sequence, train_on: TrainOn) -> impl Iterator<Item = bool> {
    let marks = &chats.marks()[sequence.start + 1..sequence.end];
    marks.iter().zip(sequence.start + 1..).map(move |(mark, at)| {
        let learned = match train_on {
            TrainOn::Assistant => mark & marks::TARGET != 0,
            TrainOn::All => mark & marks::NEVER == 0,
        };
        at >= sequence.first_target && learned
    })
}

/// Returns the first or last tokens of a conversation that fit into one sequence.
fn cut(chats: &Chats, conversation: usize, block_size: usize, treatment: TooLong) -> Sequence {
    let Range { start, end } = chats.range(conversation);
    match treatment {
        TooLong::CutLeft => Sequence { start: end - (block_size + 1), first_target: end - (block_size + 1), end },
        _ => Sequence { start, first_target: start, end: start + block_size + 1 },
    }
}

/// Splits a conversation into sequences; the error is the number of tokens of a message that fits into no sequence.
fn split(chats: &Chats, conversation: usize, block_size: usize) -> Result<Vec<Sequence>, usize> {
    let whole = chats.range(conversation);
    // The last token of a sequence is only a target.
    let room = block_size + 1;
    if whole.len() <= room {
        return Ok(vec![Sequence { start: whole.start, first_target: whole.start, end: whole.end }]);
    }
    let marks = &chats.marks()[whole.clone()];
    let turns = marks.iter().zip(whole.clone()).filter(|(mark, _)| *mark & marks::TURN_START != 0);
    let mut bounds: Vec<usize> = turns.map(|(_, at)| at).collect();
    let all_told = bounds.first() == Some(&whole.start);
    if !all_told {
        bounds.insert(0, whole.start);
    }
    bounds.push(whole.end);
    let mut sequences = Vec::new();
    match bounds.windows(2).find(|turn| turn[1] - turn[0] > room) {
        Some(turn) if all_told => return Err(turn[1] - turn[0]),
        // Plain text, or turns that could not be identified.
        Some(_) => {
            let mut start = whole.start;
            while start + 1 < whole.end {
                let end = whole.end.min(start + room);
                sequences.push(Sequence { start, first_target: start, end });
                // The last target is the first input of the next sequence.
                start = end - 1;
            }
            return Ok(sequences);
        }
        None => {}
    }
    let (mut first, mut first_target) = (0, whole.start);
    while first_target < whole.end {
        let start = bounds[first];
        // At least the turn to be learned fits.
        let last = bounds.partition_point(|&bound| bound <= start + room) - 1;
        let end = bounds[last];
        sequences.push(Sequence { start, first_target, end });
        first_target = end;
        first = match last + 1 < bounds.len() && bounds[last + 1] - bounds[last - 1] <= room {
            true => last - 1,
            false => last,
        };
    }
    Ok(sequences)
}

/// Packs sequences of these lengths, in order, into batches of at most `max_batch_tokens` tokens, or of one sequence; returns
/// the start of each batch and the end of the last.
fn pack(lengths: impl Iterator<Item = usize>, max_batch_tokens: usize) -> Vec<usize> {
    let (mut starts, mut tokens, mut count) = (vec![0], 0, 0);
    for length in lengths {
        if tokens > 0 && tokens + length > max_batch_tokens {
            starts.push(count);
            tokens = 0;
        }
        tokens += length;
        count += 1;
    }
    if count > 0 {
        starts.push(count);
    }
    starts
}

#[cfg(test)]
mod tests;
