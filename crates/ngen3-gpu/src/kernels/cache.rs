//! A decoder's cache of keys and values.

use super::attention::Shape;
use super::groups;
use crate::device::{Kernel, Recorder, View, read, write};

/// Records the copy of each token's keys and values, of `qkv`, to its row of `cache`, `[_, 2·kv_width]`. `rows`: `[tokens]`.
///
/// # Panics
/// If a length is wrong.
pub fn append(recorder: &mut Recorder<'_>, shape: Shape, qkv: View<'_>, rows: View<'_>, cache: View<'_>) {
    let width = 2 * shape.kv_width();
    qkv.expect(rows.len * shape.qkv_width());
    assert!(cache.len.is_multiple_of(width), "a cache of {} elements in rows of {width}", cache.len);
    let kernel = Kernel { name: "cache", source: include_str!("cache.wgsl"), constants: &[] };
    let immediates = [rows.len, width, shape.qkv_width(), shape.q_width()].map(|size| size as u32);
    recorder.dispatch(kernel, &[read(qkv), read(rows), write(cache)], &immediates, groups(rows.len * width));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{context, numbers};

    #[test]
    fn keys_and_values_go_to_their_rows() {
        let Some(context) = context() else { return };
        let shape = Shape { heads: 2, kv_heads: 1, width: 3 };
        let (qkv, rows) = (numbers(1, 3 * 12), [4u32, 0, 7]);
        let cache = context.buffer("cache", 8 * 6).unwrap();
        let [qkv_view, rows_view] = [context.upload("qkv", &qkv).unwrap(), context.upload("rows", &rows).unwrap()];
        append(&mut Recorder::new(context), shape, qkv_view.all(), rows_view.all(), cache.all());
        let mut expected = vec![0.0; 48];
        for (token, &row) in rows.iter().enumerate() {
            expected[row as usize * 6..][..6].copy_from_slice(&qkv[token * 12 + 6..(token + 1) * 12]);
        }
        assert_eq!(context.read(cache.all()).unwrap(), expected);
    }
}
