//! Reads the tensors of a file into the flat array of parameters.
//!
//! A file's tensors are views into storages: arrays of elements that are read once, from front to back. Names, shapes and the
//! file's size are all checked before memory is allocated.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

use crate::params::names::{LM_HEAD, NameTable};
use crate::tensors::{Dtype, Order, Storages, Tensor, stream};
use crate::words::count;
use crate::{Config, Family, Param, ParamList, Role};

/// Number of columns of a transposed matrix filled at a time, each writing its own cache line.
const STRIPE: usize = 16;

/// Reads the parameters of a model of the shape `config` from the tensors of a state dict, which are named as in `names`.
/// Tensors cannot claim more than `file_len` bytes in all.
///
/// # Errors
/// The reason alone: a tensor that is missing, unexpected, of another shape or dtype, or damaged.
pub(crate) fn read_params(
    config: &Config,
    names: &NameTable,
    mut tensors: HashMap<String, Tensor>,
    storages: &mut dyn Storages,
    file_len: u64,
) -> Result<Vec<f32>, String> {
    // Before the list of parameters is made: until here the number of layers comes from the file alone.
    if config.n_layer > tensors.len() {
        let (layers, tensors) = (count(config.n_layer, "layer"), count(tensors.len(), "tensor"));
        return Err(format!("{tensors}: too few for {layers}"));
    }
    let list = ParamList::new(config);
    let head = if config.tied { tensors.remove(LM_HEAD) } else { None };
    let mut wanted: BTreeMap<Rc<str>, Vec<(&Param, Tensor)>> = BTreeMap::new();
    let mut bytes = 0u64;
    for param in &list {
        let name = names.name(param.role, param.layer);
        let Some(mut tensor) = tensors.remove(&name) else {
            return Err(format!("missing tensor {name}"));
        };
        if names.is_transposed(param.role) && tensor.order == Order::Rows {
            tensor.shape.reverse();
            tensor.order = Order::Columns;
        }
        check(&name, &param.shape, &tensor)?;
        bytes = bytes.saturating_add((param.len() * tensor.dtype.size()) as u64);
        wanted.entry(tensor.storage.clone()).or_default().push((param, tensor));
    }
    // Older versions save nanoGPT's causal mask and Llama's frequencies, which are not parameters.
    let others = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
    tensors.retain(|name, _| !others.iter().any(|other| name.ends_with(other)));
    if let Some(name) = tensors.keys().min() {
        if !config.bias && config.family == Family::Gpt2 && name.ends_with(".bias") {
            return Err(format!("unexpected tensor {name}: bias is false in model_args"));
        }
        let family = config.family.model_type();
        return Err(format!("unexpected tensor {name}: not part of a {family} model of this shape"));
    }
    if bytes > file_len {
        return Err(format!("expected at least {bytes} bytes of tensors, got a file of {file_len}"));
    }

    let mut params = Vec::new();
    let reserved = params.try_reserve_exact(list.total());
    reserved.map_err(|_| format!("cannot allocate memory for {} parameters", list.total()))?;
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

    // The head is tied to the token embedding: most files store a second view of it, some a copy.
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
            Err(format!("{LM_HEAD} differs from {wte}: expected tied embeddings"))
        })?;
    }
    Ok(params)
}

fn check(name: &str, shape: &[usize], tensor: &Tensor) -> Result<(), String> {
    if tensor.shape != shape {
        let (mut found, mut wanted) = (tensor.shape.clone(), shape.to_vec());
        if tensor.order == Order::Columns {
            // Shapes as in the file.
            found.reverse();
            wanted.reverse();
        }
        return Err(format!("tensor {name}: expected shape {wanted:?}, got {found:?}"));
    }
    if let Dtype::Other(dtype, _) = tensor.dtype {
        return Err(format!("tensor {name}: expected float32, float16 or bfloat16, got {dtype}"));
    }
    if tensor.order == Order::Strided {
        return Err(format!("tensor {name} is not contiguous: save it with .contiguous()"));
    }
    let end = tensor.elements().and_then(|len| len.checked_add(tensor.offset));
    if end.is_none_or(|end| end > tensor.storage_len) {
        let Tensor { offset, storage, storage_len, .. } = tensor;
        return Err(format!(
            "tensor {name}: shape {shape:?} at element {offset} exceeds storage {storage} of \
             {storage_len} elements"
        ));
    }
    Ok(())
}

/// Copies elements of a matrix, in column order, into its rows. `found[0]` is the element `first` in that order.
fn place_columns(rows: &mut [f32], shape: &[usize], first: usize, found: &[f32]) {
    let [height, width] = shape else { unreachable!("only matrices are transposed") };
    let end = first + found.len();
    // A column is a run of `height` elements in the file.
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

/// Returns the intersection of `at..at + len` and `offset..offset + wanted`.
fn overlap(at: usize, len: usize, offset: usize, wanted: usize) -> Option<Range<usize>> {
    let (start, end) = (at.max(offset), (at + len).min(offset + wanted));
    (start < end).then_some(start..end)
}
