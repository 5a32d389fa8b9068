//! A block's linear layers with their adapters: y = x·Wᵀ + b + s·x·Aᵀ·Bᵀ   (Hu et al. 2021), and their gradients.

use ngen3_model::{AdapterRanges, Projection};

use super::arena::{Arena, Backward};
use super::network::{Adapters, Gradients, Network};
use crate::device::{Recorder, View};
use crate::kernels::column_sums::column_sums;
use crate::kernels::dropout::{self, Mask};
use crate::kernels::norm::Rows;
use crate::kernels::product::{Epilogue, Form, Matrix, product};

/// Use of a layer's output.
#[derive(Clone, Copy)]
pub enum Output<'a> {
    /// The output itself.
    Plain,
    /// residual + dropout(output), the end of a branch.
    Branch {
        /// `[N, C]`
        residual: View<'a>,
        /// Mask of the branch.
        mask: Mask,
    },
}

impl Network {
    /// Records a layer of a block on `x`, `[tokens, inputs]`.
    #[expect(clippy::too_many_arguments, reason = "a layer, its input and output, and working memory")]
    pub fn linear(
        &self,
        recorder: &mut Recorder<'_>,
        layer: usize,
        projection: Projection,
        tokens: usize,
        x: View<'_>,
        output: Output<'_>,
        y: View<'_>,
        arena: &Arena,
    ) {
        let (weight, bias) = self.list.blocks[layer].linear(projection);
        let [outputs, inputs] = projection.shape(&self.config);
        let weight = Matrix::new(self.p(weight).expect("every layer has a weight"), inputs);
        let (bias, shape) = (self.p(bias), [tokens, outputs, inputs]);
        let x = Matrix::new(x, inputs);
        let Some((adapters, ranges)) = self.adapter(layer, projection) else {
            let epilogue = match output {
                Output::Plain => Epilogue::Set(bias),
                Output::Branch { residual, mask } => Epilogue::Branch { bias, residual, mask },
            };
            product(recorder, Form::Nt, shape, 1.0, x, weight, Matrix::new(y, outputs), epilogue);
            return;
        };
        let whole = match output {
            Output::Plain => y,
            Output::Branch { .. } => arena.branch.first(tokens * outputs),
        };
        product(recorder, Form::Nt, shape, 1.0, x, weight, Matrix::new(whole, outputs), Epilogue::Set(bias));
        let Adapters { lora, layout, params, .. } = adapters;
        let width = ranges.parts.len() * lora.rank;
        let low = arena.block(layer).low[projection as usize].as_ref().expect("memory of adapters");
        let low = low.first(tokens * width);
        let a = Matrix::new(params.whole(layout.tensor(&ranges.a)), inputs);
        let to = Matrix::new(low, width);
        product(recorder, Form::Nt, [tokens, width, inputs], lora.scale(), x, a, to, Epilogue::Set(None));
        for (index, part) in ranges.parts.iter().enumerate() {
            let low = Matrix { view: low, first: index * lora.rank, stride: width };
            let b = Matrix::new(params.whole(layout.tensor(&part.b)), lora.rank);
            let to = Matrix { view: whole, first: part.outputs.start, stride: outputs };
            let shape = [tokens, part.outputs.len(), lora.rank];
            product(recorder, Form::Nt, shape, 1.0, low, b, to, Epilogue::Add);
        }
        if let Output::Branch { residual, mask } = output {
            dropout::apply(recorder, whole, mask, Some(residual), y);
        }
    }

    /// Records the gradient of a layer's input, `dx`, and adds those of its parameters, given that of its output.
    #[expect(clippy::too_many_arguments, reason = "a layer, its input, the gradients and working memory")]
    pub fn linear_backward(
        &self,
        recorder: &mut Recorder<'_>,
        layer: usize,
        projection: Projection,
        tokens: usize,
        x: View<'_>,
        dy: View<'_>,
        dx: View<'_>,
        grads: Gradients<'_>,
        arena: &Arena,
        scratch: &Backward,
    ) {
        let (weight_range, bias_range) = self.list.blocks[layer].linear(projection);
        let [outputs, inputs] = projection.shape(&self.config);
        let [x, dx] = [x, dx].map(|view| Matrix::new(view, inputs));
        let dy_matrix = Matrix::new(dy, outputs);
        if let Some(dweight) = self.g(grads, weight_range) {
            let to = Matrix::new(dweight, inputs);
            product(recorder, Form::Tn, [outputs, inputs, tokens], 1.0, dy_matrix, x, to, Epilogue::Add);
        }
        if let Some(dbias) = self.g(grads, bias_range) {
            let rows = Rows::plain(tokens, outputs);
            column_sums(recorder, rows, dy, None, Some(dbias), scratch.partials.all());
        }
        let weight = Matrix::new(self.p(weight_range).expect("every layer has a weight"), inputs);
        let set = Epilogue::Set(None);
        product(recorder, Form::Nn, [tokens, inputs, outputs], 1.0, dy_matrix, weight, dx, set);
        if let Some((adapters, ranges)) = self.adapter(layer, projection) {
            let low = arena.block(layer).low[projection as usize].as_ref().expect("memory of adapters");
            adapter_backward(
                recorder,
                adapters,
                ranges,
                tokens,
                [inputs, outputs],
                x,
                low.all(),
                dy,
                dx,
                grads,
                scratch,
            );
        }
    }
}

/// With dlow = s·dy·B: dx += dlow·A, dA += dlowᵀ·x, dB += dyᵀ·low.
#[expect(clippy::too_many_arguments, reason = "an adapter, its input, the gradients and working memory")]
fn adapter_backward(
    recorder: &mut Recorder<'_>,
    Adapters { lora, layout, params, .. }: &Adapters,
    ranges: &AdapterRanges,
    tokens: usize,
    [inputs, outputs]: [usize; 2],
    x: Matrix<'_>,
    low: View<'_>,
    dy: View<'_>,
    dx: Matrix<'_>,
    grads: Gradients<'_>,
    scratch: &Backward,
) {
    let (rank, width) = (lora.rank, ranges.parts.len() * lora.rank);
    let dlow = scratch.dlow.first(tokens * width);
    for (index, part) in ranges.parts.iter().enumerate() {
        let column = |view| Matrix { view, first: index * rank, stride: width };
        let dy = Matrix { view: dy, first: part.outputs.start, stride: outputs };
        let (b, n) = (layout.tensor(&part.b), part.outputs.len());
        let weight = Matrix::new(params.whole(b), rank);
        product(recorder, Form::Nn, [tokens, rank, n], lora.scale(), dy, weight, column(dlow), Epilogue::Set(None));
        let to = Matrix::new(grads.whole(b), rank);
        product(recorder, Form::Tn, [n, rank, tokens], 1.0, dy, column(low), to, Epilogue::Add);
    }
    let (a, dlow) = (layout.tensor(&ranges.a), Matrix::new(dlow, width));
    let weight = Matrix::new(params.whole(a), inputs);
    product(recorder, Form::Nn, [tokens, inputs, width], 1.0, dlow, weight, dx, Epilogue::Add);
    let to = Matrix::new(grads.whole(a), inputs);
    product(recorder, Form::Tn, [width, inputs, tokens], 1.0, dlow, x, to, Epilogue::Add);
}
