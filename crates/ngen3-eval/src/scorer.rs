//! Log-likelihoods of continuations after contexts, computed in batches.
//!
//! Requests are sorted by their tokens, so that those with a common prefix (a question with its endings, or a sentence with
//! one name or another in it) form a family. The shared prefix is one sequence of the batch, computed once; the rest of each
//! member is a sequence that continues it. Dynamic programming finds the split into families with the fewest tokens.
//! Sequences have any length and fill a batch without padding.
//!
//! The last context token predicts the first scored token. The shared sequence therefore ends before it, at the latest, so
//! that each member has its own position for its first prediction.

use ngen3_engine::{Batch, IGNORE, Model};

use crate::Error;

/// Tokens per batch: enough to fill the engine's passes, few enough for frequent progress.
const BATCH_TOKENS: usize = 8192;
/// Tokens per family, unless a single sequence has more: what the engine computes in one pass.
const FAMILY_TOKENS: usize = 2048;
/// Members per family.
const FAMILY_ROWS: usize = 128;
/// Cost of a sequence of a family besides its tokens, in tokens.
const ROW_COST: usize = 4;

/// A continuation to score after a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Token ids of the context, then of the continuation.
    pub tokens: Vec<u32>,
    /// Number of context tokens: at least 1 and fewer than `tokens`.
    pub context: usize,
}

/// Scores of all requests, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// ln p of each continuation after its context.
    pub loglikelihoods: Vec<f64>,
    /// For each request, true if its context was truncated to the model's block.
    pub truncated: Vec<bool>,
    /// For each request, true if its continuation exceeds the block and was scored in parts.
    pub scored_in_parts: Vec<bool>,
}

/// Scores requests with a model.
pub struct Scorer<'a> {
    engine: &'a mut dyn Model,
}

/// A part of a request that fits the block; only requests with a longer continuation have several.
#[derive(Clone, Copy, Debug)]
struct RequestPart<'a> {
    /// Token ids; the last one is predicted but not read.
    tokens: &'a [u32],
    /// Number of tokens at the end to score.
    scored: usize,
    /// Index of its request.
    request: usize,
}

impl RequestPart<'_> {
    fn inputs(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// Number of inputs whose prediction is not scored.
    fn unscored(&self) -> usize {
        self.tokens.len() - 1 - self.scored
    }

    /// Number of leading tokens that both parts can share as one sequence.
    fn shares(&self, other: &Self) -> usize {
        let alike = self.inputs().iter().zip(other.inputs()).take_while(|(a, b)| a == b).count();
        alike.min(self.unscored()).min(other.unscored())
    }
}

impl<'a> Scorer<'a> {
    /// Creates a scorer with this model.
    pub fn new(engine: &'a mut dyn Model) -> Self {
        Self { engine }
    }

