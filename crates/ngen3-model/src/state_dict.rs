//! From the tensors that a file names to the flat array of parameters.
//!
//! A file's tensors are views into storages: runs of elements that are read from front to back, once. Everything is
//! checked (each name, each shape, that the file is large enough to hold it all) before memory is taken.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

use crate::params::names::{LM_HEAD, NameTable};
use crate::tensors::{Dtype, Order, Storages, Tensor, stream};
use crate::words::count;
use crate::{Config, Param, ParamList, Role};

/// Columns of a transposed matrix filled at a time: as many cache lines are then written side by side.
const STRIPE: usize = 16;

/// Reads the parameters of a model of the shape `config` from the tensors of a state dict, which have the names of
/// `names`. `file_len`, in bytes, bounds what is believed of the tensors.
///
/// # Errors
/// The reason alone: a tensor that is missing, unknown, of another shape or type, or damaged.
pub(crate) fn read_params(
    config: &Config,
    names: &NameTable,
    mut tensors: HashMap<String, Tensor>,
    storages: &mut dyn Storages,
    file_len: u64,
) -> Result<Vec<f32>, String> {
    // Before the list of parameters is made: its length is the file's word until here.
    if config.n_layer > tensors.len() {
        let (layers, tensors) = (count(config.n_layer, "layer"), count(tensors.len(), "tensor"));
        return Err(format!("it says that it has {layers}, but holds {tensors}"));
    }
    let list = ParamList::new(config);
    let head = tensors.remove(LM_HEAD);
    let mut wanted: BTreeMap<Rc<str>, Vec<(&Param, Tensor)>> = BTreeMap::new();
    let mut bytes = 0u64;
    for param in &list {
        let name = names.name(param.role, param.layer);
        let Some(mut tensor) = tensors.remove(&name) else {
            return Err(format!("it has no tensor {name}"));
        };
        if names.is_transposed(param.role) && tensor.order == Order::Rows {
            tensor.shape.reverse();
            tensor.order = Order::Columns;
        }
        check(&name, &param.shape, &tensor)?;
        bytes = bytes.saturating_add((param.len() * tensor.dtype.size()) as u64);
        wanted.entry(tensor.storage.clone()).or_default().push((param, tensor));
    }
    // nanoGPT's causal mask, which older versions save, is no parameter.
    tensors.retain(|name, _| !(name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")));
    if let Some(name) = tensors.keys().min() {
        if !config.bias && name.ends_with(".bias") {
            return Err(format!("it has a tensor {name}, but its model_args say that bias is false"));
        }
        return Err(format!("it has a tensor {name}, which is no part of a GPT-2 model"));
    }
    if bytes > file_len {
        return Err(format!("its tensors need {bytes} bytes, but it has only {file_len}"));
    }

    let mut params = Vec::new();
    let reserved = params.try_reserve_exact(list.total());
    reserved.map_err(|_| format!("its {} parameters do not fit in memory", list.total()))?;
    params.resize(list.total(), 0.0);
    let mut wte = None;
    for group in wanted.values() {
        stream(storages, &group[0].1, |at, values| {
            for (param, tensor) in group {
                let Some(here) = overlap(at, values.len(), tensor.offset, param.len()) else { continue };
                let found = &values[here.start - at..here.end - at];
                let first = here.start - tensor.offset;
                let into = &mut params[param.range()];
                match tensor.order {
                    Order::Columns => place_columns(into, &param.shape, first, found),
                    _ => into[first..first + found.len()].copy_from_slice(found),
                }
            }
            Ok(())
        })?;
        wte = wte.or_else(|| group.iter().find(|(param, _)| param.role == Role::Wte).map(|(_, tensor)| tensor));
    }

    // The head shares the token embedding: a second view of it in most files, a second copy in some.
    if let (Some(head), Some(wte)) = (head, wte)
        && head != *wte
    {
        check(LM_HEAD, &wte.shape, &head)?;
        let shared = &params[list.wte.clone()];
        stream(storages, &head, |at, values| {
            let Some(here) = overlap(at, values.len(), head.offset, shared.len()) else { return Ok(()) };
            let same = shared[here.start - head.offset..here.end - head.offset]
                .iter()
                .zip(&values[here.start - at..here.end - at])
                .all(|(a, b)| a.to_bits() == b.to_bits());
            if same {
                return Ok(());
            }
            let wte = names.name(Role::Wte, None);
            Err(format!("its {LM_HEAD} differs from {wte}; only models that share the two are read"))
        })?;
    }
    Ok(params)
}

fn check(name: &str, shape: &[usize], tensor: &Tensor) -> Result<(), String> {
    if tensor.shape != shape {
        let (mut found, mut wanted) = (tensor.shape.clone(), shape.to_vec());
        if tensor.order == Order::Columns {
            // As the file has it.
            found.reverse();
            wanted.reverse();
        }
        return Err(format!("its tensor {name} has the shape {found:?}, not {wanted:?}"));
    }
    if let Dtype::Other(dtype, _) = tensor.dtype {
        return Err(format!("its tensor {name} is of type {dtype}; float32, float16 and bfloat16 are read"));
    }
    if tensor.order == Order::Strided {
        return Err(format!("its tensor {name} is not contiguous; save it with .contiguous()"));
    }
    let end = tensor.elements().and_then(|len| len.checked_add(tensor.offset));
    if end.is_none_or(|end| end > tensor.storage_len) {
        let Tensor { offset, storage, storage_len, .. } = tensor;
        return Err(format!(
            "its tensor {name} of shape {shape:?} starts at element {offset} of storage {storage}, which has only \
             {storage_len}"
        ));
    }
    Ok(())
}

/// Puts elements of a matrix, which come column by column, into its rows. `found[0]` is the `first` element of all.
fn place_columns(rows: &mut [f32], shape: &[usize], first: usize, found: &[f32]) {
    let [height, width] = shape else { unreachable!("only matrices are transposed") };
    let end = first + found.len();
    // A column stands in the file as a line of `height` elements.
    for stripe in (0..*height).step_by(STRIPE) {
        for column in first / height..end.div_ceil(*height) {
            let line = column * height;
            let from = (line + stripe).max(first);
            let to = (line + (stripe + STRIPE).min(*height)).min(end);
            for at in from..to {
                rows[(at - line) * width + column] = found[at - first];
            }
        }
    }
}

/// The elements that `at..at + len` and `offset..offset + wanted` share.
fn overlap(at: usize, len: usize, offset: usize, wanted: usize) -> Option<Range<usize>> {
    let (start, end) = (at.max(offset), (at + len).min(offset + wanted));
    (start < end).then_some(start..end)
}
