//! Changes of a model's shape: fewer positions, fewer layers.

use std::path::Path;

use ngen3_model::words::count;
use ngen3_model::{Checkpoint, Config, ParamList};

use crate::Error;

/// Shortens the context length of a model: the first positions are kept.
pub(crate) fn cut_positions(params: &[f32], from: &Config, to: &Config) -> Vec<f32> {
    let (from, to) = (ParamList::new(from), ParamList::new(to));
    let pairs = from.iter().zip(&to);
    pairs.flat_map(|(from, to)| &params[from.range()][..to.len()]).copied().collect()
}

/// Takes `n_layer` layers of a deeper model, by default half: the first, the last and evenly spaced ones between, with the
/// embeddings and the final norm. 6 of 12 layers are 0, 2, 4, 7, 9 and 11, as in DistilGPT-2 (Sanh et al. 2019).
///
/// # Errors
/// [`Error::Usage`] if the model has too few layers. `from` is its path, for the message.
pub(crate) fn some_layers(deeper: &Checkpoint, from: &Path, n_layer: Option<usize>) -> Result<Checkpoint, Error> {
    let Checkpoint { config: from_config, params, meta } = deeper;
    let n_layer = n_layer.unwrap_or(from_config.n_layer.div_ceil(2));
    if n_layer > from_config.n_layer {
        return Err(Error::Usage(format!(
            "{}: expected at least {}, the student's, got {}",
            from.display(),
            count(n_layer, "layer"),
            from_config.n_layer
        )));
    }
    let config = Config { n_layer, ..from_config.clone() };
    config.validate()?;
    let (list, from_list) = (ParamList::new(&config), ParamList::new(from_config));
    let mut kept = Vec::with_capacity(list.total());
    kept.extend_from_slice(&params[..from_list.wpe.end]);
    for layer in 0..n_layer {
        let block = &from_list.blocks[spread(layer, n_layer, from_config.n_layer)];
        kept.extend_from_slice(&params[block.ln_1_weight.start..block.mlp_c_proj_bias.end]);
    }
    kept.extend_from_slice(&params[from_list.ln_f_weight.start..]);
    Ok(Checkpoint { config, params: kept, meta: meta.clone() })
}

/// Returns the index among `of` of the `i`th of `n` evenly spaced items; the first and the last are included.
fn spread(i: usize, n: usize, of: usize) -> usize {
    match n {
        0 | 1 => 0,
        n => (2 * i * (of - 1) + (n - 1)) / (2 * (n - 1)),
    }
}

#[cfg(test)]
mod tests {
    use ngen3_model::CheckpointMeta;

    use super::*;

    #[test]
    fn layers_are_taken_evenly_from_the_first_to_the_last() {
        let chosen = |n, of| (0..n).map(|i| spread(i, n, of)).collect::<Vec<_>>();
        assert_eq!(chosen(6, 12), [0, 2, 4, 7, 9, 11], "DistilGPT-2");
        assert_eq!(chosen(1, 4), [0]);
        assert_eq!(chosen(4, 4), [0, 1, 2, 3]);
        assert_eq!(chosen(2, 5), [0, 4]);
    }

    #[test]
    fn a_student_of_some_layers_has_their_numbers_and_the_embeddings() {
        let config = Config::new(5, 1, 2, 3, 7);
        let list = ParamList::new(&config);
        let params: Vec<f32> = (0..list.total()).map(|i| i as f32).collect();
        let teacher = Checkpoint { config, params: params.clone(), meta: CheckpointMeta::default() };
        let of = |n_layer| some_layers(&teacher, Path::new("t.pt"), n_layer);
        let student = of(None).unwrap();
        assert_eq!(student.config, Config::new(3, 1, 2, 3, 7));
        let mut expected = params[..list.wpe.end].to_vec();
        for layer in [0, 2, 4] {
            let block = &list.blocks[layer];
            expected.extend(&params[block.ln_1_weight.start..block.mlp_c_proj_bias.end]);
        }
        expected.extend(&params[list.ln_f_weight.start..]);
        assert_eq!(student.params, expected);
        assert_eq!(of(Some(5)).unwrap(), teacher);
        assert_eq!(of(Some(6)).unwrap_err().to_string(), "t.pt: expected at least 6 layers, the student's, got 5");
        assert!(of(Some(0)).is_err());
    }
}
