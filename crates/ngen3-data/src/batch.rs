//! Batches drawn from a token file.
//!
//! The sampler keeps no state between batches: the seed, the step and the micro-batch alone determine a batch's sequences, so a
//! resumed run draws the same batches as an uninterrupted one.

use std::path::Path;

use ngen3_model::words::count;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::tokenizer::{ByteCounter, TextSize};
use crate::{Error, TokenFile};

/// File with the validation split, if it is separate.
pub(crate) const VAL_FILE: &str = "val.bin";

/// Splits a token file: returns the `val.bin` beside it, if any, and the number of the file's own tokens to train on. The rest of
/// them is for validation, unless there is a `val.bin`.
fn split_train_val(data: &TokenFile, val_fraction: f64) -> Result<(Option<TokenFile>, usize), Error> {
    let beside = data.path().with_file_name(VAL_FILE);
    if beside.exists() && beside != data.path() {
        return Ok((Some(TokenFile::open(&beside)?), data.len()));
    }
    Ok((None, (data.len() as f64 * (1.0 - val_fraction)) as usize))
}

/// Returns the validation split of a token file and the position of its first token. The split is the `val.bin` beside the file,
/// or else the last `val_fraction` of its tokens.
///
/// # Errors
/// As [`TokenFile::open`].
pub fn validation_split(path: &Path, val_fraction: f64) -> Result<(TokenFile, usize), Error> {
    let data = TokenFile::open(path)?;
    Ok(match split_train_val(&data, val_fraction)? {
        (Some(val), _) => (val, 0),
        (None, train_len) => (data, train_len),
    })
}

/// Checks the settings that all samplers share.
///
/// # Errors
/// [`Error::Input`] for a fraction outside [0, 1) or a size of 0.
pub(crate) fn check_sizes(block_size: usize, batch_size: usize, val_fraction: f64) -> Result<(), Error> {
    if !(0.0..1.0).contains(&val_fraction) {
        return Err(Error::Input(format!("val_fraction: expected at least 0 and below 1, got {val_fraction}")));
    }
    if block_size == 0 || batch_size == 0 {
        return Err(Error::Input(format!(
            "block_size and batch_size must be at least 1, got {block_size} and {batch_size}"
        )));
    }
    Ok(())
}

/// Makes a generator keyed by these numbers (the seed, the step, the micro-batch), so that no two keys share a stream.
pub(crate) fn rng_of(key: [u64; 4]) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    for (part, number) in bytes.as_chunks_mut().0.iter_mut().zip(key) {
        *part = number.to_le_bytes();
    }
    ChaCha8Rng::from_seed(bytes)
}

/// Draws sequences of `block_size` tokens, with the tokens that follow as targets, from the training or validation split.
#[derive(Debug)]
pub struct BatchSampler {
    data: TokenFile,
    /// The `val.bin`, if any; otherwise the validation split is the end of `data`.
    val: Option<TokenFile>,
    /// Number of tokens of `data` to train on; the rest is for validation unless there is a `val.bin`.
    train_len: usize,
    block_size: usize,
    batch_size: usize,
    seed: u64,
}

impl BatchSampler {
    /// Makes a sampler of a token file. The validation split is the `val.bin` beside it, or else the last `val_fraction` of its
    /// tokens; with neither there is no validation, and [`BatchSampler::val_len`] is 0.
    ///
    /// # Errors
    /// As [`TokenFile::open`]; [`Error::Data`] when a split has fewer than `block_size` + 1 tokens; [`Error::Input`] for a
    /// fraction outside [0, 1) or a size of 0.
    pub fn new(
        data: TokenFile,
        block_size: usize,
        batch_size: usize,
        val_fraction: f64,
        seed: u64,
    ) -> Result<Self, Error> {
        check_sizes(block_size, batch_size, val_fraction)?;
        let (val, train_len) = split_train_val(&data, val_fraction)?;
        let sampler = Self { data, val, train_len, block_size, batch_size, seed };
        let (of_data, more) = (sampler.data.path().display(), "use a smaller --block_size or more text");
        sampler.check_len(&format!("{of_data}: the training split"), sampler.train_len, more)?;
        match &sampler.val {
            Some(val) => sampler.check_len(&val.path().display().to_string(), sampler.val_len(), more)?,
            None if sampler.has_validation() => {
                let advice = "use a smaller --block_size, a larger --val_fraction, or more text";
                sampler.check_len(&format!("{of_data}: the validation split"), sampler.val_len(), advice)?;
            }
            None => {}
        }
        Ok(sampler)
    }

