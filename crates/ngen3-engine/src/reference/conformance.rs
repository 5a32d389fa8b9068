//! Holds a device to the reference engine: every feature of the contract, on sizes that are multiples of nothing.
//!
//! For the tests of whoever implements [`Device`]: [`check`] each of [`cases`].

mod cases;

use std::cell::RefCell;
use std::ops::Range;

use ngen3_model::{Config, Family, Lora, LoraList, Param, ParamList};

pub use cases::{Case, Tolerance, cases};

use super::device::ReferenceDevice;
use crate::{
    AdamW, Backward, Decoder, Device, DistillConfig, DistillLoss, Divergence, Error, Feed, IGNORE, Muon, Options, PAGE,
    Ready, Slot, Teacher, TeacherSource, TopK, Trainer, splitmix,
};

/// Compares a device with the reference on one case; returns the parts that were compared, without those that the device does
/// not support.
///
/// # Errors
/// The first part that differs, and by how much.
pub fn check<'a>(
    device: &'a dyn Device,
    options: Options,
    tolerance: Tolerance,
    case: &'a Case,
) -> Result<Vec<&'static str>, String> {
    let pair = Pair { device, options, tolerance, case };
    let parts: [(&str, Part<'a>); 8] = [
        ("losses", Pair::losses),
        ("training", Pair::training),
        ("updates", Pair::updates),
        ("muon", Pair::muon),
        ("shares", Pair::shares),
        ("adapters", Pair::adapters),
        ("distillation", Pair::distillation),
        ("decoding", Pair::decoding),
    ];
    let count = if case.has_gradient() { parts.len() } else { 1 };
    let mut compared = Vec::new();
    for (name, part) in &parts[..count] {
        match part(&pair) {
            Ok(()) => compared.push(*name),
            Err(Failure::Engine(Error::Unsupported(_))) => {}
            Err(Failure::Engine(error)) => return Err(format!("{}, {name}: {error}", case.name)),
            Err(Failure::Differs(difference)) => return Err(format!("{}, {name}: {difference}", case.name)),
        }
    }
    Ok(compared)
}

/// Gradients that a device gave as final, each doubled.
#[derive(Default)]
struct Received {
    parts: RefCell<Vec<Range<usize>>>,
}

impl Received {
    fn add(&self, start: usize, values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value *= 2.0);
        self.parts.borrow_mut().push(start..start + values.len());
    }

    /// Halves them, after a pass; fails if they are not one part before the other, from the end on.
    fn undo(&self, model: &mut dyn Trainer) -> Result<(), Failure> {
        let mut grads = model.read(Slot::Grads).into_owned();
        let mut end = grads.len();
        for part in self.parts.take() {
            if part.end != end {
                return Err(Failure::Differs(format!(
                    "gradients {part:?} are given as final before those from {end} on"
                )));
            }
            end = part.start;
        }
        grads[end..].iter_mut().for_each(|value| *value /= 2.0);
        Ok(model.write(Slot::Grads, &grads)?)
    }
}

type Part<'a> = fn(&Pair<'a>) -> Result<(), Failure>;

