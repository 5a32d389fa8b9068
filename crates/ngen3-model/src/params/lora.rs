//! Low-rank adapters (Hu et al. 2021). A linear layer with the weight W, `[outputs, inputs]`, gets two thin matrices A, `[rank,
//! inputs]`, and B, `[outputs, rank]`, and computes with W + (alpha/rank)·B·A. Only A and B are trained.
//!
//! [`Lora`] is their shape. [`LoraList`] lists their parameters, as [`crate::ParamList`] does a model's: names, shapes and
//! ranges in one flat `[total]` array. Names and shapes are those of Hugging Face's `peft`, without its prefix
//! `base_model.model.`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::list::{self, Init, LoraMatrix, Param};
use super::target::{Projection, Target, Targets};
use crate::{Config, Error};

/// Shape of the adapters. Field names are `peft`'s, without its prefixes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Scaling: B·A is multiplied by alpha/rank.
    pub alpha: f32,
    /// Layers of each block that have an adapter.
    #[serde(default)]
    pub targets: Targets,
}

impl Lora {
    /// Returns the factor of B·A, alpha/rank.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Checks the adapters against a model's shape.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn validate(&self, config: &Config) -> Result<(), Error> {
        config.validate()?;
        let Self { rank, alpha, targets } = self;
        if *rank == 0 || *rank > config.n_embd {
            let width = config.n_embd;
            return Err(Error::Config(format!(
                "the rank of an adapter is {rank}; it must be between 1 and {width}, the model's width"
            )));
        }
        if !(*alpha > 0.0 && alpha.is_finite()) {
            return Err(Error::Config(format!("the alpha of an adapter is {alpha}; it must be a number above 0")));
        }
        if targets.of(config.family).next().is_none() {
            let names: Vec<_> = Target::of(config.family).map(Target::name).collect();
            return Err(Error::Config(format!(
                "the adapter has no targets in this model: expected at least one of {}",
                names.join(", ")
            )));
        }
        Ok(())
    }
}

/// Adapters of one projection: one for each of its targets. The matrices A of all follow one another, then those B.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterRanges {
    /// `[parts · rank, inputs]`
    pub a: Range<usize>,
    /// One adapter each, in the order of the outputs.
    pub parts: Vec<AdapterPart>,
}

impl AdapterRanges {
    /// Returns the range of the matrices B: `[adapted outputs, rank]`.
    pub fn b(&self) -> Range<usize> {
        let (first, last) = (self.parts.first(), self.parts.last());
        first.map_or(self.a.end, |part| part.b.start)..last.map_or(self.a.end, |part| part.b.end)
    }
}

/// Adapter of some outputs of a projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterPart {
    /// Its outputs among those of the projection.
    pub outputs: Range<usize>,
    /// `[outputs, rank]`
    pub b: Range<usize>,
}

/// All parameters of the adapters, in the order of the flat array: block by block, each in the order of [`Projection::ALL`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoraList {
    params: Vec<Param>,
    total: usize,
    /// The projections of [`Projection::ALL`] in each block.
    blocks: Vec<[Option<AdapterRanges>; Projection::ALL.len()]>,
}

impl LoraList {
    /// Lays out the parameters of the adapters.
    ///
    /// # Errors
    /// As [`Lora::validate`].
    pub fn new(config: &Config, lora: &Lora) -> Result<Self, Error> {
        lora.validate(config)?;
        let (mut params, mut total) = (Vec::new(), 0);
        let mut add = |layer: usize, target: Target, matrix: LoraMatrix, shape: [usize; 2], init: Init| {
            let stream = params.len() as u64;
            let (role, family, layer, adapter) = (target.weight(), config.family, Some(layer), Some(matrix));
            let param = Param { role, family, layer, adapter, shape: shape.to_vec(), offset: total, init, stream };
            let range = param.range();
            total = range.end;
            params.push(param);
            range
        };
        let mut blocks = vec![[const { None }; Projection::ALL.len()]; config.n_layer];
        for (layer, block) in blocks.iter_mut().enumerate() {
            for projection in Projection::ALL {
                let [_, inputs] = projection.shape(config);
                let chosen = lora.targets.of(config.family).filter(|target| target.projection() == projection);
                let targets: Vec<Target> = chosen.collect();
                // As in peft: Kaiming uniform with a = √5 (He et al. 2015).
                let init = Init::Uniform { bound: 1.0 / (inputs as f32).sqrt() };
                let all_a: Vec<_> = targets
                    .iter()
                    .map(|&target| add(layer, target, LoraMatrix::A, [lora.rank, inputs], init))
                    .collect();
                let (Some(first), Some(last)) = (all_a.first(), all_a.last()) else { continue };
                let part = |target: Target| {
                    let outputs = target.outputs(config);
                    let b = add(layer, target, LoraMatrix::B, [outputs.len(), lora.rank], Init::Zeros);
                    AdapterPart { outputs, b }
                };
                let a = first.start..last.end;
                block[projection as usize] = Some(AdapterRanges { a, parts: targets.into_iter().map(part).collect() });
            }
        }
        Ok(Self { params, total, blocks })
    }

