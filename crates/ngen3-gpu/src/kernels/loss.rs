//! Cross entropy, chunk by chunk of the vocabulary, so that tokens × vocabulary never exist at once.
//!
//! [`statistics`] for each chunk, then [`losses`]; for the gradient, each chunk of the logits again, then [`gradient`].

use super::{MAX_GROUPS, groups};
use crate::device::{Kernel, Recorder, View, read, write};

/// Logits of some tokens of the vocabulary.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    /// `[rows, width]`
    pub logits: View<'a>,
    /// Tokens.
    pub width: usize,
    /// The first of them.
    pub first: usize,
}

/// Records the statistics of a chunk, `[rows, 3]`, of logits divided by a temperature: with those of the chunks before, unless it is the
/// first one.
///
/// # Panics
/// If a length is wrong.
pub fn statistics(recorder: &mut Recorder<'_>, chunk: Chunk<'_>, temperature: f32, targets: View<'_>, stats: View<'_>) {
    chunk.logits.expect(targets.len * chunk.width);
    dispatch(recorder, [0, u32::from(chunk.first == 0)], chunk, 1.0 / temperature, targets, stats, stats);
}

/// Records the losses, `[rows]`, from the statistics of all chunks; 0 where a target is ignored.
///
/// # Panics
/// If a length is wrong.
pub fn losses(recorder: &mut Recorder<'_>, targets: View<'_>, stats: View<'_>, losses: View<'_>) {
    losses.expect(targets.len);
    let chunk = Chunk { logits: stats, width: 1, first: 0 };
    dispatch(recorder, [1, 0], chunk, 0.0, targets, stats, losses);
}

/// Records the sum of losses: `sum`, `[1]`, grows by it.
pub fn add_sum(recorder: &mut Recorder<'_>, losses: View<'_>, targets: View<'_>, sum: View<'_>) {
    sum.expect(1);
    let chunk = Chunk { logits: losses, width: 1, first: 0 };
    dispatch(recorder, [3, 0], chunk, 0.0, targets, losses, sum);
}

/// Records weight·(softmax − onehot) in place of the logits; 0 where a target is ignored.
///
/// # Panics
/// If a length is wrong.
pub fn gradient(recorder: &mut Recorder<'_>, chunk: Chunk<'_>, weight: f32, targets: View<'_>, stats: View<'_>) {
    chunk.logits.expect(targets.len * chunk.width);
    dispatch(recorder, [2, 0], chunk, weight, targets, stats, stats);
}

fn dispatch(
    recorder: &mut Recorder<'_>,
    [stage, first]: [u32; 2],
    chunk: Chunk<'_>,
    weight: f32,
    targets: View<'_>,
    stats: View<'_>,
    losses: View<'_>,
) {
    let rows = targets.len;
    if stage != 3 {
        stats.expect(3 * rows);
    }
    let constants = [("STAGE", stage), ("FIRST", first)];
    let kernel = Kernel { name: "loss", source: include_str!("loss.wgsl"), constants: &constants };
    let immediates = [rows as u32, chunk.width as u32, chunk.first as u32, weight.to_bits()];
    let groups = match stage {
        1 => groups(rows),
        3 => [1, 1, 1],
        _ => [rows.min(MAX_GROUPS), 1, 1],
    };
    recorder.dispatch(kernel, &[write(chunk.logits), read(targets), write(stats), write(losses)], &immediates, groups);
}

#[cfg(test)]
mod tests {
    use ngen3_engine::IGNORE;

    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    #[test]
    fn chunks_give_the_loss_of_the_whole_vocabulary_and_its_gradient() {
        let Some(context) = context() else { return };
        let (rows, vocab) = (5, 700);
        let logits: Vec<f32> = numbers(1, rows * vocab).iter().map(|x| 9.0 * x).collect();
        let targets = [3, 699, IGNORE, 300, 299];
        let (mut expected, mut dexpected) = (vec![0.0; rows], vec![0.0; rows * vocab]);
        for (row, &target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
            let logits = &logits[row * vocab..][..vocab];
            let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            expected[row] = total.ln() - f64::from(logits[target as usize]);
            for (i, &x) in logits.iter().enumerate() {
                let hit = if i == target as usize { 1.0 } else { 0.0 };
                dexpected[row * vocab + i] = 0.25 * (f64::from(x).exp() / total - hit);
            }
        }
        for widths in [&[700][..], &[300, 1, 399]] {
            let targets = context.upload("targets", &targets).unwrap();
            let [stats, found, sum] = [3 * rows, rows, 1].map(|len| context.buffer("losses", len).unwrap());
            let mut first = 0;
            let chunks: Vec<_> = widths
                .iter()
                .map(|&width| {
                    let rows = logits.chunks(vocab).flat_map(|row| &row[first..first + width]);
                    let chunk = (context.upload("logits", &rows.copied().collect::<Vec<_>>()).unwrap(), width, first);
                    first += width;
                    chunk
                })
                .collect();
            let chunk =
                |(buffer, width, first): &'_ (crate::device::Buffer, usize, usize)| (*width, *first, buffer.len());
            let mut recorder = Recorder::new(context);
            for entry in &chunks {
                let (width, first, _) = chunk(entry);
                let chunk = Chunk { logits: entry.0.all(), width, first };
                statistics(&mut recorder, chunk, 1.0, targets.all(), stats.all());
            }
            losses(&mut recorder, targets.all(), stats.all(), found.all());
            for entry in &chunks {
                let chunk = Chunk { logits: entry.0.all(), width: entry.1, first: entry.2 };
                gradient(&mut recorder, chunk, 0.25, targets.all(), stats.all());
            }
            add_sum(&mut recorder, found.all(), targets.all(), sum.all());
            add_sum(&mut recorder, found.all(), targets.all(), sum.all());
            drop(recorder);
            close("losses", &context.read(found.all()).unwrap(), &expected, 1e-6);
            let total: f64 = expected.iter().sum();
            close("twice their sum", &context.read(sum.all()).unwrap(), &[2.0 * total], 1e-6);
            for (buffer, width, first) in &chunks {
                let rows = dexpected.chunks(vocab).flat_map(|row| &row[*first..first + width]);
                close("gradient", &context.read(buffer.all()).unwrap(), &rows.copied().collect::<Vec<_>>(), 1e-6);
            }
        }
    }
}