    fn check_len(&self, what: &str, len: usize, advice: &str) -> Result<(), Error> {
        if len > self.block_size {
            return Ok(());
        }
        let block = self.block_size;
        Err(Error::Data(format!(
            "{what} has {}, but block_size {block} needs at least {}; {advice}",
            count(len, "token"),
            block + 1
        )))
    }

    /// The token file.
    pub fn data(&self) -> &TokenFile {
        &self.data
    }

    /// Number of training tokens.
    pub fn train_len(&self) -> usize {
        self.train_len
    }

    /// Number of validation tokens; 0 without validation.
    pub fn val_len(&self) -> usize {
        self.val.as_ref().map_or(self.data.len() - self.train_len, TokenFile::len)
    }

    /// True if there are validation tokens.
    pub fn has_validation(&self) -> bool {
        self.val_len() > 0
    }

    /// Counts the text of the validation split.
    pub fn val_text_size(&self, counter: &ByteCounter) -> TextSize {
        match &self.val {
            Some(val) => val.text_size(0, counter),
            None => self.data.text_size(self.train_len, counter),
        }
    }

    /// Checks that every token id is below `vocab_size`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first token outside the vocabulary.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), Error> {
        self.data.check_vocab(vocab_size)?;
        self.val.as_ref().map_or(Ok(()), |val| val.check_vocab(vocab_size))
    }

    /// Draws a training batch: `inputs` and `targets` become `[batch_size, block_size]`. The seed, the optimizer step and the
    /// micro-batch within it determine the sequences.
    pub fn train_batch(&self, step: u64, micro: u64, inputs: &mut Vec<u32>, targets: &mut Vec<u32>) {
        let positions = self.draw(step, micro, self.train_len - self.block_size);
        self.fill(&self.data, positions, inputs, targets);
    }

    /// Number of adjacent, non-overlapping windows of `block_size` tokens in the training split: a fixed set of sequences, for
    /// which results can be computed once.
    pub fn windows(&self) -> usize {
        (self.train_len - 1) / self.block_size
    }

    /// Draws the windows of a training batch, `[batch_size]`, from the seed, the step and the micro-batch.
    pub fn draw_windows(&self, step: u64, micro: u64) -> Vec<usize> {
        self.draw(step, micro, self.windows()).collect()
    }

    /// Fills a batch with these windows: `inputs` and `targets` become `[windows, block_size]`.
    ///
    /// # Panics
    /// If a window is out of range.
    pub fn window_batch(&self, windows: &[usize], inputs: &mut Vec<u32>, targets: &mut Vec<u32>) {
        assert!(windows.iter().all(|&window| window < self.windows()), "window out of range");
        self.fill(&self.data, windows.iter().map(|window| window * self.block_size), inputs, targets);
    }

    /// Draws a number below `n` for each sequence of a batch.
    fn draw(&self, step: u64, micro: u64, n: usize) -> impl Iterator<Item = usize> {
        let mut rng = rng_of([self.seed, step, micro, 0]);
        (0..self.batch_size).map(move |_| scale_to_range(rng.next_u64(), n))
    }

    /// Fills validation batch `index`, the same in every evaluation: `inputs` and `targets` become `[batch_size, block_size]`.
    /// The first sequences, however many are used, are spread evenly over the validation split. Without validation both are
    /// empty.
    pub fn val_batch(&self, index: u64, inputs: &mut Vec<u32>, targets: &mut Vec<u32>) {
        // Multiples of the golden ratio modulo 1 leave no large gap after any number of them (Weyl 1916).
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let (file, first) = self.val.as_ref().map_or((&self.data, self.train_len), |val| (val, 0));
        let sequences = if self.has_validation() { self.batch_size } else { 0 };
        let starts = self.val_len().saturating_sub(self.block_size);
        let sequence = index.wrapping_mul(self.batch_size as u64);
        let positions = (0..sequences as u64)
            .map(|i| first + scale_to_range(sequence.wrapping_add(i).wrapping_mul(GOLDEN), starts));
        self.fill(file, positions, inputs, targets);
    }

    fn fill(
        &self,
        file: &TokenFile,
        positions: impl Iterator<Item = usize>,
        inputs: &mut Vec<u32>,
        targets: &mut Vec<u32>,
    ) {
        inputs.clear();
        targets.clear();
        for at in positions {
            file.copy(at..at + self.block_size, inputs);
            file.copy(at + 1..at + self.block_size + 1, targets);
        }
    }
}

