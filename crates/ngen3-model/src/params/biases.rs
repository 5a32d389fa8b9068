//! Zero biases for models without, for formats that require them.

use std::borrow::Cow;

use super::list::{Param, ParamList};
use crate::{Config, Family};

/// Parameters in the layout of a model with biases. Missing ones are zeros, which computes the same.
pub(crate) struct WithBiases<'a> {
    list: ParamList,
    /// Layout of `params`, if it has no biases.
    own: Option<ParamList>,
    params: &'a [f32],
}

impl<'a> WithBiases<'a> {
    /// Wraps the parameters, `[total]`, of a model of the shape `config`.
    pub fn new(config: &Config, params: &'a [f32]) -> Self {
        // The Llama family's formats do without.
        let full = Config { bias: config.family == Family::Gpt2, ..config.clone() };
        let own = (full != *config).then(|| ParamList::new(config));
        let list = ParamList::new(&full);
        Self { list, own, params }
    }

    /// Returns the layout with biases.
    pub fn list(&self) -> &ParamList {
        &self.list
    }

    /// Returns the values of a parameter of [`WithBiases::list`].
    pub fn values(&self, param: &Param) -> Cow<'a, [f32]> {
        let own = match &self.own {
            None => Some(param),
            Some(own) => own.find(param.role, param.layer),
        };
        match own {
            Some(own) => Cow::Borrowed(&self.params[own.range()]),
            None => Cow::Owned(vec![0.0; param.len()]),
        }
    }
}
