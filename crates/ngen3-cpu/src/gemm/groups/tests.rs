use half::f16;
use proptest::prelude::*;

use ngen3_model::gguf::TensorType;

use super::format::Sums;
use super::kernel::{plain, sums};
use super::*;
use crate::base::testing::{random, rerun_on_other_paths, skip};

const FORMATS: [(Format, TensorType); 3] =
    [(Format::Q4_0, TensorType::Q4_0), (Format::Q4_1, TensorType::Q4_1), (Format::Q8_0, TensorType::Q8_0)];

/// Returns random blocks, `[outputs, groups]`, with scales of ordinary size.
fn blocks(format: Format, outputs: usize, groups: usize, seed: u64) -> Vec<u8> {
    let bytes = outputs * groups * format.block();
    let mut bytes: Vec<u8> = random(bytes, seed).into_iter().map(|x| (x * 128.0) as i8 as u8).collect();
    let numbers = random(2 * outputs * groups, seed + 1);
    for (block, numbers) in bytes.chunks_exact_mut(format.block()).zip(numbers.chunks_exact(2)) {
        let count = (format.block() - format.bytes()) / 2;
        for (to, x) in block.chunks_exact_mut(2).zip(numbers).take(count) {
            to.copy_from_slice(&f16::from_f32(x / 16.0).to_le_bytes());
        }
    }
    bytes
}

fn values(tensor_type: TensorType, blocks: &[u8], elements: usize) -> Vec<f32> {
    let mut values = vec![0.0; elements];
    tensor_type.decode(blocks, &mut values);
    values
}

/// Returns the inputs as they are rounded.
fn rounded(x: &[f32]) -> Vec<f64> {
    let group = |x: &[f32]| {
        let step = x.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
        let round = move |&x: &f32| if step > 0.0 { (x / step).round() * step } else { 0.0 };
        x.iter().map(|x| f64::from(round(x))).collect::<Vec<_>>()
    };
    x.chunks(GROUP).flat_map(group).collect()
}

fn product(weight: &Groups, x: &[f32], rows: usize, start: f32) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows * weight.outputs];
    let x = Mat::new(x, rows, x.len() / rows);
    weight.product_onto(MatMut::new(&mut y, rows, weight.outputs), x, |y, row, col| {
        for i in 0..y.n_rows() {
            y.row_mut(i).iter_mut().enumerate().for_each(|(j, y)| *y = start * ((row + i) as f32 - (col + j) as f32));
        }
    });
    y
}

#[test]
fn products_of_a_files_blocks_are_those_of_its_values() {
    for (format, tensor_type) in FORMATS {
        for (rows, outputs, groups) in [(1, 1, 1), (1, 97, 3), (3, 16, 2), (13, 40, 5), (300, 33, 2)] {
            let inputs = groups * GROUP;
            let blocks = blocks(format, outputs, groups, 1);
            let (w, x) = (values(tensor_type, &blocks, outputs * inputs), random(rows * inputs, 2));
            let row = groups * format.block();
            let (first, rest) = blocks.split_at(outputs / 3 * row);
            let weight = Groups::from_blocks(format, &[first, rest], groups).unwrap();
            let found = product(&weight, &x, rows, 1.0);
            for (at, found) in found.iter().enumerate() {
                let (i, j) = (at / outputs, at % outputs);
                let x = rounded(&x[i * inputs..][..inputs]);
                let dot: f64 = x.iter().zip(&w[j * inputs..]).map(|(x, &w)| x * f64::from(w)).sum();
                let expected = i as f64 - j as f64 + dot;
                let bound = 1e-6 * x.iter().zip(&w[j * inputs..]).map(|(x, &w)| (x * f64::from(w)).abs()).sum::<f64>();
                // A value in the middle of two steps may be rounded to either.
                let either = 2e-3 * x.iter().fold(0.0f64, |most, x| most.max(x.abs())) + 1e-5 * expected.abs();
                assert!(
                    (f64::from(*found) - expected).abs() < bound + either,
                    "{format:?} {rows}x{outputs}x{inputs}: expected {expected}, got {found}"
                );
            }
        }
    }
}

#[test]
fn the_vector_kernels_equal_their_plain_twin() {
    if ngen3_simd::path() == ngen3_simd::Path::Scalar {
        skip("products in groups against the plain version");
    }
    fn compare<const R: usize>(format: Format, groups: usize) {
        let blocks = blocks(format, LANES, groups, 5);
        let weight = Groups::from_blocks(format, &[&blocks], groups).unwrap();
        let mut x = random(R * groups * GROUP, 6);
        x[0] = -3.0;
        let mut to = vec![f32::NAN; Inputs::len(R, groups)];
        let x = Inputs::round(Mat::new(&x, R, groups * GROUP), format.zero(), &mut to);
        let expected: Sums<R> = plain(format, weight.panel(0), x);
        let found: Sums<R> = sums(format, weight.panel(0), x);
        assert_eq!(found, expected, "{format:?}, {R} rows, {groups} groups");
        assert!(expected.as_flattened().iter().any(|&sum| sum != 0.0));
    }
    for (format, _) in FORMATS {
        for groups in [1, 2, 7] {
            compare::<1>(format, groups);
            compare::<2>(format, groups);
            compare::<4>(format, groups);
            compare::<8>(format, groups);
        }
    }
}