/// Scales 64 uniform bits to a number below `n` (Lemire 2019, without its rejection: the bias is below n / 2^64).
fn scale_to_range(bits: u64, n: usize) -> usize {
    ((u128::from(bits) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Makes a folder with a data.bin whose tokens are their own positions, and optionally a val.bin that counts up from 1000.
    fn folder(tokens: u16, val_tokens: u16) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes = |range: std::ops::Range<u16>| range.flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        std::fs::write(folder.path().join("data.bin"), bytes(0..tokens)).unwrap();
        if val_tokens > 0 {
            std::fs::write(folder.path().join("val.bin"), bytes(1000..1000 + val_tokens)).unwrap();
        }
        folder
    }

    fn open(tokens: u16, val_tokens: u16, block_size: usize, val_fraction: f64) -> Result<BatchSampler, String> {
        let folder = folder(tokens, val_tokens);
        let path = folder.path().join("data.bin");
        TokenFile::open(&path)
            .and_then(|data| BatchSampler::new(data, block_size, 4, val_fraction, 7))
            .map_err(|error| error.to_string())
    }

    /// Returns the sequences' first tokens, after checking that each sequence counts up and that targets are one ahead.
    fn starts(block_size: usize, draw: impl FnOnce(&mut Vec<u32>, &mut Vec<u32>)) -> Vec<u32> {
        let (mut inputs, mut targets) = (vec![1, 2, 3], vec![4]);
        draw(&mut inputs, &mut targets);
        assert_eq!(inputs.len(), 4 * block_size);
        for sequence in inputs.chunks(block_size) {
            assert!(sequence.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequence:?}");
        }
        assert!(inputs.iter().zip(&targets).all(|(input, target)| *target == input + 1));
        assert_eq!(inputs.len(), targets.len());
        inputs.into_iter().step_by(block_size).collect()
    }

    #[test]
    fn training_sequences_come_from_the_whole_training_part_and_nowhere_else() {
        let sampler = open(100, 0, 8, 0.2).unwrap();
        assert_eq!((sampler.train_len(), sampler.val_len()), (80, 20));
        let found: BTreeSet<u32> = (0..2_000)
            .flat_map(|step| starts(8, |inputs, targets| sampler.train_batch(step, 0, inputs, targets)))
            .collect();
        assert_eq!(found, (0..72).collect(), "the last sequence's last target is token 79");
    }

    #[test]
    fn windows_cover_the_training_part_once_and_are_drawn_alike() {
        for (tokens, windows) in [(11, 1), (20, 1), (21, 2), (100, 9), (101, 10)] {
            assert_eq!(open(tokens, 30, 10, 0.0).unwrap().windows(), windows, "{tokens} tokens");
        }
        let sampler = open(100, 0, 8, 0.2).unwrap();
        assert_eq!(sampler.windows(), 9, "80 tokens: the tenth window would lack its last target");
        let found = starts(8, |inputs, targets| sampler.window_batch(&[0, 8, 3, 3], inputs, targets));
        assert_eq!(found, [0, 64, 24, 24]);
        let drawn: BTreeSet<usize> = (0..200).flat_map(|step| sampler.draw_windows(step, 0)).collect();
        assert_eq!(drawn, (0..9).collect());
        assert_eq!(sampler.draw_windows(3, 1), sampler.draw_windows(3, 1));
        assert_ne!(sampler.draw_windows(3, 1), sampler.draw_windows(3, 2));
    }

    #[test]
    fn a_batch_depends_on_seed_step_and_micro_batch_alone() {
        let folder = folder(1_000, 0);
        let draw = |seed, step, micro| {
            let sampler =
                BatchSampler::new(TokenFile::open(&folder.path().join("data.bin")).unwrap(), 8, 4, 0.1, seed).unwrap();
            starts(8, |inputs, targets| sampler.train_batch(step, micro, inputs, targets))
        };
        // Fixed numbers: checkpoints of older versions must resume on the same batches.
        assert_eq!(draw(1337, 5, 2), [217, 368, 813, 114]);
        let all = [draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1), draw(0, 0, 0), draw(1337, 5, 2)];
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn validation_sequences_are_fixed_and_even() {
        for (sampler, first) in [(open(1_000, 0, 8, 0.4).unwrap(), 600), (open(50, 400, 8, 0.4).unwrap(), 1_000)] {
            assert_eq!(sampler.val_len(), 400);
            let draw = |index| starts(8, |inputs, targets| sampler.val_batch(index, inputs, targets));
            assert_eq!(draw(3), draw(3));
            let all: BTreeSet<u32> = (0..2_000).flat_map(draw).collect();
            assert_eq!(all, (first..first + 392).collect(), "the last sequence's last target is the last token");
            for batches in [1, 3, 25] {
                let mut found: Vec<u32> = (0..batches).flat_map(draw).collect();
                found.sort_unstable();
                let even = 392 / found.len() as u32;
                let widest = found.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
                assert!(widest <= 3 * even, "{batches} batches leave a gap of {widest}, where {even} would be even");
            }
        }
    }

    #[test]
    fn a_val_bin_leaves_all_of_data_bin_for_training_and_no_fraction_means_no_validation() {
        let sampler = open(100, 30, 8, 0.1).unwrap();
        assert_eq!((sampler.train_len(), sampler.val_len()), (100, 30));
        let sampler = open(100, 0, 8, 0.0).unwrap();
        assert_eq!((sampler.train_len(), sampler.has_validation()), (100, false));
    }

    #[test]
    fn what_is_measured_after_training_is_what_it_validated_on() {
        for val_tokens in [0, 30] {
            let folder = folder(100, val_tokens);
            let path = folder.path().join("data.bin");
            let sampler = BatchSampler::new(TokenFile::open(&path).unwrap(), 4, 4, 0.3, 7).unwrap();
            let (file, from) = validation_split(&path, 0.3).unwrap();
            let drawn = |index| starts(4, |inputs, targets| sampler.val_batch(index, inputs, targets));
            let lowest = (0..100).flat_map(drawn).min().unwrap();
            assert_eq!((file.token(from), file.len() - from), (lowest, sampler.val_len()), "{val_tokens}");
        }
    }

    #[test]
    fn parts_shorter_than_a_block_and_absurd_settings_are_refused() {
        let error = open(9, 0, 9, 0.0).unwrap_err();
        assert!(error.contains("data.bin: the training split has 9 tokens, but block_size 9 needs"), "{error}");
        assert!(open(9, 0, 8, 0.0).is_ok());
        let error = open(100, 0, 10, 0.1).unwrap_err();
        assert!(error.contains("data.bin: the validation split has 10 tokens, but block_size 10 needs"), "{error}");
        assert!(open(100, 0, 9, 0.1).is_ok());
        let error = open(100, 5, 8, 0.1).unwrap_err();
        assert!(error.contains("val.bin has 5 tokens, but block_size 8") && !error.contains("val_fraction"), "{error}");
        for fraction in [-0.1, 1.0, f64::NAN] {
            assert!(open(100, 0, 8, fraction).unwrap_err().contains("val_fraction"));
        }
        assert!(open(100, 0, 0, 0.1).unwrap_err().contains("at least 1"));
    }

    #[test]
    fn every_file_is_checked_against_the_vocabulary() {
        assert!(open(100, 30, 8, 0.1).unwrap().check_vocab(1_030).is_ok());
        let error = open(100, 30, 8, 0.1).unwrap().check_vocab(1_029).unwrap_err().to_string();
        assert!(error.contains("token 1029 at position 29") && error.contains("val.bin"), "{error}");
        assert!(open(100, 30, 8, 0.1).unwrap().check_vocab(99).unwrap_err().to_string().contains("data.bin"));
    }
}
