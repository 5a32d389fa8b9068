//! Roles of parameters in a model.

use crate::Config;

/// Role of a parameter, named as in nanoGPT. Those of a block occur once per layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding, tied to the final projection.
    Wte,
    /// Position embedding.
    Wpe,
    /// γ of the LayerNorm before attention.
    Ln1Weight,
    /// β of the LayerNorm before attention.
    Ln1Bias,
    /// Projection to query, key and value, in this order.
    CAttnWeight,
    /// Bias of query, key and value.
    CAttnBias,
    /// Output projection of attention.
    AttnCProjWeight,
    /// Bias of attention's output projection.
    AttnCProjBias,
    /// γ of the LayerNorm before the MLP.
    Ln2Weight,
    /// β of the LayerNorm before the MLP.
    Ln2Bias,
    /// Input projection of the MLP.
    CFcWeight,
    /// Bias of the MLP's input projection.
    CFcBias,
    /// Output projection of the MLP.
    MlpCProjWeight,
    /// Bias of the MLP's output projection.
    MlpCProjBias,
    /// γ of the LayerNorm before the final projection.
    LnFWeight,
    /// β of the LayerNorm before the final projection.
    LnFBias,
}

impl Role {
    /// All roles, in the order of the flat array; those of a block repeat for each layer.
    pub const ALL: [Self; 16] = [
        Self::Wte,
        Self::Wpe,
        Self::Ln1Weight,
        Self::Ln1Bias,
        Self::CAttnWeight,
        Self::CAttnBias,
        Self::AttnCProjWeight,
        Self::AttnCProjBias,
        Self::Ln2Weight,
        Self::Ln2Bias,
        Self::CFcWeight,
        Self::CFcBias,
        Self::MlpCProjWeight,
        Self::MlpCProjBias,
        Self::LnFWeight,
        Self::LnFBias,
    ];

    /// Returns the shape of the parameter: one or two dimensions, a matrix as `[out, in]`.
    pub fn shape(self, config: &Config) -> Vec<usize> {
        let (rows, columns) = self.dims(config);
        std::iter::once(rows).chain(columns).collect()
    }

    /// Returns the two dimensions; the second is `None` for a vector.
    pub(super) fn dims(self, config: &Config) -> (usize, Option<usize>) {
        let c = config.n_embd;
        match self {
            Self::Wte => (config.vocab_size, Some(c)),
            Self::Wpe => (config.block_size, Some(c)),
            Self::CAttnWeight => (3 * c, Some(c)),
            Self::AttnCProjWeight => (c, Some(c)),
            Self::CFcWeight => (4 * c, Some(c)),
            Self::MlpCProjWeight => (c, Some(4 * c)),
            Self::CAttnBias => (3 * c, None),
            Self::CFcBias => (4 * c, None),
            Self::Ln1Weight | Self::Ln1Bias | Self::Ln2Weight | Self::Ln2Bias | Self::LnFWeight | Self::LnFBias => {
                (c, None)
            }
            Self::AttnCProjBias | Self::MlpCProjBias => (c, None),
        }
    }

    /// Returns true for the parameters that a model without biases lacks.
    pub fn is_bias(self) -> bool {
        matches!(
            self,
            Self::Ln1Bias
                | Self::CAttnBias
                | Self::AttnCProjBias
                | Self::Ln2Bias
                | Self::CFcBias
                | Self::MlpCProjBias
                | Self::LnFBias
        )
    }

    /// Returns true for the weights of a block's linear layers.
    pub(super) fn is_layer_weight(self) -> bool {
        matches!(self, Self::CAttnWeight | Self::AttnCProjWeight | Self::CFcWeight | Self::MlpCProjWeight)
    }
}
