//! Linear layers of a transformer block: the four products that it runs, and the layers in files that can have a low-rank
//! adapter, named as in `peft`.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::names;
use super::role::Role;
use crate::{Config, Error, Family};

/// One of the four linear layers that a transformer block runs, whatever its family; files of the Llama family split two of
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// Query, key and value.
    CAttn,
    /// Attention's output projection.
    AttnCProj,
    /// The MLP's input projection: with SwiGLU, gate and up.
    CFc,
    /// The MLP's output projection.
    MlpCProj,
}

impl Projection {
    /// All projections, in a block's order.
    pub const ALL: [Self; 4] = [Self::CAttn, Self::AttnCProj, Self::CFc, Self::MlpCProj];

    /// Returns the shape of its weight, `[outputs, inputs]`.
    pub fn shape(self, config: &Config) -> [usize; 2] {
        match self {
            Self::CAttn => [config.qkv_width(), config.n_embd],
            Self::AttnCProj => [config.n_embd, config.q_width()],
            Self::CFc => [config.fc_width(), config.n_embd],
            Self::MlpCProj => [config.n_embd, config.inner_width()],
        }
    }

    /// Returns the number of layers that files of a family split it into.
    pub fn parts(self, family: Family) -> usize {
        Target::of(family).filter(|target| target.projection() == self).count()
    }
}

/// Linear layer of a transformer block as files name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// GPT-2's `attn.c_attn`: query, key and value.
    CAttn,
    /// GPT-2's `attn.c_proj`: attention's output projection.
    AttnCProj,
    /// GPT-2's `mlp.c_fc`: the MLP's input projection.
    CFc,
    /// GPT-2's `mlp.c_proj`: the MLP's output projection.
    MlpCProj,
    /// `self_attn.q_proj` of the Llama family, as are those below: the queries.
    QProj,
    /// `self_attn.k_proj`: the keys.
    KProj,
    /// `self_attn.v_proj`: the values.
    VProj,
    /// `self_attn.o_proj`: attention's output projection.
    OProj,
    /// `mlp.gate_proj`
    GateProj,
    /// `mlp.up_proj`
    UpProj,
    /// `mlp.down_proj`: the MLP's output projection.
    DownProj,
}

impl Target {
    /// All layers, in a block's order.
    const ALL: [Self; 11] = [
        Self::CAttn,
        Self::AttnCProj,
        Self::CFc,
        Self::MlpCProj,
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// Returns the layers of a family, in a block's order.
    pub fn of(family: Family) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |target| target.is_of(family))
    }

    /// Returns true if models of this family have the layer.
    pub fn is_of(self, family: Family) -> bool {
        (self < Self::QProj) == (family == Family::Gpt2)
    }

    /// Returns its name within a block, as in `target_modules` of `peft`.
    pub fn name(self) -> &'static str {
        let family = if self.is_of(Family::Gpt2) { Family::Gpt2 } else { Family::Llama };
        names::module_in_block(family, self.weight())
    }

    /// Returns the role of its weight.
    pub fn weight(self) -> Role {
        match self {
            Self::CAttn => Role::CAttnWeight,
            Self::AttnCProj | Self::OProj => Role::AttnCProjWeight,
            Self::CFc => Role::CFcWeight,
            Self::MlpCProj | Self::DownProj => Role::MlpCProjWeight,
            Self::QProj => Role::QProjWeight,
            Self::KProj => Role::KProjWeight,
            Self::VProj => Role::VProjWeight,
            Self::GateProj => Role::GateProjWeight,
            Self::UpProj => Role::UpProjWeight,
        }
    }

    /// Returns the projection that it is a part of.
    pub fn projection(self) -> Projection {
        match self {
            Self::CAttn | Self::QProj | Self::KProj | Self::VProj => Projection::CAttn,
            Self::AttnCProj | Self::OProj => Projection::AttnCProj,
            Self::CFc | Self::GateProj | Self::UpProj => Projection::CFc,
            Self::MlpCProj | Self::DownProj => Projection::MlpCProj,
        }
    }

    /// Returns its rows among the outputs of its projection.
    pub fn outputs(self, config: &Config) -> Range<usize> {
        let (rows, _) = self.weight().dims(config);
        let first = match self {
            Self::KProj => config.q_width(),
            Self::VProj => config.q_width() + config.kv_width(),
            Self::UpProj => config.inner_width(),
            _ => 0,
        };
        first..first + rows
    }

    /// Returns the layers that one of `peft`'s target modules matches: those whose name ends with it.
    ///
    /// # Errors
    /// [`Error::Config`] when there is none.
    pub fn named(name: &str) -> Result<Vec<Self>, Error> {
        let ends =
            |target: &Self| target.name().strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let found: Vec<Self> = Self::ALL.into_iter().filter(|target| !name.is_empty() && ends(target)).collect();
        if found.is_empty() {
            return Err(Error::Config(format!(
                "unknown adapter target {name:?}: expected all; c_attn, c_fc or c_proj (attn.c_proj or mlp.c_proj for only \
                 one) of GPT-2; q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj of the Llama family"
            )));
        }
        Ok(found)
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        match Self::named(&name)?[..] {
            [target] => Ok(target),
            _ => Err(Error::Config(format!("{name} is more than one layer: expected attn.c_proj or mlp.c_proj"))),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.name().into()
    }
}

