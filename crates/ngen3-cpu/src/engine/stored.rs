//! Weights as a GGUF file stores them, laid out for the decoder.

use std::ops::Range;
use std::sync::Arc;

use ngen3_engine::Error;
use ngen3_model::{Config, Param, ParamList, Projection, StoredWeight};

use crate::gemm::groups::{Format, GROUP, Groups};

/// Rows of a weight of one format.
#[derive(Debug)]
pub struct Part {
    /// Number of outputs.
    pub outputs: usize,
    /// The weight; `None` if the file stores it in another way, so that the parameters are read.
    pub groups: Option<Arc<Groups>>,
}

/// Weights that replace those in the parameters when the model decodes.
#[derive(Debug)]
pub struct StoredWeights {
    /// Parts of each block's linear layers, in the order of [`Projection`].
    pub blocks: Vec<[Vec<Part>; Projection::ALL.len()]>,
    /// Parts of the final projection.
    pub lm_head: Vec<Part>,
}

impl StoredWeights {
    /// Lays out the weights of a model, one entry for each parameter.
    ///
    /// # Errors
    /// [`Error::Input`] if an entry does not fit its parameter; [`Error::Memory`] if the weights do not fit in memory.
    pub fn new(config: &Config, list: &ParamList, stored: Vec<Option<StoredWeight>>) -> Result<Self, Error> {
        let (expected, found) = (list.iter().count(), stored.len());
        if expected != found {
            return Err(Error::Input(format!("stored weights: expected {expected} entries, got {found}")));
        }
        let parts = |range: &Range<usize>, inputs: usize| parts(list, &stored, range, inputs);
        let mut blocks = Vec::new();
        for block in &list.blocks {
            let [a, b, c, d] =
                Projection::ALL.map(|projection| parts(block.linear(projection).0, projection.shape(config)[1]));
            blocks.push([a?, b?, c?, d?]);
        }
        Ok(Self { blocks, lm_head: parts(&list.lm_head, config.n_embd)? })
    }
}

/// Parameters that follow one another in one format.
#[derive(Default)]
struct Run<'a> {
    format: Option<Format>,
    outputs: usize,
    blocks: Vec<&'a [u8]>,
}

impl Run<'_> {
    fn part(self, inputs: usize) -> Result<Part, Error> {
        let Self { format, outputs, blocks } = self;
        let groups = format.map(|format| Groups::from_blocks(format, &blocks, inputs / GROUP)).transpose()?;
        Ok(Part { outputs, groups: groups.map(Arc::new) })
    }
}

/// Returns the parts of the weight in `range`, `[outputs, inputs]`, of which each run of parameters is one.
fn parts(
    list: &ParamList,
    stored: &[Option<StoredWeight>],
    range: &Range<usize>,
    inputs: usize,
) -> Result<Vec<Part>, Error> {
    let (mut parts, mut run) = (Vec::new(), Run::default());
    for (param, stored) in list.iter().zip(stored) {
        if param.is_empty() || param.offset < range.start || param.range().end > range.end {
            continue;
        }
        let outputs = param.len() / inputs;
        let format = stored.as_ref().map(|weight| checked(param, weight, [outputs, inputs])).transpose()?;
        if run.outputs > 0 && run.format != format {
            parts.push(std::mem::take(&mut run).part(inputs)?);
        }
        run.format = format;
        run.outputs += outputs;
        run.blocks.extend(stored.as_ref().map(|weight| &weight.bytes[..]));
    }
    parts.push(run.part(inputs)?);
    Ok(parts)
}

/// Returns the format of a weight of this shape.
fn checked(param: &Param, weight: &StoredWeight, [outputs, inputs]: [usize; 2]) -> Result<Format, Error> {
    let StoredWeight { tensor_type, bytes } = weight;
    let format = Format::of(*tensor_type).filter(|_| inputs.is_multiple_of(GROUP));
    let fits = |format: &Format| bytes.len() == outputs * (inputs / GROUP) * format.block();
    format.filter(fits).ok_or_else(|| {
        let (name, bytes) = (param.name(), bytes.len());
        Error::Input(format!("stored weight {name}: {bytes} bytes of {tensor_type} do not fit [{outputs}, {inputs}]"))
    })
}
