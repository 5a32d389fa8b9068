//! Roles of parameters in a model.

use crate::{Config, Family};

/// Role of a parameter, named as in nanoGPT, or as in `transformers` where nanoGPT has none. Those of a block occur once per
/// layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding.
    Wte,
    /// Position embedding.
    Wpe,
    /// γ of the norm before attention.
    Ln1Weight,
    /// β of the norm before attention.
    Ln1Bias,
    /// Projection to query, key and value, in this order.
    CAttnWeight,
    /// Projection to the queries.
    QProjWeight,
    /// Projection to the keys.
    KProjWeight,
    /// Projection to the values.
    VProjWeight,
    /// Bias of query, key and value.
    CAttnBias,
    /// Bias of the queries.
    QProjBias,
    /// Bias of the keys.
    KProjBias,
    /// Bias of the values.
    VProjBias,
    /// γ of the norm of each head's query.
    QNormWeight,
    /// γ of the norm of each head's key.
    KNormWeight,
    /// Output projection of attention.
    AttnCProjWeight,
    /// Bias of attention's output projection.
    AttnCProjBias,
    /// γ of the norm before the MLP.
    Ln2Weight,
    /// β of the norm before the MLP.
    Ln2Bias,
    /// Input projection of the MLP.
    CFcWeight,
    /// Projection of the MLP whose output goes through SwiGLU's activation.
    GateProjWeight,
    /// Projection of the MLP whose output SwiGLU multiplies by the activation.
    UpProjWeight,
    /// Bias of the MLP's input projection.
    CFcBias,
    /// Bias of the gate.
    GateProjBias,
    /// Bias of the projection that SwiGLU multiplies.
    UpProjBias,
    /// Output projection of the MLP.
    MlpCProjWeight,
    /// Bias of the MLP's output projection.
    MlpCProjBias,
    /// γ of the norm before the final projection.
    LnFWeight,
    /// β of the norm before the final projection.
    LnFBias,
    /// Final projection, of a model that does not use the token embedding for it.
    LmHeadWeight,
}

impl Role {
    /// All roles, in the order of the flat array; those of a block repeat for each layer.
    pub const ALL: [Self; 29] = [
        Self::Wte,
        Self::Wpe,
        Self::Ln1Weight,
        Self::Ln1Bias,
        Self::CAttnWeight,
        Self::QProjWeight,
        Self::KProjWeight,
        Self::VProjWeight,
        Self::CAttnBias,
        Self::QProjBias,
        Self::KProjBias,
        Self::VProjBias,
        Self::QNormWeight,
        Self::KNormWeight,
        Self::AttnCProjWeight,
        Self::AttnCProjBias,
        Self::Ln2Weight,
        Self::Ln2Bias,
        Self::CFcWeight,
        Self::GateProjWeight,
        Self::UpProjWeight,
        Self::CFcBias,
        Self::GateProjBias,
        Self::UpProjBias,
        Self::MlpCProjWeight,
        Self::MlpCProjBias,
        Self::LnFWeight,
        Self::LnFBias,
        Self::LmHeadWeight,
    ];

    /// Returns true if the parameter belongs to a transformer block.
    pub fn is_in_block(self) -> bool {
        !matches!(self, Self::Wte | Self::Wpe | Self::LnFWeight | Self::LnFBias | Self::LmHeadWeight)
    }

    /// Returns true if models of this family can have the parameter.
    pub(crate) fn is_of(self, family: Family) -> bool {
        match self {
            Self::Wte
            | Self::Ln1Weight
            | Self::AttnCProjWeight
            | Self::AttnCProjBias
            | Self::Ln2Weight
            | Self::MlpCProjWeight
            | Self::MlpCProjBias
            | Self::LnFWeight => true,
            Self::Wpe
            | Self::Ln1Bias
            | Self::CAttnWeight
            | Self::CAttnBias
            | Self::Ln2Bias
            | Self::CFcWeight
            | Self::CFcBias
            | Self::LnFBias => family == Family::Gpt2,
            Self::QProjWeight
            | Self::KProjWeight
            | Self::VProjWeight
            | Self::QProjBias
            | Self::KProjBias
            | Self::VProjBias
            | Self::QNormWeight
            | Self::KNormWeight
            | Self::GateProjWeight
            | Self::UpProjWeight
            | Self::GateProjBias
            | Self::UpProjBias
            | Self::LmHeadWeight => family != Family::Gpt2,
        }
    }

