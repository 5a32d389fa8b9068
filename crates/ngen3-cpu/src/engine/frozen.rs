//! Embeddings of a model that only adapters of its layers are trained of: packed once for the loss, in bf16, which must hold them
//! exactly. They are their only copy: half of the memory, and no step packs them again.

use ngen3_engine::Error;
use ngen3_model::{Config, ParamList};
use rayon::prelude::*;

use crate::base::memory::Buffer;
use crate::gemm::tiles::panels_a;
use crate::gemm::{Mat, Precision};
use crate::layers::embedding::Table;
use crate::layers::loss::{self, Wanted};

/// Token embeddings and final projection of a frozen model.
#[derive(Debug)]
pub struct FrozenEmbeddings {
    /// The final projection, as the loss reads it ([`loss::pack_wte`]): panels of words come first.
    head: Buffer,
    /// The token embeddings in panels of words, if they are not the final projection.
    wte: Option<Buffer>,
}

impl FrozenEmbeddings {
    /// Packs the token embeddings and the final projection, each `[vocab_size, width]`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the copies do not fit in memory.
    pub fn new(config: &Config, wte: &[f32], lm_head: &[f32]) -> Result<Self, Error> {
        let (vocab_size, width) = (config.vocab_size, config.n_embd);
        let shape = loss::Shape::new(Precision::Bf16, loss::Sizes::of(config, 1), Wanted::Dhidden);
        let mut head = Buffer::zeros(shape.packed_wte(), "the packed final projection")?;
        loss::pack_wte(shape, lm_head, &mut head);
        let wte = if config.tied {
            None
        } else {
            let mut panels =
                Buffer::zeros(panels_a::packed_len::<2>(vocab_size, width), "the packed token embeddings")?;
            panels_a::pack::<2>(Mat::new(wte, vocab_size, width), bytemuck::cast_slice_mut(&mut panels));
            Some(panels)
        };
        Ok(Self { head, wte })
    }

    /// Token embeddings.
    pub fn wte(&self) -> Table<'_> {
        Table::Panels(bytemuck::cast_slice(self.wte.as_ref().unwrap_or(&self.head)))
    }

    /// Final projection, row by row and packed for the loss.
    pub fn lm_head(&self) -> (Table<'_>, &[f32]) {
        (Table::Panels(bytemuck::cast_slice(&self.head)), &self.head)
    }

    /// Writes the values to their places in `params`, which has the layout `list`.
    pub fn unpack(&self, list: &ParamList, params: &mut [f32]) {
        let width = list.ln_f_weight.len();
        for (table, range) in [(self.wte(), &list.wte), (self.lm_head().0, &list.lm_head)] {
            let rows = params[range.clone()].par_chunks_mut(width).enumerate();
            rows.for_each(|(token, row)| table.copy_row(token as u32, row));
        }
    }
}