/// Layers of each block that get an adapter: all of them, or those of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<Vec<Target>>", into = "Option<Vec<Target>>")]
pub struct Targets(Option<Vec<Target>>);

impl Targets {
    /// Collects layers in a block's order, without duplicates. All layers of a family are those of a fresh `Targets`.
    pub fn new(targets: impl IntoIterator<Item = Target>) -> Self {
        let mut targets: Vec<Target> = targets.into_iter().collect();
        targets.sort_unstable();
        targets.dedup();
        let are_all =
            [Family::Gpt2, Family::Llama].into_iter().any(|family| Target::of(family).eq(targets.iter().copied()));
        Self((!are_all).then_some(targets))
    }

    /// Returns those that a family has, in a block's order.
    pub fn of(&self, family: Family) -> impl Iterator<Item = Target> + '_ {
        let chosen = |target: &Target| self.0.as_ref().is_none_or(|targets| targets.contains(target));
        Target::of(family).filter(chosen)
    }
}

impl From<Option<Vec<Target>>> for Targets {
    fn from(targets: Option<Vec<Target>>) -> Self {
        targets.map_or_else(Self::default, Self::new)
    }
}

impl From<Targets> for Option<Vec<Target>> {
    fn from(targets: Targets) -> Self {
        targets.0
    }
}

impl FromStr for Targets {
    type Err = Error;

    /// Parses `all`, or names separated by commas, each as in [`Target::named`].
    fn from_str(names: &str) -> Result<Self, Error> {
        if names.trim() == "all" {
            return Ok(Self::default());
        }
        let found = names.split(',').map(|name| Target::named(name.trim())).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(found.into_iter().flatten()))
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("all"),
            Some(targets) => f.write_str(&targets.iter().map(|target| target.name()).collect::<Vec<_>>().join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_peft_names_them() {
        for (names, family, expected) in [
            ("c_attn", Family::Gpt2, &[Target::CAttn][..]),
            ("c_proj, c_attn", Family::Gpt2, &[Target::CAttn, Target::AttnCProj, Target::MlpCProj]),
            ("mlp.c_proj,c_fc,mlp.c_fc", Family::Gpt2, &[Target::CFc, Target::MlpCProj]),
            ("c_attn,c_fc,c_proj", Family::Gpt2, &[Target::CAttn, Target::AttnCProj, Target::CFc, Target::MlpCProj]),
            ("all", Family::Gpt2, &[Target::CAttn, Target::AttnCProj, Target::CFc, Target::MlpCProj]),
            ("v_proj,q_proj", Family::Qwen2, &[Target::QProj, Target::VProj]),
            ("self_attn.o_proj", Family::Mistral, &[Target::OProj]),
            ("c_attn", Family::Llama, &[]),
        ] {
            let targets: Targets = names.parse().unwrap();
            assert_eq!(targets.of(family).collect::<Vec<_>>(), expected, "{names}");
            assert_eq!(targets.to_string().parse::<Targets>().unwrap(), targets);
            let json = serde_json::to_string(&targets).unwrap();
            assert_eq!(serde_json::from_str::<Targets>(&json).unwrap(), targets, "{json}");
        }
        let all: Targets = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj".parse().unwrap();
        assert_eq!((all.to_string().as_str(), all.of(Family::Qwen3).count()), ("all", 7));
        for name in ["", "proj", "w_proj", ".c_attn", "h.0.attn.c_attn", "c_attn,"] {
            let error = name.parse::<Targets>().unwrap_err().to_string();
            assert!(error.contains("unknown adapter target"), "{name}: {error}");
        }
    }

    #[test]
    fn parts_of_a_projection_follow_one_another() {
        let mut config = Config::new(1, 4, 12, 8, 20);
        config.family = Family::Llama;
        config.activation = crate::Activation::Swiglu;
        (config.n_kv_head, config.head_dim, config.n_inner) = (Some(2), Some(6), Some(10));
        for projection in Projection::ALL {
            let mut end = 0;
            for target in Target::of(Family::Llama).filter(|target| target.projection() == projection) {
                let outputs = target.outputs(&config);
                assert_eq!((outputs.start, outputs.len()), (end, target.weight().shape(&config)[0]), "{target:?}");
                assert_eq!(target.weight().shape(&config)[1], projection.shape(&config)[1], "{target:?}");
                end = outputs.end;
            }
            assert_eq!(end, projection.shape(&config)[0], "{projection:?}");
        }
    }
}