    /// Returns true if a model of this shape has the parameter.
    pub(crate) fn is_in(self, config: &Config) -> bool {
        self.is_of(config.family)
            && match self {
                Self::QProjBias | Self::KProjBias | Self::VProjBias => config.qkv_bias,
                Self::AttnCProjBias => config.bias || config.o_bias(),
                Self::GateProjBias | Self::UpProjBias => config.mlp_bias,
                Self::MlpCProjBias => config.bias || config.mlp_bias,
                Self::QNormWeight | Self::KNormWeight => config.qk_norm,
                Self::LmHeadWeight => !config.tied,
                _ => config.bias || !self.is_bias(),
            }
    }

    /// Returns the shape of the parameter: one or two dimensions, a matrix as `[out, in]`.
    pub fn shape(self, config: &Config) -> Vec<usize> {
        let (rows, columns) = self.dims(config);
        std::iter::once(rows).chain(columns).collect()
    }

    /// Returns the two dimensions; the second is `None` for a vector.
    pub(super) fn dims(self, config: &Config) -> (usize, Option<usize>) {
        let c = config.n_embd;
        match self {
            Self::Wte | Self::LmHeadWeight => (config.vocab_size, Some(c)),
            Self::Wpe => (config.block_size, Some(c)),
            Self::CAttnWeight => (config.qkv_width(), Some(c)),
            Self::QProjWeight => (config.q_width(), Some(c)),
            Self::KProjWeight | Self::VProjWeight => (config.kv_width(), Some(c)),
            Self::AttnCProjWeight => (c, Some(config.q_width())),
            Self::CFcWeight => (config.fc_width(), Some(c)),
            Self::GateProjWeight | Self::UpProjWeight => (config.inner_width(), Some(c)),
            Self::MlpCProjWeight => (c, Some(config.inner_width())),
            Self::CAttnBias => (config.qkv_width(), None),
            Self::QProjBias => (config.q_width(), None),
            Self::KProjBias | Self::VProjBias => (config.kv_width(), None),
            Self::QNormWeight | Self::KNormWeight => (config.head_width(), None),
            Self::CFcBias => (config.fc_width(), None),
            Self::GateProjBias | Self::UpProjBias => (config.inner_width(), None),
            Self::Ln1Weight | Self::Ln1Bias | Self::Ln2Weight | Self::Ln2Bias | Self::LnFWeight | Self::LnFBias => {
                (c, None)
            }
            Self::AttnCProjBias | Self::MlpCProjBias => (c, None),
        }
    }

    /// Returns true for β of a norm and the bias of a linear layer.
    pub fn is_bias(self) -> bool {
        matches!(
            self,
            Self::Ln1Bias
                | Self::CAttnBias
                | Self::QProjBias
                | Self::KProjBias
                | Self::VProjBias
                | Self::AttnCProjBias
                | Self::Ln2Bias
                | Self::CFcBias
                | Self::GateProjBias
                | Self::UpProjBias
                | Self::MlpCProjBias
                | Self::LnFBias
        )
    }

    /// Returns true for the weights of a block's linear layers.
    pub fn is_layer_weight(self) -> bool {
        matches!(
            self,
            Self::CAttnWeight
                | Self::QProjWeight
                | Self::KProjWeight
                | Self::VProjWeight
                | Self::AttnCProjWeight
                | Self::CFcWeight
                | Self::GateProjWeight
                | Self::UpProjWeight
                | Self::MlpCProjWeight
        )
    }
}
