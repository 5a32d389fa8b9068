//! Sequences for training, each within one conversation.
//!
//! A conversation that fits into the model's block is a sequence. A longer one is cut before a turn into several, each after
//! the first beginning with one turn from before, which is read and not learned again; a text without turns is cut anywhere,
//! and so is a conversation in which the template does not let every turn be told, if it cannot be cut where they can. A batch
//! holds as many sequences as fit into `batch_size` × `block_size` tokens. In an epoch every sequence comes once, in an order
//! that the seed and the epoch decide; what a batch holds follows from the seed and its number alone, so that a resumed run
//! draws what the uninterrupted one would have.

use std::str::FromStr;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::chats::Chats;
use super::marks;
use crate::Error;
use crate::batch::{check_sizes, rng_of};

/// A target that does not count.
pub const IGNORE_INDEX: u32 = u32::MAX;

/// Decides which conversations are held out, and in what order they are looked at: always the same, so that runs with other
/// seeds can be compared.
const HELD_OUT_SEED: u64 = 0x6865_6c64;

/// Whose tokens are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainOn {
    /// The assistant's; of a text without turns all.
    #[default]
    Assistant,
    /// Everybody's.
    All,
}

impl FromStr for TrainOn {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "assistant" => Ok(Self::Assistant),
            "all" => Ok(Self::All),
            _ => Err(Error::Input(format!("{name:?} is nobody to learn from; it is assistant or all"))),
        }
    }
}

/// What became of conversations that do not fit as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitStats {
    /// Conversations longer than the block.
    pub long: usize,
    /// Sequences that these were cut into.
    pub pieces: usize,
    /// Conversations with a message longer than the block, left out.
    pub too_long: usize,
    /// Conversations in which there is nothing to learn, left out.
    pub without_targets: usize,
}

/// A sequence: the tokens `start..end`, of which those from `first_target` on may be learned.
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
    /// Where each held-out batch begins in `val`, and where the last one ends.
    val_batches: Vec<usize>,
    /// Tokens in a batch.
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
    /// Batches of the epochs before it.
    before: u64,
    order: Vec<u32>,
    /// Where each batch begins in `order`, and where the last one ends.
    batches: Vec<usize>,
}

/// What is to be drawn, and how.
#[derive(Clone, Copy, Debug)]
pub struct ChatSampling {
    /// Longest sequence, in tokens.
    pub block_size: usize,
    /// A batch has at most this times `block_size` tokens.
    pub batch_size: usize,
    /// Share of the conversations that are held out.
    pub val_fraction: f64,
    /// Whose tokens are learned.
    pub train_on: TrainOn,
    /// True if conversations with a message longer than the block are left out and counted; otherwise they are an error.
    pub skip_bad: bool,
    /// Decides the order.
    pub seed: u64,
}

impl ChatSampler {
    /// Prepares batches of conversations.
    ///
    /// # Errors
    /// [`Error::Data`] naming a conversation with a message longer than the block, unless `skip_bad`; when nothing is left to
    /// learn from. [`Error::Input`] for a fraction that is not in [0, 1) or a size of 0.
    pub fn new(chats: Chats, sampling: &ChatSampling) -> Result<Self, Error> {
        let ChatSampling { block_size, batch_size, val_fraction, train_on, skip_bad, seed } = *sampling;
        check_sizes(block_size, batch_size, val_fraction)?;
        let mut split_stats = SplitStats::default();
        let mut pieces = Vec::with_capacity(chats.count());
        for conversation in 0..chats.count() {
            let mut sequences = match cut(&chats, conversation, block_size) {
                Ok(sequences) => sequences,
                Err(_) if skip_bad => {
                    split_stats.too_long += 1;
                    continue;
                }
                Err(tokens) => {
                    return Err(Error::Data(format!(
                        "{}: a message of it has {tokens} tokens, more than the model's block of {block_size} holds (shorten it, \
                         take a model with a longer block, or leave such conversations out with --skip_bad)",
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
            if long {
                split_stats.long += 1;
                split_stats.pieces += sequences.len();
            }
            pieces.push(sequences);
        }
        if pieces.is_empty() {
            let why = match (split_stats.too_long, train_on) {
                (1.., _) => "every conversation has a message longer than the model's block",
                (0, TrainOn::Assistant) => {
                    "no conversation has a turn of the assistant with something said before it (--train_on all learns from \
                     every turn)"
                }
                (0, TrainOn::All) => "every conversation is a single token",
            };
            return Err(Error::Data(format!("there is nothing to learn in {}: {why}", chats.name())));
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

    /// What became of those that do not fit.
    pub fn split_stats(&self) -> SplitStats {
        self.split_stats
    }

    /// Conversations to train on, and held-out ones.
    pub fn counts(&self) -> (usize, usize) {
        (self.train_chats, self.val_chats)
    }

    /// Tokens to train on, and held-out ones, that are learned.
    pub fn num_target_tokens(&self) -> (usize, usize) {
        let count = |sequences: &[Sequence]| -> usize {
            sequences
                .iter()
                .map(|&sequence| targets(&self.chats, sequence, self.train_on).filter(|&counts| counts).count())
                .sum()
        };
        (count(&self.train), count(&self.val))
    }

    /// Batches of one pass over what is held out; 0 if nothing is.
    pub fn val_batches(&self) -> usize {
        self.val_batches.len() - 1
    }

    /// Training batch `number`: gives each of its sequences to `put`, as tokens and for each the one to be predicted, or
    /// [`IGNORE_INDEX`].
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

    /// Held-out batch `index`, as [`ChatSampler::train_batch`]; always the same.
    ///
    /// # Panics
    /// If there are not so many: see [`ChatSampler::val_batches`].
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
    /// Tokens that the model reads: the last one is only predicted.
    fn inputs(self) -> usize {
        self.end - self.start - 1
    }
}

impl Epoch {
    fn len(&self) -> u64 {
        self.batches.len() as u64 - 1
    }
}

/// True if each token of a sequence after the first is learned.
fn targets(chats: &Chats, sequence: Sequence, train_on: TrainOn) -> impl Iterator<Item = bool> {
    let marks = &chats.marks()[sequence.start + 1..sequence.end];
    marks
        .iter()
        .zip(sequence.start + 1..)
        .map(move |(mark, at)| at >= sequence.first_target && (train_on == TrainOn::All || mark & marks::TARGET != 0))
}

/// Cuts a conversation into sequences; a message that no sequence can hold is an error, with its tokens.
fn cut(chats: &Chats, conversation: usize, block_size: usize) -> Result<Vec<Sequence>, usize> {
    let whole = chats.range(conversation);
    // A sequence of so many tokens is read up to the last but one.
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
        // A text, or turns that cannot be told apart.
        Some(_) => {
            let mut start = whole.start;
            while start + 1 < whole.end {
                let end = whole.end.min(start + room);
                sequences.push(Sequence { start, first_target: start, end });
                // The last token that was predicted is the first to be read.
                start = end - 1;
            }
            return Ok(sequences);
        }
        None => {}
    }
    let (mut first, mut first_target) = (0, whole.start);
    while first_target < whole.end {
        let start = bounds[first];
        // At least the turn that is to be learned fits.
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

/// Packs sequences of these lengths, in order, into batches of at most `max_batch_tokens` tokens, or one sequence: where each
/// batch begins, and where the last one ends.
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
