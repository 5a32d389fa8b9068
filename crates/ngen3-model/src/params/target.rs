//! Layers that can have a low-rank adapter, named as in `peft`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::names;
use super::role::Role;
use crate::{Config, Error};

/// One of the four linear layers of a transformer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// `attn.c_attn`: query, key and value.
    CAttn,
    /// `attn.c_proj`: attention's output projection.
    AttnCProj,
    /// `mlp.c_fc`: the MLP's input projection.
    CFc,
    /// `mlp.c_proj`: the MLP's output projection.
    MlpCProj,
}

impl Target {
    /// All layers, in a block's order.
    pub const ALL: [Self; 4] = [Self::CAttn, Self::AttnCProj, Self::CFc, Self::MlpCProj];

    /// Returns its name within a block, as in `target_modules` of `peft`.
    pub fn name(self) -> &'static str {
        names::module_in_block(self.weight())
    }

    /// Returns the role of its weight.
    pub fn weight(self) -> Role {
        match self {
            Self::CAttn => Role::CAttnWeight,
            Self::AttnCProj => Role::AttnCProjWeight,
            Self::CFc => Role::CFcWeight,
            Self::MlpCProj => Role::MlpCProjWeight,
        }
    }

    /// Returns the layers that one of `peft`'s target modules matches in GPT-2: those whose name ends with it.
    ///
    /// # Errors
    /// [`Error::Config`] when there is none.
    pub fn named(name: &str) -> Result<Vec<Self>, Error> {
        let ends =
            |target: &Self| target.name().strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let found: Vec<Self> = Self::ALL.into_iter().filter(|target| !name.is_empty() && ends(target)).collect();
        if found.is_empty() {
            return Err(Error::Config(format!(
                "unknown adapter target {name:?}: expected c_attn, c_fc or c_proj (attn.c_proj or mlp.c_proj for only one)"
            )));
        }
        Ok(found)
    }

    /// Returns the shape of its weight, `[outputs, inputs]`.
    pub fn shape(self, config: &Config) -> [usize; 2] {
        match self.weight().dims(config) {
            (outputs, Some(inputs)) => [outputs, inputs],
            (_, None) => unreachable!("the weight of a linear layer is a matrix"),
        }
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

/// Layers of each block that get an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Targets(Vec<Target>);

impl Default for Targets {
    /// All four layers.
    fn default() -> Self {
        Self(Target::ALL.to_vec())
    }
}

impl Targets {
    /// Collects layers in a block's order, without duplicates.
    pub fn new(targets: impl IntoIterator<Item = Target>) -> Self {
        let mut targets: Vec<Target> = targets.into_iter().collect();
        targets.sort_unstable();
        targets.dedup();
        Self(targets)
    }

    /// Returns true if there are no layers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the layers in a block's order.
    pub fn iter(&self) -> impl Iterator<Item = Target> + '_ {
        self.0.iter().copied()
    }
}

impl FromStr for Targets {
    type Err = Error;

    /// Parses names separated by commas, each as in [`Target::named`].
    fn from_str(names: &str) -> Result<Self, Error> {
        let found = names.split(',').map(|name| Target::named(name.trim())).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::new(found.into_iter().flatten()))
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Target::name).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_peft_names_them() {
        for (names, expected) in [
            ("c_attn", &[Target::CAttn][..]),
            ("c_proj, c_attn", &[Target::CAttn, Target::AttnCProj, Target::MlpCProj]),
            ("mlp.c_proj,c_fc,mlp.c_fc", &[Target::CFc, Target::MlpCProj]),
            ("c_attn,c_fc,c_proj", &Target::ALL),
        ] {
            let targets: Targets = names.parse().unwrap();
            assert_eq!(targets.0, expected, "{names}");
            assert_eq!(targets.to_string().parse::<Targets>().unwrap(), targets);
            let json = serde_json::to_string(&targets).unwrap();
            assert_eq!(serde_json::from_str::<Targets>(&json).unwrap(), targets, "{json}");
        }
        for name in ["", "proj", "q_proj", ".c_attn", "h.0.attn.c_attn", "c_attn,"] {
            let error = name.parse::<Targets>().unwrap_err().to_string();
            assert!(error.contains("unknown adapter target"), "{name}: {error}");
        }
    }
}
