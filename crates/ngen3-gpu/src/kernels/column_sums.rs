//! Sums over rows, in two stages: the gradients of biases and of a norm's γ and β.

use super::norm::Rows;
use crate::device::{Kernel, Recorder, View, read, write};

/// Rows that a workgroup sums.
const BLOCK: usize = 64;

/// Returns the elements of working memory for these rows.
pub fn partials(rows: usize, width: usize) -> usize {
    2 * rows.div_ceil(BLOCK) * width
}

/// Input of a norm and its statistics, for the gradient of γ.
#[derive(Clone, Copy)]
pub struct Normalised<'a> {
    /// Input of the norm.
    pub x: View<'a>,
    /// `[rows, 2]`
    pub stats: View<'a>,
}

/// Records dγ += Σ dy·x̂, given the norm's input, and dβ += Σ dy, of those gradients that are given. `scratch` has at least
/// [`partials`] elements.
///
/// # Panics
/// If a length is wrong.
pub fn column_sums(
    recorder: &mut Recorder<'_>,
    rows: Rows,
    dy: View<'_>,
    gamma: Option<(Normalised<'_>, View<'_>)>,
    dbeta: Option<View<'_>>,
    scratch: View<'_>,
) {
    rows.check(dy);
    let (x, stats, dgamma) = match gamma {
        Some((Normalised { x, stats }, dgamma)) => {
            rows.check(x);
            stats.expect(2 * rows.count());
            dgamma.expect(rows.width);
            (x, stats, Some(dgamma))
        }
        None => (dy, dy, None),
    };
    if let Some(dbeta) = dbeta {
        dbeta.expect(rows.width);
    }
    let Some(any) = dgamma.or(dbeta) else { return };
    let flags = [dgamma.is_some(), dbeta.is_some()].map(u32::from);
    let stages = [0, 1].map(|stage| [("STAGE", stage), ("GAMMA", flags[0]), ("BETA", flags[1])]);
    let [first, second] = stages.each_ref().map(|constants| Kernel {
        name: "column_sums",
        source: include_str!("column_sums.wgsl"),
        constants,
    });
    let blocks = rows.count().div_ceil(BLOCK);
    let scratch = scratch.buffer.view(scratch.offset..scratch.offset + partials(rows.count(), rows.width));
    let bindings = [read(dy), read(x), read(stats), write(scratch), write(scratch)];
    let groups = [rows.width.div_ceil(32), blocks, 1];
    recorder.dispatch(first, &bindings, &rows.immediates(), groups);
    let outs = [write(dgamma.unwrap_or(any)), write(dbeta.unwrap_or(any))];
    let bindings = [read(scratch), read(scratch), read(scratch), outs[0], outs[1]];
    recorder.dispatch(second, &bindings, &rows.immediates(), [rows.width.div_ceil(256), 1, 1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{close, context, numbers};

    #[test]
    fn sums_over_rows_equal_the_plain_ones() {
        let Some(context) = context() else { return };
        for rows in [
            Rows::plain(1, 1),
            Rows::plain(130, 37),
            Rows::plain(64, 300),
            Rows { tokens: 33, heads: 5, width: 9, stride: 60, first: 2 },
        ] {
            let (width, len) = (rows.width, rows.tokens * rows.stride);
            let (dy, x, stats) = (numbers(1, len), numbers(2, len), numbers(3, 2 * rows.count()));
            let (old_gamma, old_beta) = (numbers(4, width), numbers(5, width));
            let mut expected = [&old_gamma, &old_beta].map(|old| old.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            for row in 0..rows.count() {
                let base = rows.first + row / rows.heads * rows.stride + row % rows.heads * width;
                for i in 0..width {
                    let dy = f64::from(dy[base + i]);
                    let x_hat = (x[base + i] - stats[2 * row]) * stats[2 * row + 1];
                    expected[0][i] += dy * f64::from(x_hat);
                    expected[1][i] += dy;
                }
            }
            let upload = |values: &[f32]| context.upload("rows", values).unwrap();
            let [dy, x, stats] = [&dy, &x, &stats].map(|values| upload(values));
            let scratch = context.buffer("partial sums", partials(rows.count(), width)).unwrap();
            for [with_gamma, with_beta] in [[true, true], [true, false], [false, true], [false, false]] {
                let [dgamma, dbeta] = [&old_gamma, &old_beta].map(|old| upload(old));
                let normalised = Normalised { x: x.all(), stats: stats.all() };
                let gamma = with_gamma.then_some((normalised, dgamma.all()));
                let mut recorder = Recorder::new(context);
                column_sums(&mut recorder, rows, dy.all(), gamma, with_beta.then_some(dbeta.all()), scratch.all());
                drop(recorder);
                let (found_gamma, found_beta) =
                    (context.read(dgamma.all()).unwrap(), context.read(dbeta.all()).unwrap());
                if with_gamma {
                    close("dγ", &found_gamma, &expected[0], 2e-6);
                } else {
                    assert_eq!(found_gamma, old_gamma);
                }
                if with_beta {
                    close("dβ", &found_beta, &expected[1], 2e-6);
                } else {
                    assert_eq!(found_beta, old_beta);
                }
            }
        }
    }
}