    /// Returns the number of parameters: the length of the flat array.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Returns the parameters in the order of the flat array.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.params.iter()
    }

    /// Returns the ranges of a projection's adapters, if it has any.
    ///
    /// # Panics
    /// If `layer` is out of range.
    pub fn adapter(&self, layer: usize, projection: Projection) -> Option<&AdapterRanges> {
        self.blocks[layer][projection as usize].as_ref()
    }

    /// Returns initial adapters, `[total]`, which change nothing: every B is zero. The same seed gives the same values on every
    /// machine.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        list::init(&self.params, self.total, seed)
    }
}

impl<'a> IntoIterator for &'a LoraList {
    type Item = &'a Param;
    type IntoIter = std::slice::Iter<'a, Param>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(targets: &str) -> Lora {
        Lora { rank: 4, alpha: 8.0, targets: targets.parse().unwrap() }
    }

    #[test]
    fn the_list_is_dense_and_a_fresh_adapter_changes_nothing() {
        let config = Config::new(3, 2, 64, 32, 500);
        let list = LoraList::new(&config, &lora("c_attn,c_fc,c_proj")).unwrap();
        let mut offset = 0;
        let flat = list.init(7);
        assert_eq!(flat, list.init(7));
        for param in &list {
            assert_eq!(param.offset, offset, "{} does not follow its predecessor", param.name());
            offset += param.len();
            assert!(param.decays());
            let values = &flat[param.range()];
            if param.name().ends_with("lora_B.weight") {
                assert!(values.iter().all(|&v| v == 0.0), "{}", param.name());
                continue;
            }
            let bound = 1.0 / (param.shape[1] as f32).sqrt();
            let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(largest <= bound && largest > 0.9 * bound, "{}: {largest}, bound {bound}", param.name());
        }
        assert_eq!((offset, flat.len()), (list.total(), list.total()));
        // A layer has rank parameters for each of its inputs and outputs: 4 + 2 + 5 + 5 widths.
        assert_eq!(list.total(), 3 * 4 * 16 * 64);
        assert_eq!(list.iter().next().unwrap().name(), "transformer.h.0.attn.c_attn.lora_A.weight");
        assert_ne!(flat, list.init(8));
    }

    #[test]
    fn only_the_targets_have_an_adapter() {
        let config = Config::new(2, 2, 8, 4, 50);
        let list = LoraList::new(&config, &lora("attn.c_proj")).unwrap();
        let parts = vec![AdapterPart { outputs: 0..8, b: 96..128 }];
        assert_eq!(list.adapter(1, Projection::AttnCProj), Some(&AdapterRanges { a: 64..96, parts }));
        assert_eq!((list.adapter(1, Projection::MlpCProj), list.iter().count(), list.total()), (None, 4, 128));
    }

    #[test]
    fn parts_of_a_projection_have_an_adapter_each() {
        let config = Config::llama(2, 4, 2, 24, 20, 4, 50);
        let list = LoraList::new(&config, &lora("v_proj,q_proj,down_proj")).unwrap();
        let AdapterRanges { a, parts } = list.adapter(0, Projection::CAttn).unwrap();
        assert_eq!(*a, 0..2 * 4 * 24);
        let (q, v) = (192..192 + 24 * 4, 288..288 + 12 * 4);
        assert_eq!(*parts, [AdapterPart { outputs: 0..24, b: q }, AdapterPart { outputs: 36..48, b: v }]);
        let names: Vec<_> = list.iter().take(4).map(Param::name).collect();
        assert_eq!(names[1], "model.layers.0.self_attn.v_proj.lora_A.weight");
        assert_eq!(names[2], "model.layers.0.self_attn.q_proj.lora_B.weight");
        assert_eq!(list.adapter(1, Projection::CFc), None);
        assert!(LoraList::new(&config, &lora("c_attn")).unwrap_err().to_string().contains("self_attn.q_proj"));
    }

    #[test]
    fn an_adapter_that_no_model_can_have_is_an_error() {
        let config = Config::new(2, 2, 8, 4, 50);
        let good = lora("c_attn");
        for (bad, expected) in [
            (Lora { rank: 0, ..good.clone() }, "rank of an adapter is 0"),
            (Lora { rank: 9, ..good.clone() }, "between 1 and 8"),
            (Lora { alpha: f32::NAN, ..good.clone() }, "alpha of an adapter is NaN"),
            (Lora { alpha: 0.0, ..good.clone() }, "above 0"),
            (Lora { targets: Targets::new([]), ..good.clone() }, "no targets"),
        ] {
            let error = LoraList::new(&config, &bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(LoraList::new(&Config { n_head: 3, ..config }, &good).is_err());
    }
}