    /// Scores all requests. `progress` gets the number done and returns false to stop.
    ///
    /// A request of more than block size + 1 tokens is truncated from the left, as in the harness. If the continuation itself
    /// exceeds the block, which the harness rejects, each half block of it is scored after as much as fits before it.
    ///
    /// # Errors
    /// [`Error::Engine`]; [`Error::Input`] if the model's losses are not finite; [`Error::Interrupted`] when `progress` returns
    /// false.
    ///
    /// # Panics
    /// If a request has no context or no continuation.
    pub fn score(&mut self, requests: &[Request], progress: &mut dyn FnMut(usize) -> bool) -> Result<Scores, Error> {
        let block = self.engine.config().block_size;
        let (mut scores, mut parts) = (Scores::default(), Vec::with_capacity(requests.len()));
        for (request, Request { tokens, context }) in requests.iter().enumerate() {
            assert!((1..tokens.len()).contains(context), "a request has a context and a continuation");
            let scored_in_parts = tokens.len() - context > block;
            let step = if scored_in_parts { block.div_ceil(2) } else { tokens.len() - context };
            for start in (*context..tokens.len()).step_by(step) {
                let end = tokens.len().min(start + step);
                let tokens = &tokens[end.saturating_sub(block + 1)..end];
                parts.push(RequestPart { tokens, scored: end - start, request });
            }
            scores.loglikelihoods.push(0.0);
            scores.truncated.push(!scored_in_parts && tokens.len() > block + 1);
            scores.scored_in_parts.push(scored_in_parts);
        }
        parts.sort_by(|a, b| a.tokens.cmp(b.tokens));
        let (mut batch, mut members) = (Batch::default(), Vec::new());
        let (mut rest, mut done) = (&parts[..], 0);
        for family in families(&parts) {
            let (family, others) = rest.split_at(family);
            rest = others;
            push(family, &mut batch, &mut members);
            if batch.inputs.len() < BATCH_TOKENS && !rest.is_empty() {
                continue;
            }
            let losses = self.engine.losses(&batch)?;
            for (part, end) in members.drain(..) {
                let loss: f64 = losses[end - part.scored..end].iter().map(|&loss| f64::from(loss)).sum();
                if !loss.is_finite() {
                    return Err(Error::Input("the model's losses are not finite".into()));
                }
                scores.loglikelihoods[part.request] -= loss;
                done += 1;
            }
            batch.clear();
            // An estimate if requests have several parts; exact at the end.
            if !progress(requests.len() * done / parts.len()) {
                return Err(Error::Interrupted);
            }
        }
        Ok(scores)
    }
}

/// Splits sorted parts into families; returns their sizes.
fn families(parts: &[RequestPart]) -> Vec<usize> {
    let shares: Vec<_> = parts.windows(2).map(|pair| pair[0].shares(&pair[1])).collect();
    // For the first n parts: the lowest cost in tokens, and the size of the last family at that cost.
    let mut best = vec![(0, 0)];
    for end in 1..=parts.len() {
        let (mut shared, mut tokens) = (usize::MAX, 0);
        let mut choice = (usize::MAX, 0);
        for start in (end.saturating_sub(FAMILY_ROWS)..end).rev() {
            let rows = end - start;
            tokens += parts[start].tokens.len() - 1;
            let mut cost = tokens;
            if rows > 1 {
                shared = shared.min(shares[start]);
                cost = tokens - (rows - 1) * shared;
                if shared == 0 || cost > FAMILY_TOKENS {
                    break;
                }
                cost += (rows + 1) * ROW_COST;
            }
            choice = choice.min((best[start].0 + cost, rows));
        }
        best.push(choice);
    }
    let (mut sizes, mut end) = (Vec::new(), parts.len());
    while end > 0 {
        sizes.push(best[end].1);
        end -= best[end].1;
    }
    sizes.reverse();
    sizes
}

