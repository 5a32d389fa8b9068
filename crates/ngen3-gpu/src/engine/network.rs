//! [`Network`]: a model's shape and parameters on the device, and those of its adapters.

use std::ops::Range;
use std::sync::Arc;

use ngen3_engine::Error;
use ngen3_model::{AdapterRanges, Config, Lora, LoraList, Norm, ParamList, Projection};

use super::layout::{Array, Layout, Piece};
use crate::device::{Buffer, Context, Recorder, View};
use crate::kernels::attention::Shape;
use crate::kernels::embedding::Part;
use crate::kernels::norm;
use crate::kernels::product::{Epilogue, Form, Matrix, product};
use crate::kernels::rotary;

/// A model on the device.
pub struct Network {
    /// The device.
    pub context: Arc<Context>,
    /// The shape.
    pub config: Config,
    /// Ranges of the parameters.
    pub list: ParamList,
    /// Places of the parameters.
    pub layout: Layout,
    /// Parameters.
    pub params: Array,
    /// If present, they are trained and `params` is frozen.
    pub adapters: Option<Adapters>,
    /// Cosines and sines of the positions; `None` for learned ones.
    pub rotary: Option<Buffer>,
}

/// All low-rank adapters of a model.
pub struct Adapters {
    /// Their shape.
    pub lora: Lora,
    /// Ranges of the parameters.
    pub list: LoraList,
    /// Places of the parameters.
    pub layout: Layout,
    /// Parameters.
    pub params: Array,
}

/// Array that gradients are added to: of the parameters, or of the adapters if there are any.
pub type Gradients<'a> = &'a Array;

impl Network {
    /// Moves a model's parameters, `[total]`, to the device.
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid or `params` has the wrong length; [`Error::Memory`];
    /// [`Error::Unsupported`] for layers larger than the device's largest binding.
    pub fn new(context: &Arc<Context>, config: Config, params: &[f32], most: usize) -> Result<Self, Error> {
        config.validate().map_err(|e| Error::Input(e.to_string()))?;
        let list = ParamList::new(&config);
        if params.len() != list.total() {
            return Err(Error::Input(format!("expected {} parameters, got {}", list.total(), params.len())));
        }
        let layout = Layout::of_model(&config, &list, most);
        if !layout.is_whole_but(&[&list.wte, &list.lm_head]) {
            return Err(Error::Unsupported("layers larger than its largest binding"));
        }
        let array = Array::new(context, "parameters", &layout)?;
        array.write(context, &layout, params);
        let rotary = match config.rope {
            None => None,
            Some(rope) => {
                let (frequencies, scale) = rope.frequencies(config.head_width());
                Some(context.upload("rotary positions", &rotary::table(config.block_size, &frequencies, scale))?)
            }
        };
        let context = Arc::clone(context);
        Ok(Self { context, config, list, layout, params: array, adapters: None, rotary })
    }

    /// Heads of attention.
    pub fn heads(&self) -> Shape {
        Shape { heads: self.config.n_head, kv_heads: self.config.kv_heads(), width: self.config.head_width() }
    }

    /// Returns what is trained: its places and its values.
    pub fn learned(&self) -> (&Layout, &Array) {
        match &self.adapters {
            Some(adapters) => (&adapters.layout, &adapters.params),
            None => (&self.layout, &self.params),
        }
    }

    /// Returns a parameter; `None` if the model lacks it.
    pub fn p(&self, range: &Range<usize>) -> Option<View<'_>> {
        self.in_array(&self.params, range)
    }

    /// Returns the gradient of a parameter; `None` if the model lacks it or it is frozen.
    pub fn g<'a>(&self, grads: Gradients<'a>, range: &Range<usize>) -> Option<View<'a>> {
        if self.adapters.is_some() { None } else { self.in_array(grads, range) }
    }

    fn in_array<'a>(&self, array: &'a Array, range: &Range<usize>) -> Option<View<'a>> {
        (!range.is_empty()).then(|| array.whole(self.layout.tensor(range)))
    }

    /// Returns a norm, given its γ and β.
    pub fn norm(&self, [gamma, beta]: [&Range<usize>; 2]) -> norm::Norm<'_> {
        norm::Norm {
            rms: self.config.norm == Norm::RmsNorm,
            gamma: self.p(gamma).expect("every norm has γ"),
            beta: self.p(beta),
            eps: self.config.layer_norm_epsilon,
        }
    }

    /// Returns the pieces of an embedding or head in an array.
    pub fn parts<'a>(&self, array: &'a Array, range: &Range<usize>) -> Vec<Part<'a>> {
        let part = |piece: &Piece| Part { ids: piece.rows.clone(), view: array.piece(piece) };
        self.layout.tensor(range).pieces.iter().map(part).collect()
    }

    /// Returns the adapters of a projection.
    pub fn adapter(&self, layer: usize, projection: Projection) -> Option<(&Adapters, &AdapterRanges)> {
        let adapters = self.adapters.as_ref()?;
        Some((adapters, adapters.list.adapter(layer, projection)?))
    }

    /// Number of rows of all adapters of a projection.
    pub fn low_width(&self, layer: usize, projection: Projection) -> usize {
        self.adapter(layer, projection).map_or(0, |(adapters, ranges)| ranges.parts.len() * adapters.lora.rank)
    }

    /// Records W += s·B·A for every adapter, in an array of parameters.
    pub fn merge_into(&self, recorder: &mut Recorder<'_>, params: &Array) {
        for (layer, block) in self.list.blocks.iter().enumerate() {
            for projection in Projection::ALL {
                let Some((Adapters { lora, layout, params: values, .. }, ranges)) = self.adapter(layer, projection)
                else {
                    continue;
                };
                let [_, inputs] = projection.shape(&self.config);
                let weight = params.whole(self.layout.tensor(block.linear(projection).0));
                let a = values.whole(layout.tensor(&ranges.a));
                for (index, part) in ranges.parts.iter().enumerate() {
                    let b = Matrix::new(values.whole(layout.tensor(&part.b)), lora.rank);
                    let a = Matrix { view: a, first: index * lora.rank * inputs, stride: inputs };
                    let to = Matrix { view: weight, first: part.outputs.start * inputs, stride: inputs };
                    let shape = [part.outputs.len(), inputs, lora.rank];
                    product(recorder, Form::Nn, shape, lora.scale(), b, a, to, Epilogue::Add);
                }
            }
        }
    }
}