/// The largest sums: every element and every input at an end of its range.
#[test]
fn extremes_do_not_overflow() {
    for (format, tensor_type) in FORMATS {
        for (fill, sign) in [(0xFF, 1.0), (0xFF, -1.0), (0x80, 1.0), (0x80, -1.0), (0x00, 1.0), (0x7F, 1.0)] {
            let groups = 48;
            let mut blocks = vec![fill; 16 * groups * format.block()];
            for block in blocks.chunks_exact_mut(format.block()) {
                block[..format.block() - format.bytes()]
                    .chunks_exact_mut(2)
                    .for_each(|to| to.copy_from_slice(&f16::ONE.to_le_bytes()));
            }
            let w = values(tensor_type, &blocks, 16 * groups * GROUP);
            let weight = Groups::from_blocks(format, &[&blocks], groups).unwrap();
            let found = product(&weight, &vec![sign; groups * GROUP], 1, 0.0);
            let expected = sign * w[..groups * GROUP].iter().sum::<f32>();
            assert!((found[5] - expected).abs() <= 1e-5 * expected.abs(), "{format:?}: {expected}, got {}", found[5]);
        }
    }
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    let weight = Groups::int4(&random(3 * 40, 1), 40).unwrap();
    for strange in [f32::NAN, f32::INFINITY] {
        let mut x = random(2 * 40, 2);
        x[39] = strange;
        let found = product(&weight, &x, 2, 0.0);
        assert!(found[..3].iter().all(|y| !y.is_finite()) && found[3..].iter().all(|y| y.is_finite()), "{found:?}");
        let mut w = random(2 * 40, 3);
        w[5] = strange;
        let found = product(&Groups::int4(&w, 40).unwrap(), &random(40, 4), 1, 0.0);
        assert!(!found[0].is_finite() && found[1].is_finite(), "{found:?}");
    }
    // The smallest numbers are zeros, and the largest are finite.
    let found = product(&Groups::int4(&[1e-40, -1e-38, 3e38, 1.0], 2).unwrap(), &[1e-40, 0.0], 1, 0.0);
    assert!(found[0] == 0.0 && found[1].is_finite(), "{found:?}");
}

#[test]
fn int4_has_the_bytes_that_llama_cpp_writes() {
    // From quantize_row_q4_0_ref: −2 is the largest magnitude, so d = 0.25.
    let mut row = [0.0; 32];
    (row[0], row[1], row[2], row[16], row[31]) = (-2.0, 1.0, 0.13, 1.9, -0.12);
    let mut block = [0; 18];
    round::q4_0(&row, &mut block);
    let mut expected = [0x88; 18];
    expected[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
    (expected[2], expected[3], expected[4]) = (0xF0, 0x8C, 0x89);
    assert_eq!(block, expected);
    let mut values = [0.0; 32];
    TensorType::Q4_0.decode(&block, &mut values);
    round_to_int4(&mut row);
    assert_eq!(row, values);
}

proptest! {
    #[test]
    fn rounding_to_int4_twice_changes_nothing(row in prop::collection::vec(-1f32..1.0, 1..100), scale in -120i32..100) {
        let mut once: Vec<f32> = row.iter().map(|x| x * 2f32.powi(scale)).collect();
        round_to_int4(&mut once);
        let mut twice = once.clone();
        round_to_int4(&mut twice);
        prop_assert_eq!(&once, &twice);
        let step = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) * 2f32.powi(scale) / 8.0;
        if step > 1e-4 && step < 6e4 {
            for (x, found) in row.iter().zip(&once) {
                prop_assert!((x * 2f32.powi(scale) - found).abs() <= 1.01 * step, "{} is {}", x, found);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_threads_or_the_other_rows() {
    let (rows, outputs, inputs) = (37, 200, 96);
    let weight = Groups::int4(&random(outputs * inputs, 1), inputs).unwrap();
    let x = random(rows * inputs, 2);
    let [one, many] = [1, 5].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| product(&weight, &x, rows, 0.0))
    });
    assert_eq!(one, many);
    for row in 0..rows {
        let alone = product(&weight, &x[row * inputs..][..inputs], 1, 0.0);
        assert_eq!(alone, &one[row * outputs..][..outputs]);
    }
}

#[test]
fn every_path_passes_these_tests() {
    rerun_on_other_paths(&["groups::"]);
}