/// Adds a family to a batch, and to `members` each part with the position after its last token.
fn push<'a>(family: &[RequestPart<'a>], batch: &mut Batch, members: &mut Vec<(RequestPart<'a>, usize)>) {
    let shared = match family {
        [first, .., last] => first.shares(last),
        _ => 0,
    };
    // Parts are sorted, so the first and the last share the common prefix of all; but some may be scored earlier.
    let shared = family.iter().map(RequestPart::unscored).fold(shared, usize::min);
    if shared > 0 {
        batch.push(&family[0].tokens[..shared], &vec![IGNORE; shared]);
    }
    for part in family {
        let mut targets = vec![IGNORE; part.unscored() - shared];
        targets.extend_from_slice(&part.tokens[part.unscored() + 1..]);
        let inputs = &part.inputs()[shared..];
        if shared > 0 {
            batch.push_after(inputs, &targets)
        } else {
            batch.push(inputs, &targets)
        }
        members.push((*part, batch.inputs.len()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::CountingModel;

    fn score(block: usize, requests: &[Request]) -> (Scores, CountingModel) {
        let mut engine = CountingModel::new(block);
        let scores = Scorer::new(&mut engine).score(requests, &mut |_| true).unwrap();
        (scores, engine)
    }

    fn request(tokens: &[u32], context: usize) -> Request {
        Request { tokens: tokens.to_vec(), context }
    }

    /// Log-likelihood by definition, one request at a time.
    fn plainly(block: usize, request: &Request) -> f64 {
        let Request { tokens, context } = request;
        let scored = tokens.len() - context;
        let step = if scored > block { block.div_ceil(2) } else { scored };
        let loss = |at: usize| {
            let end = tokens.len().min(context + (at - context) / step * step + step);
            f64::from(CountingModel::loss(&tokens[end.saturating_sub(block + 1)..at], tokens[at]))
        };
        -(*context..tokens.len()).map(loss).sum::<f64>()
    }

    #[test]
    fn a_question_with_its_endings_is_computed_once() {
        let question: Vec<u32> = (0..40).collect();
        let endings = [vec![7, 8, 9], vec![7, 8], vec![1], vec![2, 2, 2]];
        let requests = endings.map(|ending| request(&[&question[..], &ending].concat(), 40));
        let (scores, engine) = score(64, &requests);
        for (request, &score) in requests.iter().zip(&scores.loglikelihoods) {
            assert!((score - plainly(64, request)).abs() < 1e-4);
        }
        // The question without its last token, once; then, for each ending, that token and all but its last.
        assert_eq!(engine.tokens, 39 + 3 + 2 + 1 + 3);
        assert_eq!((scores.truncated, scores.scored_in_parts), (vec![false; 4], vec![false; 4]));
    }

    #[test]
    fn what_comes_before_a_name_is_computed_once() {
        let opening = |name: u32| [&(0..30).collect::<Vec<_>>()[..], &[name, 50, 51, 52]].concat();
        let (_, engine) = score(64, &[request(&opening(40), 31), request(&opening(41), 31)]);
        assert_eq!(engine.tokens, 30 + 3 + 3);
    }

    #[test]
    fn what_does_not_fit_is_cut_from_the_left_and_counted() {
        let tokens: Vec<u32> = (0..20).collect();
        let requests = [request(&tokens[..9], 5), request(&tokens, 17), request(&tokens, 3)];
        let (scores, _) = score(8, &requests);
        assert_eq!(scores.truncated, [false, true, false]);
        assert_eq!(scores.scored_in_parts, [false, false, true]);
        for (request, &score) in requests.iter().zip(&scores.loglikelihoods) {
            assert!((score - plainly(8, request)).abs() < 1e-4);
        }
    }

    #[test]
    fn it_can_be_stopped_and_numbers_must_be_numbers() {
        let mut engine = CountingModel::new(8);
        let stopped = Scorer::new(&mut engine).score(&[request(&[1, 2], 1)], &mut |_| false);
        assert!(matches!(stopped, Err(Error::Interrupted)));
        engine.broken = true;
        let broken = Scorer::new(&mut engine).score(&[request(&[1, 2], 1)], &mut |_| true);
        assert!(broken.unwrap_err().to_string().contains("not finite"));
        assert_eq!(Scorer::new(&mut engine).score(&[], &mut |_| true).unwrap(), Scores::default());
    }

    proptest! {
        #[test]
        fn any_requests_score_as_one_by_one(
            // Few distinct tokens, so that requests share long prefixes.
            requests in prop::collection::vec(
                (prop::collection::vec(0u32..3, 2..24), any::<prop::sample::Index>()), 1..40),
            block in 1usize..20,
        ) {
            let requests: Vec<_> = requests.into_iter().map(|(tokens, at)| {
                let context = 1 + at.index(tokens.len() - 1);
                Request { tokens, context }
            }).collect();
            let (scores, _) = score(block, &requests);
            for (request, &score) in requests.iter().zip(&scores.loglikelihoods) {
                prop_assert!((score - plainly(block, request)).abs() < 1e-3, "{request:?}: {score}");
            }
        }
    }
}