/// The reason why a part did not pass.
enum Failure {
    Engine(Error),
    Differs(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

const ADAMW: AdamW = AdamW { step: 1, lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 0.0 };

/// A device, and the case on which it stands beside the reference.
struct Pair<'a> {
    device: &'a dyn Device,
    options: Options,
    tolerance: Tolerance,
    case: &'a Case,
}

/// Values of these parameters that keep activations near 1, `[total]`.
fn values<'a>(params: impl Iterator<Item = &'a Param>, seed: u64) -> Vec<f32> {
    let mut values = Vec::new();
    for param in params {
        let uniform =
            |i: usize| (splitmix(seed ^ splitmix((param.offset + i) as u64)) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let (mean, bound) = match param.shape[..] {
            [_, inputs] => (0.0, (3.0 / inputs as f32).sqrt()),
            _ if param.name().ends_with(".bias") => (0.0, 0.5),
            _ => (1.0, 0.5),
        };
        values.extend((0..param.len()).map(|i| mean + bound * uniform(i)));
    }
    values
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn same_len(what: &str, found: &[f32], expected: &[f32]) -> Result<(), Failure> {
    if found.len() == expected.len() {
        return Ok(());
    }
    Err(Failure::Differs(format!("{} numbers of {what}, not {}", found.len(), expected.len())))
}

/// Compares by the norm of the difference, relative to that of `expected` or to `least`.
fn near(what: &str, found: &[f32], expected: &[f32], tolerance: f64, least: f64) -> Result<(), Failure> {
    same_len(what, found, expected)?;
    let size = norm(expected.iter().map(|&x| f64::from(x))).max(least);
    let error = norm(found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    // NaN is no small difference.
    if error <= tolerance * size {
        Ok(())
    } else {
        Err(Failure::Differs(format!("{what} by {error:.3e} of {size:.3e}")))
    }
}

/// Writes the same numbers to both.
fn write(both: &mut [Box<dyn Trainer>; 2], slot: Slot, values: &[f32]) -> Result<(), Failure> {
    for model in both {
        model.write(slot, values)?;
    }
    Ok(())
}

/// Updates both with the same gradients: AdamW makes as much of a small difference in one as of a large.
fn update(both: &mut [Box<dyn Trainer>; 2], grads: &[f32], adamw: &AdamW) -> Result<(), Failure> {
    write(both, Slot::Grads, grads)?;
    let mut norms = [0.0; 2];
    for (model, norm) in both.iter_mut().zip(&mut norms) {
        *norm = model.update(adamw, None)?;
    }
    if norms[0].is_finite() || norms[1].is_finite() {
        near("the gradient's norm", &norms[..1], &norms[1..], 1e-5, 0.0)?;
    }
    for slot in [Slot::Params, Slot::Grads, Slot::ExpAvg, Slot::ExpAvgSq] {
        near(&format!("{slot:?}"), &both[0].read(slot), &both[1].read(slot), 2e-6, 0.0)?;
    }
    Ok(())
}

impl Pair<'_> {
    /// The device's model and the reference's.
    fn open(&self) -> Result<[Box<dyn Trainer>; 2], Failure> {
        let Self { device, options, case: Case { config, .. }, .. } = self;
        let params = values(ParamList::new(config).iter(), 1);
        let reference = ReferenceDevice.open(config.clone(), params.clone(), Options::default())?;
        Ok([device.open(config.clone(), params, *options)?, reference])
    }

    /// Losses in nats, each by itself.
    fn near_losses(&self, what: &str, found: &[f32], expected: &[f32]) -> Result<(), Failure> {
        same_len(what, found, expected)?;
        let mut both = found.iter().zip(expected);
        both.try_for_each(|(&found, &expected)| near(what, &[found], &[expected], self.tolerance.loss, 1.0))
    }

    fn near_gradients<'a>(
        &self,
        params: impl Iterator<Item = &'a Param>,
        [found, expected]: &[Box<dyn Trainer>; 2],
    ) -> Result<(), Failure> {
        let [found, expected] = [found.read(Slot::Grads), expected.read(Slot::Grads)];
        same_len("the gradient", &found, &expected)?;
        // Gradients that vanish are compared with the others.
        let least = 1e-3 * norm(expected.iter().map(|&g| f64::from(g)));
        for param in params {
            let (found, expected) = (&found[param.range()], &expected[param.range()]);
            near(&param.name(), found, expected, self.tolerance.gradient, least)?;
        }
        Ok(())
    }

    fn losses(&self) -> Result<(), Failure> {
        let [mut engine, mut reference] = self.open()?;
        let Case { batch, .. } = self.case;
        let (found, expected) = (engine.losses(batch)?, reference.losses(batch)?);
        self.near_losses("losses", &found, &expected)?;
        if let Some(i) = (0..found.len()).find(|&i| batch.targets[i] == IGNORE && found[i] != 0.0) {
            return Err(Failure::Differs(format!("the loss of an ignored target is {}", found[i])));
        }
        self.near_losses("the mean loss", &[engine.loss(batch)?], &[reference.loss(batch)?])
    }

    /// Two micro-batches, whose gradients add up; those of the second are received, if the device gives them.
    fn training(&self) -> Result<(), Failure> {
        let mut both = self.open()?;
        let received = Received::default();
        let receive = |start: usize, values: &mut [f32]| received.add(start, values);
        for (weight, seed, ready) in [(0.25, 3, None), (0.75, 4, Some(Ready(&receive)))] {
            let backward = Backward { weight, dropout: self.case.dropout, seed, ready };
            let [found, expected] = both.each_mut().map(|model| model.forward_backward(&self.case.batch, backward));
            self.near_losses("the training loss", &[found?], &[expected?])?;
        }
        received.undo(&mut *both[0])?;
        self.near_gradients(ParamList::new(&self.case.config).iter(), &both)
    }

    /// Updates with the same gradients, clipped and not, and one that is not finite; then losses, of parameters that were updated
    /// and of some that were written.
    fn updates(&self) -> Result<(), Failure> {
        let Case { config, batch, .. } = self.case;
        let mut both = self.open()?;
        let total = both[1].read(Slot::Params).len();
        let uniform = |seed: u64| (0..total as u64).map(move |i| (splitmix(i ^ seed) >> 40) as f32 / 1e7);
        // As a run that is resumed goes on with moments.
        for (slot, seed) in [(Slot::ExpAvg, 5), (Slot::ExpAvgSq, 6)] {
            let moments: Vec<f32> = uniform(seed).collect();
            write(&mut both, slot, &moments)?;
        }
        for (step, grad_clip) in [(1, 0.0), (2, 1.0), (3, 1e9), (4, 1.0)] {
            let mut grads: Vec<f32> = uniform(step).map(|x| x - 0.8).collect();
            if step == 4 {
                grads[total / 2] = f32::INFINITY;
            }
            update(&mut both, &grads, &AdamW { step, grad_clip, ..ADAMW })?;
        }
        let [engine, reference] = &mut both;
        // The engine computes with the parameters that it says it has.
        reference.write(Slot::Params, &engine.read(Slot::Params))?;
        self.near_losses("losses of updated parameters", &engine.losses(batch)?, &reference.losses(batch)?)?;
        write(&mut both, Slot::Params, &values(ParamList::new(config).iter(), 4))?;
        let [engine, reference] = &mut both;
        self.near_losses("losses of written parameters", &engine.losses(batch)?, &reference.losses(batch)?)
    }

    /// Updates with Muon: the matrices by their change, whose products have the precision of the device, all else exactly.
    fn muon(&self) -> Result<(), Failure> {
        let mut both = self.open()?;
        let list = ParamList::new(&self.case.config);
        let muon = Muon { lr: 0.5, momentum: 0.95, weight_decay: 0.02 };
        for step in 1..=3 {
            let grads = values(list.iter(), 20 + step);
            let before = both[1].read(Slot::Params).into_owned();
            write(&mut both, Slot::Params, &before)?;
            write(&mut both, Slot::Grads, &grads)?;
            for model in &mut both {
                model.update(&AdamW { step, grad_clip: 1.0, ..ADAMW }, Some(&muon))?;
            }
            for slot in [Slot::Grads, Slot::ExpAvg, Slot::ExpAvgSq] {
                near(&format!("{slot:?}"), &both[0].read(slot), &both[1].read(slot), 2e-6, 0.0)?;
            }
            let changes = |i: usize| both[i].read(Slot::Params).iter().zip(&before).map(|(p, b)| p - b).collect();
            let [found, expected]: [Vec<f32>; 2] = [changes(0), changes(1)];
            for param in &list {
                let tolerance = if param.num_layer_matrices() > 0 { self.tolerance.gradient } else { 1e-4 };
                near(&param.name(), &found[param.range()], &expected[param.range()], tolerance, 1e-6)?;
            }
        }
        Ok(())
    }

    /// Updates of three shares, one of which ends within the embeddings, and one between the matrices of a stacked parameter.
    fn shares(&self) -> Result<(), Failure> {
        let list = ParamList::new(&self.case.config);
        let total = list.total();
        let stacked = list.iter().find(|param| param.num_layer_matrices() > 0).expect("a block has matrices");
        let cut = stacked.offset + stacked.len() / stacked.num_layer_matrices();
        for share in [0..list.wte.len() / 3, list.wte.len() / 3..cut, cut..total] {
            let mut both = self.open()?;
            let moments: Vec<f32> = values(list.iter(), 30)[share.clone()].iter().map(|x| x.abs()).collect();
            for model in &mut both {
                model.set_share(share.clone())?;
                model.write(Slot::ExpAvg, &moments)?;
                model.write(Slot::ExpAvgSq, &moments)?;
            }
            let before = both[1].read(Slot::Params).into_owned();
            write(&mut both, Slot::Grads, &values(list.iter(), 31))?;
            let mut sums = [0.0; 2];
            for (model, sum) in both.iter_mut().zip(&mut sums) {
                *sum = model.grad_square_sum() as f32;
                let muon = Muon { lr: 0.5, momentum: 0.95, weight_decay: 0.02 };
                model.update_share(&AdamW { grad_clip: 1.0, ..ADAMW }, Some(&muon), 2.0)?;
            }
            near("the share's sum of squared gradients", &sums[..1], &sums[1..], 1e-5, 0.0)?;
            for slot in [Slot::Grads, Slot::ExpAvg, Slot::ExpAvgSq] {
                near(&format!("{slot:?} of a share"), &both[0].read(slot), &both[1].read(slot), 2e-6, 0.0)?;
            }
            let [found, expected] = both.each_ref().map(|model| model.read(Slot::Params));
            let others = |params: &[f32]| [&params[..share.start], &params[share.end..]].concat();
            if others(&found) != others(&before) {
                return Err(Failure::Differs("parameters outside the share changed".into()));
            }
            let changes = |params: &[f32]| -> Vec<f32> { params.iter().zip(&before).map(|(p, b)| p - b).collect() };
            near("a share's update", &changes(&found), &changes(&expected), self.tolerance.gradient, 1e-6)?;
        }
        Ok(())
    }

    /// Adapters everywhere and on one layer: their gradients and updates, and merged.
    fn adapters(&self) -> Result<(), Failure> {
        let Case { config, batch, dropout, .. } = self.case;
        let some = if config.family == Family::Gpt2 { "mlp.c_proj" } else { "v_proj,up_proj,down_proj" };
        for (targets, rank) in [("all", 3), (some, 1)] {
            let targets = targets.parse().map_err(|error| Failure::Differs(format!("{error}")))?;
            let lora = Lora { rank: rank.min(config.n_embd), alpha: 1.5, targets };
            let list = LoraList::new(config, &lora).map_err(|error| Failure::Differs(error.to_string()))?;
            let mut both = self.open()?;
            let backward = Backward { dropout: *dropout, seed: 5, ..Backward::default() };
            let mut losses = [0.0; 2];
            for (model, loss) in both.iter_mut().zip(&mut losses) {
                model.adapt(&lora, values(list.iter(), 2))?;
                *loss = model.forward_backward(batch, backward)?;
            }
            if both[0].decoder(1).is_ok() {
                return Err(Failure::Differs("a model with adapters decodes".into()));
            }
            self.near_losses("the loss", &losses[..1], &losses[1..])?;
            self.near_gradients(list.iter(), &both)?;
            let grads = both[1].read(Slot::Grads).into_owned();
            update(&mut both, &grads, &ADAMW)?;
            let [engine, reference] = &mut both;
            reference.write(Slot::Params, &engine.read(Slot::Params))?;
            near("merged parameters", &engine.merged(), &reference.merged(), 1e-6, 0.0)?;
            self.near_losses("losses", &engine.losses(batch)?, &reference.losses(batch)?)?;
            engine.merge();
            reference.merge();
            near("parameters once merged", &engine.read(Slot::Params), &reference.read(Slot::Params), 1e-6, 0.0)?;
            self.near_losses("losses once merged", &engine.losses(batch)?, &reference.losses(batch)?)?;
            // Now all of it learns.
            for model in &mut both {
                model.forward_backward(batch, backward)?;
            }
            self.near_gradients(ParamList::new(config).iter(), &both)?;
        }
        Ok(())
    }

    /// Every divergence, of a teacher of another shape and of its most likely tokens.
    fn distillation(&self) -> Result<(), Failure> {
        let Case { config, batch, dropout, .. } = self.case;
        self.open()?[0].distiller()?;
        let (block_size, vocab_size) = (config.block_size, config.vocab_size);
        let shape = match config.family {
            // A teacher of the other family.
            Family::Qwen3 => Config::new(1, 2, 10, block_size, vocab_size),
            Family::Gpt2 => Config { activation: config.activation, ..Config::new(1, 2, 10, block_size, vocab_size) },
            _ => Config { tied: false, ..Config::llama(1, 2, 1, 12, 7, block_size, vocab_size) },
        };
        let params = values(ParamList::new(&shape).iter(), 3);
        let mut teacher = self.device.open_teacher(shape.clone(), params.clone(), self.options)?;
        let mut reference_teacher = ReferenceDevice.open_teacher(shape, params, Options::default())?;
        let k = config.vocab_size.div_ceil(3).min(config.vocab_size - 1);
        let (temperature, backward) = (1.7, Backward { weight: 0.5, dropout: *dropout, seed: 6, ready: None });
        let received = Received::default();
        let receive = |start: usize, values: &mut [f32]| received.add(start, values);
        let top_k = reference_teacher.top_k(batch, k, temperature)?;
        let found = teacher.top_k(batch, k, temperature)?;
        self.near_losses("the teacher's log probabilities", &found.log_probs, &top_k.log_probs)?;
        let expected = log_probs_of(&found.ids, k, &reference_teacher.top_k(batch, config.vocab_size, temperature)?);
        self.near_losses("the log probabilities of the teacher's tokens", &found.log_probs, &expected)?;

        let list = ParamList::new(config);
        for (divergence, alpha) in [
            (Divergence::ForwardKl, 0.0),
            (Divergence::ForwardKl, 0.6),
            (Divergence::ReverseKl, 0.6),
            (Divergence::JensenShannon, 1.0),
        ] {
            let distill = DistillConfig { temperature, alpha, divergence };
            let with_top_k = divergence == Divergence::ForwardKl;
            // The gradients of both add up.
            let mut both = self.open()?;
            for top_k in [None, Some(&top_k)].into_iter().take(if with_top_k { 2 } else { 1 }) {
                for (name, backward) in
                    [("losses without a gradient", None), ("losses with a gradient", Some(backward))]
                {
                    let teachers = [&mut teacher, &mut reference_teacher];
                    let mut losses = [[0.0; 2]; 2];
                    for ((model, teacher), losses) in both.iter_mut().zip(teachers).zip(&mut losses) {
                        let source = source(&mut **teacher, top_k);
                        let backward = backward.map(|backward| Backward { ready: Some(Ready(&receive)), ..backward });
                        let found = model.distiller()?.distill(batch, source, &distill, backward)?;
                        let DistillLoss { cross_entropy, divergence } = found;
                        *losses = [cross_entropy, divergence];
                        received.undo(&mut **model)?;
                    }
                    self.near_losses(name, &losses[0], &losses[1])?;
                }
                self.near_gradients(list.iter(), &both)?;
            }
        }
        Ok(())
    }

    /// Sequences that are fed unevenly, in any order, that end, and that begin again; and feeds that are refused.
    fn decoding(&self) -> Result<(), Failure> {
        let block = self.case.config.block_size;
        let mut both = self.open()?;
        // Other parameters than those that it was opened with, as training leaves them.
        write(&mut both, Slot::Params, &values(ParamList::new(&self.case.config).iter(), 4))?;
        if both[0].decoder(0).is_ok() {
            return Err(Failure::Differs("a decoder of no sequences".into()));
        }
        let [mut engine, mut reference] = [both[0].decoder(3)?, both[1].decoder(3)?];
        let mut steps = vec![vec![(0, block / 2), (2, 1)], vec![(1, block)], vec![(2, 2), (0, 1)]];
        steps.extend(vec![vec![(1, 1), (0, 1), (2, 1)]; block]);
        for (i, step) in steps.into_iter().enumerate() {
            if i == 2 {
                engine.clear(1);
                reference.clear(1);
                self.refused_feeds(&mut *engine)?;
            }
            let full = step.iter().find(|(sequence, _)| reference.len(*sequence) == block);
            if let Some(&(sequence, _)) = full
                && engine.feed(&[Feed::new(sequence, &[0])]).is_ok()
            {
                return Err(Failure::Differs(format!("{} tokens in a block of {block}", block + 1)));
            }
            let tokens: Vec<(usize, Vec<u32>)> = step
                .into_iter()
                .map(|(sequence, n)| {
                    let first = reference.len(sequence);
                    let token = |t| (splitmix((sequence << 20 | t) as u64) % self.case.config.vocab_size as u64) as u32;
                    (sequence, (first..(first + n).min(block)).map(token).collect())
                })
                .collect();
            let fed = tokens.iter().filter(|(_, tokens)| !tokens.is_empty());
            let feeds: Vec<Feed<'_>> = fed.map(|(sequence, tokens)| Feed::new(*sequence, tokens)).collect();
            if feeds.is_empty() {
                continue;
            }
            let (found, expected) = (engine.feed(&feeds)?, reference.feed(&feeds)?);
            near("logits", found, expected, self.tolerance.loss, 0.0)?;
            if let Some(sequence) = (0..3).find(|&sequence| engine.len(sequence) != reference.len(sequence)) {
                let (found, expected) = (engine.len(sequence), reference.len(sequence));
                return Err(Failure::Differs(format!("sequence {sequence} has {found} tokens, not {expected}")));
            }
        }
        self.shared_pages(&both)
    }

    /// Logits after several tokens, a sequence that begins with another's page, and a cache that is full.
    fn shared_pages(&self, both: &[Box<dyn Trainer>; 2]) -> Result<(), Failure> {
        let tokens: Vec<u32> =
            (0..=PAGE as u64).map(|i| (splitmix(i) % self.case.config.vocab_size as u64) as u32).collect();
        if tokens.len() > self.case.config.block_size {
            return Ok(());
        }
        let mut logits = [Vec::new(), Vec::new()];
        for (model, logits) in both.iter().zip(&mut logits) {
            let mut decoder = model.decoder_within(3, 3)?;
            logits.extend_from_slice(decoder.feed(&[Feed { sequence: 0, tokens: &tokens, logits: 3 }])?);
            decoder.share(0, 2, 1)?;
            decoder.clear(0);
            logits.extend_from_slice(decoder.feed(&[Feed::new(1, &tokens[1..2]), Feed::new(2, &tokens[..1])])?);
            let accepted = [
                ("a page shared with a sequence that has tokens", decoder.share(2, 1, 1).is_ok()),
                ("a page accepted that a sequence has not filled", decoder.share(1, 0, 1).is_ok()),
                ("a token accepted by a full cache", decoder.feed(&[Feed::new(0, &tokens[..1])]).is_ok()),
            ];
            if let Some((what, _)) = accepted.into_iter().find(|(_, accepted)| *accepted) {
                return Err(Failure::Differs(what.into()));
            }
            let free = decoder.free_pages();
            if free > 0 {
                return Err(Failure::Differs(format!("{free} pages of a full cache are free")));
            }
        }
        near("logits of a shared page", &logits[0], &logits[1], self.tolerance.loss, 0.0)
    }

    /// Feeds that a decoder refuses whose third sequence has tokens: all sequences stay as they are.
    fn refused_feeds(&self, decoder: &mut dyn Decoder) -> Result<(), Failure> {
        let Config { block_size, vocab_size, .. } = self.case.config;
        let (outside, long) = ([vocab_size as u32], vec![0; block_size + 2 - decoder.len(2)]);
        let long_name = format!("{} tokens in a block of {block_size}", block_size + 2);
        let feed = |sequence, tokens| Feed::new(sequence, tokens);
        // One that alone would be taken stands before the one at fault.
        let good = feed(1, &[0]);
        for (what, feeds) in [
            ("no feeds accepted", &[][..]),
            ("a feed without tokens accepted", &[good, feed(0, &[])]),
            ("two feeds of one sequence accepted", &[good, good]),
            ("a sequence that does not exist accepted", &[good, feed(3, &[0])]),
            ("a token outside the vocabulary accepted", &[good, feed(0, &outside)]),
            (&long_name, &[good, feed(2, &long)]),
        ] {
            if decoder.feed(feeds).is_ok() {
                return Err(Failure::Differs(what.into()));
            }
        }
        Ok(())
    }
}

/// A teacher, or its most likely tokens.
fn source<'a>(teacher: &'a mut dyn Teacher, top_k: Option<&'a TopK>) -> TeacherSource<'a> {
    match top_k {
        Some(top_k) => TeacherSource::TopK(top_k),
        None => TeacherSource::Teacher(teacher),
    }
}

/// Log probabilities of tokens, `[tokens, k]`, where `all` ranks the whole vocabulary: equally likely ones may come in any order.
/// NaN for one that is named twice or does not exist.
fn log_probs_of(ids: &[u32], k: usize, all: &TopK) -> Vec<f32> {
    let mut log_probs = Vec::new();
    let ranked = all.ids.chunks_exact(all.k).zip(all.log_probs.chunks_exact(all.k));
    for (ids, (all_ids, all_log_probs)) in ids.chunks(k).zip(ranked) {
        let mut left = vec![f32::NAN; all.k];
        all_ids.iter().zip(all_log_probs).for_each(|(&id, &log_prob)| left[id as usize] = log_prob);
        let take = |&id: &u32| left.get_mut(id as usize).map_or(f32::NAN, |x| std::mem::replace(x, f32::NAN));
        log_probs.extend(ids.iter().map(take));
    }
    log_probs
}
